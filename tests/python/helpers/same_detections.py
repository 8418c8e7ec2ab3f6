"""Compares the results of two detectors: boxes, masks and keypoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybrid_rt.verification.verify import box_iou, match_boxes

Detections = dict[str, Tensor]


def partners(want: Detections, have: Detections) -> tuple[Tensor, Tensor]:
    """Returns the indices of equal boxes on both sides."""
    overlap = box_iou(want["boxes"], have["boxes"]) * (want["labels"][:, None] == have["labels"])
    best, index = overlap.max(dim=1)
    return torch.where(best > 0.99)[0], index[best > 0.99]


def assert_same_masks(want: Tensor, have: Tensor) -> None:
    """Compares masks [n, 1, H, W] in 0..1.

    torchvision pastes a mask at whole pixels, so that a box at the edge of a pixel moves it by one.
    """
    want, have = want > 0.5, have > 0.5
    union = (want | have).flatten(1).sum(dim=1)
    overlap = torch.where(union > 0, (want & have).flatten(1).sum(dim=1) / union, 1.0)
    assert union.sum() > 0
    assert overlap.min() > 0.7
    assert (overlap > 0.99).double().mean() >= 0.9


def assert_same_areas(want: Tensor, have: Tensor) -> None:
    """Compares areas [n], px: the sum of each mask's values."""
    difference = (want - have).abs() / want.clamp(min=1.0)
    assert difference.max() < 0.3
    assert (difference < 0.01).double().mean() >= 0.9


def assert_same_keypoints(want: Tensor, have: Tensor) -> None:
    """Compares keypoints [n, 17, 3]: x, y in px and the score.

    A keypoint is the maximum over several pixels, of which two may be equal.
    """
    moved = (want[:, :, :2] - have[:, :, :2]).abs().amax(dim=2)
    assert (moved < 0.1).double().mean() >= 0.98
    assert (want[:, :, 2] - have[:, :, 2]).abs().max() < 0.02


def keypoints(found: Detections) -> Tensor:
    """Returns x, y and score of each keypoint: [n, 17, 3]."""
    return torch.cat([found["keypoints"][:, :, :2], found["keypoints_scores"][:, :, None]], dim=2)


def assert_same(expected: Sequence[Detections], found: Sequence[Detections]) -> None:
    """Checks that both sides have the same boxes, with their masks and keypoints if any, at least five per image.

    Boxes are the same if their labels are equal, their IoU is above 0.99 and their scores differ by at most 1e-3.
    ``found`` may have "areas" instead of "masks".
    """
    assert len(expected) == len(found)
    for want, have in zip(expected, found, strict=True):
        match = match_boxes(want, have, iou=0.99, score=1e-3)
        assert match.expected >= 5, match
        assert match.recall == 1.0, match
        assert match.at_cut <= 2, match
        left, right = partners(want, have)
        assert len(left) >= match.matched
        if "areas" in have:
            assert_same_areas(want["masks"][left].flatten(1).sum(dim=1), have["areas"][right])
        elif "masks" in want:
            assert_same_masks(want["masks"][left], have["masks"][right])
        if "keypoints" in want:
            assert_same_keypoints(keypoints(want)[left], keypoints(have)[right])


def parse(printed: str) -> list[Detections]:
    """Parses the output of tests/downstream: one line per detection, an empty line between images."""
    images = []
    for block in printed.split("\n\n"):
        rows = torch.tensor([[float(word) for word in line.split()] for line in block.splitlines()])
        found = {"labels": rows[:, 0].long(), "scores": rows[:, 1], "boxes": rows[:, 2:6]}
        if rows.shape[1] == 7:
            found["areas"] = rows[:, 6]
        elif rows.shape[1] > 7:
            points = rows[:, 6:].reshape(len(rows), -1, 3)
            found |= {"keypoints": points, "keypoints_scores": points[:, :, 2]}
        images.append(found)
    return images
