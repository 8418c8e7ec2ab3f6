"""Tests of detections inside results of any structure: their boxes are matched if their rows are not equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from hybrid_rt.verification.verify import THRESHOLDS, compare_results

FP32 = THRESHOLDS["fp32"]


@dataclass
class Found:
    """Detections with fields of a user's own names."""

    bboxes: Tensor
    confidence: Tensor
    classes: Tensor


class Named(NamedTuple):
    """Detections without labels, with a mask per box."""

    boxes: Tensor
    scores: Tensor
    masks: Tensor


def detections(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Returns boxes [n, 4], scores [n] and labels [n] of two classes."""
    corners = torch.arange(count, dtype=torch.float32)[:, None] * 40
    boxes = torch.cat([corners, corners, corners + 20, corners + 30], dim=1)
    return boxes, torch.linspace(0.9, 0.4, count), torch.arange(count) % 2


def masks_of(boxes: Tensor) -> Tensor:
    """Returns a mask [n, 8, 8] per box, which depends on its place."""
    return (boxes[:, 0, None, None] / 40 == torch.arange(8)).expand(-1, 8, 8).float()


WRITTEN: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "dict": lambda boxes, scores, labels: {"boxes": boxes, "scores": scores, "labels": labels},
    "dict beside other values": lambda boxes, scores, labels: {
        "size": (480, 640),
        "found": {"b": boxes, "s": scores, "l": labels},
    },
    "dataclass": Found,
    "tuple": lambda boxes, scores, labels: (boxes, scores, labels),
    "NamedTuple": lambda boxes, scores, labels: Named(boxes, scores, masks_of(boxes)),
    "list of tuples": lambda boxes, scores, labels: [(boxes, labels, scores), (boxes * 2, labels, scores)],
    "lists with an entry per image": lambda boxes, scores, labels: {
        "boxes": [boxes, boxes * 2],
        "scores": [scores, scores],
        "labels": [labels, labels],
    },
    "features per box": lambda boxes, scores, labels: {
        "boxes": boxes,
        "scores": scores,
        "labels": labels,
        "features": boxes.repeat(1, 3),
    },
}


def failures(expected: Any, found: Any) -> list[str]:
    return [failure.text for failure in compare_results(expected, found, FP32, "input 0").failures]


@pytest.fixture(params=WRITTEN.values(), ids=WRITTEN)
def written(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor, Tensor], Any]:
    return request.param


def test_rows_may_change_places(written: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
    boxes, scores, labels = detections()
    order = torch.tensor([1, 0, 2, 3, 5, 4])
    assert not failures(written(boxes, scores, labels), written(boxes[order], scores[order], labels[order]))


def test_a_box_at_the_cut_may_be_missing(written: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
    boxes, scores, labels = detections()
    scores[4:] = 0.3001
    assert not failures(written(boxes, scores, labels), written(boxes[:5], scores[:5], labels[:5]))


def test_a_missing_box_is_named(written: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
    boxes, scores, labels = detections()
    texts = failures(written(boxes, scores, labels), written(boxes[1:], scores[1:], labels[1:]))
    assert "5 of 6 boxes matched among 5" in texts[0]
    assert texts[0].startswith("input 0, output")


def test_another_box_or_score_is_found(written: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
    boxes, scores, labels = detections()
    assert failures(written(boxes, scores, labels), written(boxes + 10, scores, labels))
    assert failures(written(boxes, scores, labels), written(boxes, scores - 0.2, labels))


def test_a_label_is_compared() -> None:
    boxes, scores, labels = detections()
    assert failures(Found(boxes, scores, labels), Found(boxes, scores, 1 - labels))


def test_a_field_of_a_user_s_own_is_compared_by_the_matched_boxes() -> None:
    boxes, scores, labels = detections()
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    write = WRITTEN["features per box"]
    found = write(boxes[order], scores[order], labels[order])
    found["features"] = boxes.repeat(1, 3)
    texts = failures(write(boxes, scores, labels), found)
    assert len(texts) == 1
    assert "'features' of the same boxes: relative error" in texts[0]


def test_values_beside_the_boxes_are_compared() -> None:
    boxes, scores, labels = detections()
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    write = WRITTEN["dict beside other values"]
    found = write(boxes[order], scores[order], labels[order]) | {"size": (480, 641)}
    assert failures(write(boxes, scores, labels), found) == ["input 0, output 'output.size.1': 640 expected, 641 found"]


@pytest.mark.parametrize(
    "changed",
    [
        lambda boxes, scores, labels: (boxes.double(), scores, labels),
        lambda boxes, scores, labels: (boxes, scores, labels.int()),
        lambda boxes, scores, labels: (boxes, scores[:, None], labels),
    ],
    ids=["float64", "int32", "another shape"],
)
def test_another_dtype_or_shape_is_no_match(changed: Callable[..., Any]) -> None:
    assert failures(detections(), changed(*detections()))


def test_tensors_that_are_no_detections_keep_their_rows() -> None:
    boxes, scores, _ = detections()
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    assert failures((boxes, scores, scores * 2), (boxes[order], scores[order], scores[order] * 2))
    assert failures({"boxes": boxes}, {"boxes": boxes[order]})
    many = [tensor.repeat_interleave(400, 0) for tensor in (boxes, scores)]
    assert failures(tuple(many), tuple(tensor.flip(0) for tensor in many))


def test_a_detector_without_boxes_is_compared_with_one_that_has_some() -> None:
    boxes, scores, labels = detections(1)
    none = (boxes[:0], scores[:0], labels[:0])
    assert not failures(none, none)
    assert "0 boxes matched among 1" in failures(none, (boxes, scores, labels))[0].replace("0 of 0", "0")
    assert "0 of 1 boxes matched among 0" in failures((boxes, scores, labels), none)[0]


class Ties(nn.Module):
    """Finds equal scores in a black image, of which a threshold and a limit remove some, in a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Found:
        maps = self.backbone(images)[0].flatten(1)
        scores = maps[4].sigmoid()
        scores = scores + 1e-7 * torch.sin(maps[4] * 1e6)
        best = scores.argsort(descending=True)[:20]
        best = best[scores[best] >= scores[best].mean()]
        corners = torch.stack([best % 16 * 8, best // 16 * 8], 1).float()
        boxes = torch.cat([corners, corners + 8 + maps[:2, best].t().abs()], 1)
        return Found(boxes, scores[best], torch.zeros_like(best))


@pytest.mark.slow
def test_near_ties_on_a_black_image_are_no_difference(tmp_path: Path) -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    hybrid_rt.convert(Ties().eval(), (image,), tmp_path / "a.pt", engine="torchscript", measure=False)
    assert hybrid_rt.verify(Ties().eval(), tmp_path / "a.pt", [(torch.zeros_like(image),)]).passed
