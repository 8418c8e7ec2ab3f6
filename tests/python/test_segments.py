"""Names of segments, and putting other modules into their places."""

from __future__ import annotations

import pytest
import torch
from small_detectors import small_detector
from torch import nn

from hybrid_rt import OptionError
from hybrid_rt.segments import named, replace


def test_names_keep_their_order_and_one_name_is_a_list_of_one() -> None:
    detector = small_detector()
    assert named(detector, ["classes", "backbone.first"]) == ["classes", "backbone.first"]
    assert named(detector, "backbone.second") == ["backbone.second"]


def test_an_unknown_name_shows_the_near_ones() -> None:
    with pytest.raises(OptionError, match=r"expected a submodule of SmallDetector, got 'backbon'. Near it: backbone"):
        named(small_detector(), ["backbon"])
    with pytest.raises(OptionError, match=r"got 'zzz'. See detector.named_modules\(\)."):
        named(small_detector(), ["zzz"])


def test_the_detector_itself_is_no_segment() -> None:
    with pytest.raises(OptionError, match="expected a submodule of SmallDetector, got ''"):
        named(small_detector(), [""])


def test_no_name_is_refused() -> None:
    with pytest.raises(OptionError, match="expected 'auto' or at least one name, got an empty list"):
        named(small_detector(), [])


@pytest.mark.parametrize("names", [["backbone", "backbone.first"], ["backbone.first.0", "backbone.first"]])
def test_one_inside_another_is_refused(names: list[str]) -> None:
    outer, inner = sorted(names, key=len)
    with pytest.raises(OptionError, match=f"expected each submodule once, got '{inner}' inside '{outer}'"):
        named(small_detector(), names)


def test_the_same_name_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="expected each submodule once, got 'backbone' twice"):
        named(small_detector(), ["backbone", "backbone"])


def test_a_name_that_only_begins_like_another_is_no_part_of_it() -> None:
    detector = small_detector()
    detector.backbone2 = nn.Sequential(nn.ReLU())
    assert named(detector, ["backbone", "backbone2"]) == ["backbone", "backbone2"]


def test_replace_leaves_the_given_detector_alone() -> None:
    detector = small_detector()
    before = dict(detector.named_modules())
    replacement = nn.Identity()
    changed = replace(detector, {"backbone.first": replacement, "classes": replacement})
    assert changed.backbone.first is replacement
    assert changed.classes is replacement
    assert changed.backbone is not detector.backbone
    assert changed.backbone.second is detector.backbone.second
    assert dict(detector.named_modules()) == before


def test_replace_shares_the_weights() -> None:
    detector = small_detector()
    changed = replace(detector, {"classes": nn.Identity()})
    assert changed.backbone.first[0].weight.data_ptr() == detector.backbone.first[0].weight.data_ptr()
    assert "classes.weight" not in changed.state_dict()
    assert torch.equal(detector.state_dict()["classes.weight"], detector.classes.weight)


def test_a_submodule_with_two_names_is_replaced_under_both() -> None:
    detector = small_detector()
    detector.body = detector.backbone
    assert named(detector, "body") == ["body"]
    replacement = nn.Identity()
    changed = replace(detector, {"body": replacement})
    assert changed.backbone is changed.body is replacement
    changed = replace(detector, {"backbone.first": replacement})
    assert changed.backbone.first is changed.body.first is replacement
    assert detector.body is detector.backbone
