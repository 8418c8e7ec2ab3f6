"""Tests of calls that TorchScript lacks, in heads that only it can convert because they branch on values."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import small_image


class Base(nn.Module):
    """Returns the features of a backbone, scaled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1))

    def forward(self, images: Tensor, scale: float = 1.0) -> Tensor:
        features: Tensor = self.backbone(images)
        return features * scale

    def brightest(self, features: Tensor) -> Tensor:
        return features[:, 0].flatten(1).max(1).values


class Middle(Base):
    """Calls its base's method with an argument of its own."""

    def forward(self, images: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(images, 2.0) + scale


class Inherits(Middle):
    """Calls methods of base classes in a chain, one of them under another name than its own."""

    def brightest(self, features: Tensor) -> Tensor:
        return super().brightest(features) * 3

    def forward(self, images: Tensor, scale: float = 1.0) -> Tensor:
        features = super(Inherits, self).forward(images)  # noqa: UP008
        found = super().brightest(features) + self.brightest(features)
        return found * 2 if float(features.max()) > 0.1 else found


def corners(boxes: Tensor) -> Tensor:
    found = boxes.new(boxes.shape)
    found[..., :2] = boxes[..., :2] - boxes[..., 2:] / 2
    found[..., 2:] = boxes[..., :2] + boxes[..., 2:] / 2
    return found


class LimitsItsTime(nn.Module):
    """Selects boxes as the YOLOs do: a time limit, early ends, and rows and classes from a transposed nonzero."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Base().backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        start = time.time()
        found = [torch.zeros((0, 4))] * images.shape[0]
        for i, features in enumerate(self.backbone(images).flatten(2).transpose(1, 2)):
            rows, classes = (features > features.mean() + 0.02).nonzero(as_tuple=False).T
            if not rows.shape[0]:
                continue
            boxes = corners(features[rows, :4] + classes[:, None])
            boxes *= boxes.new_tensor([1, 1, 2, 2])
            found[i] = boxes[torch.nonzero(boxes[:, 0] > 0, as_tuple=True)[0]]
            if time.time() - start > 60:
                break
        return found


@pytest.mark.parametrize("kind", [Inherits, LimitsItsTime])
def test_heads_are_scripted_and_equal_at_unseen_sizes(kind: type[nn.Module], tmp_path: Path) -> None:
    detector, path = kind().eval(), tmp_path / "rewritten.pt"
    options: dict[str, Any] = {"segments": ["backbone"], "engine": "torchscript", "measure": False}
    ranges = {"height": (32, 96), "width": (32, 96)}
    report = hybrid_rt.convert(detector, (small_image(),), path, shapes=ranges, **options).report
    assert report.head == "script"
    hybrid = hybrid_rt.load(path)
    for size in ((48, 40), (33, 95)):
        image = small_image(*size)
        torch.testing.assert_close(hybrid(image), detector(image))
    assert type(detector) is kind
    assert not [name for name in vars(kind) if "_after_" in name]
