"""Tests of class names: what is accepted and refused, and colours that are the same everywhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torchvision

from hybrid_rt.common.class_names import (
    checked_names,
    class_colour,
    luminance,
    name_of,
    names_of_categories,
    summary_of,
    text_colour,
    text_of,
)
from hybrid_rt.common.errors import OptionError


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["__background__", "person"], ["__background__", "person"]),
        (("", "café", "猫", "café"), ["", "café", "猫", "café"]),
        ({3: "dog", 1: "cat"}, ["", "cat", "", "dog"]),
        (SimpleNamespace(meta={"categories": ["a", "b"]}), ["a", "b"]),
    ],
)
def test_names_become_a_list_by_label(given: Any, names: list[str]) -> None:
    assert checked_names(given) == names


def test_weights_of_torchvision_bring_their_categories() -> None:
    weights = torchvision.models.get_model_weights("fasterrcnn_resnet50_fpn").DEFAULT
    names = checked_names(weights)
    assert names == weights.meta["categories"]
    assert (names[0], names[1], len(names)) == ("__background__", "person", 91)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("person", "expected a sequence of names, a mapping of labels to names, or weights of torchvision"),
        (7, "got int. "),
        (SimpleNamespace(meta={}), "got SimpleNamespace. "),
        (["cat", 3], "expected each name to be one line of text, got int 3 for label 1. "),
        ({2: None}, "expected each name to be one line of text, got NoneType None for label 2. "),
        (["a\nb"], "got 'a\\nb' for label 0. "),
        (["\ud800"], "got '\\ud800' for label 0. "),
        ([], "expected at least one name, got none. "),
        (["", ""], "expected at least one name, got none. "),
        ({}, "expected at least one name, got none. "),
        ({-1: "x"}, "expected labels that are integers in 0..65535, got -1. "),
        ({65_536: "x"}, "expected labels that are integers in 0..65535, got 65536. "),
        ({"1": "x"}, "expected labels that are integers in 0..65535, got '1'. "),
        (["x"] * 65_537, "expected at most 65536 names, got 65537. "),
    ],
)
def test_invalid_lists_of_names_are_refused(given: Any, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        checked_names(given)
    assert str(caught.value).startswith("hybrid_rt[convert]: class_names: expected ")
    assert text in str(caught.value)


def test_categories_have_names_by_their_ids_or_by_the_labels_that_stand_for_them() -> None:
    categories = [{"id": 1, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 20}, {"id": 70_000, "name": "far"}]
    assert names_of_categories(categories) == {1: "cat", 18: "dog"}
    assert names_of_categories(categories, {0: 18, 5: 70_000, 6: 20, 7: 3}) == {0: "dog", 5: "far"}


def test_a_label_without_a_name_is_shown_as_its_number() -> None:
    names = ["__background__", "person", ""]
    assert text_of(1, names) == "person"
    for label in (2, 3, -1, 1 << 40):
        assert name_of(label, names) == ""
        assert text_of(label, names) == str(label)


def test_a_summary_counts_the_names() -> None:
    assert summary_of([]) == ""
    assert summary_of(["", "cat", "dog"]) == "2 (cat, dog)"
    assert summary_of(["cat", "dog", "bird"], most=2) == "3 (cat, dog, ...)"


def test_a_label_keeps_its_colour() -> None:
    """The expected colours are those in tests/cpp/apps/image/test_class_colours.cpp."""
    colours = {
        -7: (14, 8, 153),
        -1: (61, 204, 103),
        0: (255, 25, 25),
        1: (8, 50, 153),
        2: (207, 255, 140),
        3: (204, 61, 186),
        4: (25, 255, 217),
        13: (153, 38, 8),
        90: (140, 170, 255),
        1_000_003: (204, 61, 196),
    }
    assert {label: class_colour(label) for label in colours} == colours


def test_text_can_be_read_on_every_colour() -> None:
    for label in range(-1000, 1000):
        background = class_colour(label)
        darker, lighter = sorted((luminance(background), luminance(text_colour(background))))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5
    assert text_colour((255, 255, 255)) == (0, 0, 0)
    assert text_colour((0, 0, 0)) == (255, 255, 255)
