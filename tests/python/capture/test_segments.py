"""Tests of segment names, and of replacing segments by other modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from helpers.small_detectors import small_detector, small_image
from hybrid_rt import CaptureError, OptionError
from hybrid_rt.capture.observe import Observation, Use, observe
from hybrid_rt.capture.segments import Share, fuse_groups, predicted_gain, resolve_names, shares_of
from hybrid_rt.capture.side_effects import find_side_effects
from hybrid_rt.common.submodules import with_submodules


def test_names_keep_their_order_and_one_name_is_a_list_of_one() -> None:
    detector = small_detector()
    assert resolve_names(detector, ["classes", "backbone.first"]) == ["classes", "backbone.first"]
    assert resolve_names(detector, "backbone.second") == ["backbone.second"]


def test_an_unknown_name_shows_the_near_ones() -> None:
    with pytest.raises(
        OptionError, match=r"expected a submodule of SmallDetector, got 'backbon'. Similar names: backbone"
    ):
        resolve_names(small_detector(), ["backbon"])
    with pytest.raises(OptionError, match=r"got 'zzz'. See detector.named_modules\(\)."):
        resolve_names(small_detector(), ["zzz"])


def test_the_detector_itself_is_no_segment() -> None:
    with pytest.raises(OptionError, match="expected a submodule of SmallDetector, got ''"):
        resolve_names(small_detector(), [""])


def test_no_name_is_refused() -> None:
    with pytest.raises(OptionError, match="expected 'auto' or at least one name, got an empty list"):
        resolve_names(small_detector(), [])


@pytest.mark.parametrize("names", [["backbone", "backbone.first"], ["backbone.first.0", "backbone.first"]])
def test_one_inside_another_is_refused(names: list[str]) -> None:
    outer, inner = sorted(names, key=len)
    with pytest.raises(OptionError, match=f"expected each submodule once, got '{inner}' inside '{outer}'"):
        resolve_names(small_detector(), names)


def test_the_same_name_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="expected each submodule once, got 'backbone' twice"):
        resolve_names(small_detector(), ["backbone", "backbone"])


def test_a_shared_prefix_does_not_make_a_submodule() -> None:
    detector = small_detector()
    detector.backbone2 = nn.Sequential(nn.ReLU())
    assert resolve_names(detector, ["backbone", "backbone2"]) == ["backbone", "backbone2"]


def test_replace_leaves_the_given_detector_alone() -> None:
    detector = small_detector()
    before = dict(detector.named_modules())
    replacement = nn.Identity()
    changed = with_submodules(detector, {"backbone.first": replacement, "classes": replacement})
    assert changed.backbone.first is replacement
    assert changed.classes is replacement
    assert changed.backbone is not detector.backbone
    assert changed.backbone.second is detector.backbone.second
    assert dict(detector.named_modules()) == before


def test_replace_shares_the_weights() -> None:
    detector = small_detector()
    changed = with_submodules(detector, {"classes": nn.Identity()})
    assert changed.backbone.first[0].weight.data_ptr() == detector.backbone.first[0].weight.data_ptr()
    assert "classes.weight" not in changed.state_dict()
    assert torch.equal(detector.state_dict()["classes.weight"], detector.classes.weight)


def test_a_submodule_with_two_names_is_replaced_under_both() -> None:
    detector = small_detector()
    detector.body = detector.backbone
    assert resolve_names(detector, "body") == ["body"]
    replacement = nn.Identity()
    changed = with_submodules(detector, {"body": replacement})
    assert changed.backbone is changed.body is replacement
    changed = with_submodules(detector, {"backbone.first": replacement})
    assert changed.backbone.first is changed.body.first is replacement
    assert detector.body is detector.backbone


def looked_at(detector: nn.Module, arguments: tuple[object, ...], names: list[str] | None = None) -> dict[str, Share]:
    shares = shares_of(observe(detector, arguments), find_side_effects(detector, arguments), names)
    return {share.name: share for share in shares}


def test_auto_takes_the_outermost_dense_submodules_and_says_why_not_the_others(
    demo_detector: FasterRCNN, demo_image: Tensor
) -> None:
    shares = looked_at(demo_detector, ([demo_image],))
    chosen = {name for name, share in shares.items() if share.chosen}
    assert {"backbone", "rpn.head"} <= chosen  # the box head's share is near the limit
    assert chosen <= {"backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"}
    assert shares["transform"].reason == "takes or returns more than tensors"
    assert 0.3 < shares["backbone"].share < 1
    assert "backbone.body" not in shares


def test_auto_looks_inside_value_dependent_submodules() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Conv2d(3, 64, 7, padding=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)[x[:, :1].expand(-1, 64, -1, -1) > 0.5]

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).sum()

    shares = looked_at(Outer().eval(), (small_image(),))
    assert list(shares) == ["inner.layers"]
    assert shares["inner.layers"].chosen


def test_auto_without_gain_lists_the_submodules() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x)

    with pytest.raises(OptionError) as caught:
        looked_at(Plain().eval(), (small_image(),))
    text = str(caught.value)
    assert text.startswith("hybrid_rt[convert]: segments='auto': expected a submodule that takes at least 1% of the ")
    assert "pool: " in text
    assert "has no weights" in text
    assert text.endswith("Name the segments: segments=[...]. [no-segment-pays]")


def test_a_name_of_a_segment_that_depends_on_values_is_refused() -> None:
    class Branching(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.mean() > 0 else x

    detector = small_detector()
    detector.classes = Branching(8, 3, 1)
    with pytest.raises(CaptureError) as caught:
        looked_at(detector, (small_image(),), ["classes"])
    text = str(caught.value)
    assert "segment 'classes': expected the same operations in every call, on its inputs alone, got aten::" in text
    assert "test_segments.py" in text
    assert "return super().forward(x) if x.mean() > 0 else x" in text
    assert text.endswith("leave it to the head by naming smaller submodules in segments=. [not-repeatable]")


def shares(*parts: float) -> list[Share]:
    return [Share(str(i), part * 1e3, part, True) for i, part in enumerate(parts)]


def test_the_predicted_gain_is_amdahls() -> None:
    assert predicted_gain(shares(0.5), 2) == pytest.approx(1 / 0.75)
    assert predicted_gain(shares(0.5, 0.25), float("inf")) == pytest.approx(4)
    assert predicted_gain([Share("x", 1, 0.9, False, "no")], 2) == 1


def test_segments_that_feed_each_other_are_one_group(demo_detector: FasterRCNN, demo_image: Tensor) -> None:
    seen = observe(demo_detector, ([demo_image],))
    names = ["roi_heads.box_predictor", "rpn.head", "backbone", "roi_heads.box_head"]
    assert fuse_groups(seen, names, fuse=True) == [
        ["backbone", "rpn.head"],
        ["roi_heads.box_head", "roi_heads.box_predictor"],
    ]
    assert [len(members) for members in fuse_groups(seen, names, fuse=False)] == [1, 1, 1, 1]


def test_a_segment_that_is_called_twice_is_a_group_of_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            features = self.body(x)
            return self.head(features) + self.head(features * 2)

    detector = Twice().eval()
    assert fuse_groups(observe(detector, (small_image(),)), ["body", "head"], fuse=True) == [["body"], ["head"]]


def test_the_share_of_parts_that_did_not_run_is_zero() -> None:
    assert Observation(nn.Module(), (), None, 0.0, {"x": Use("x", 1.0)}).share("x") == 0
