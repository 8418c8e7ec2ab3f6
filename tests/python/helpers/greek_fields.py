"""Defines a detector whose result has non-ASCII fields. TorchScript reads their types as objects, not as strings."""

from typing import NamedTuple

from torch import Tensor

from .small_detectors import SmallDetector


class Found(NamedTuple):
    boxes_β: Tensor
    scores: Tensor


class GreekFields(SmallDetector):
    def forward(self, images: Tensor) -> Found:
        boxes, scores, _ = self.detect(self.backbone(images)["coarse"])
        return Found(boxes, scores)
