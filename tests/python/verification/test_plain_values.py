"""Tests of results that contain more than tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_rt import CaptureError
from hybrid_rt.verification.plain_values import comparable, tensors_by_place
from hybrid_rt.verification.thresholds import THRESHOLDS
from hybrid_rt.verification.verify import Verification, compare_results


def failures(expected: Any, found: Any) -> list[str]:
    verification = Verification("fp32").with_findings(compare_results(expected, found, THRESHOLDS["fp32"], "input 0"))
    return verification.failures


@dataclasses.dataclass
class Result:
    boxes: Tensor
    count: int
    masks: Tensor | None = None


def test_equal_values_of_other_containers() -> None:
    boxes = torch.ones(2, 4)
    found = {"boxes": boxes, "count": 2, "masks": None}
    assert failures((Result(boxes, 2), []), [found, []]) == []
    assert list(tensors_by_place(comparable((Result(boxes, 2), [])))) == [(0, "boxes")]


def test_entries_of_several_types() -> None:
    result = {"boxes": torch.ones(2, 4), "levels": (torch.zeros(1), [torch.ones(3)]), "model": "a"}
    assert failures(result, {**result, "levels": [torch.zeros(1), (torch.ones(3),)]}) == []
    (told,) = failures(result, {**result, "levels": (torch.zeros(1), [torch.zeros(3)])})
    assert told.startswith("input 0, output 'output.levels.1.0': relative error 1 ")


@pytest.mark.parametrize(
    ("expected", "found", "told"),
    [
        (2, 3, "2 expected, 3 found"),
        (2, 2.0, "2 expected, 2.0 found"),
        (True, 1, "True expected, 1 found"),
        ("a", "b", "'a' expected, 'b' found"),
        (None, torch.ones(1), "None expected, a tensor found"),
        (torch.ones(1), 1, "a tensor expected, 1 found"),
        (1.0, 1.01, "1.0 expected, 1.01 found"),
        (1.5, float("inf"), "1.5 expected, inf found"),
        ([], 0, "[] expected, 0 found"),
        (None, [], "None expected, [] found"),
        ("", None, "'' expected, None found"),
    ],
)
def test_differences_are_reported(expected: Any, found: Any, told: str) -> None:
    assert failures([expected, torch.ones(1)], [found, torch.ones(1)]) == [f"input 0, output 'output.0': {told}"]


def test_values_that_are_missing() -> None:
    assert failures([torch.ones(1), 2], [torch.ones(1)]) == ["input 0: 2 values expected, 1 found"]
    assert failures({"a": 1}, {"b": 1}) == ["input 0: output 'output.a' expected, none found"]


def test_numbers_with_a_fraction_may_be_rounded() -> None:
    values = [1.0, float("nan"), float("-inf")]
    assert failures(values, [1.0 + 1e-6, float("nan"), float("-inf")]) == []


def test_an_object_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"the detector's result, 1: expected tensors, numbers, .* got object"):
        comparable([torch.ones(1), object()])
