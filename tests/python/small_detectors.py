"""Detectors that convert in a fraction of a second, for tests that need no trained one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import nms

SIDE = 32


class Backbone(nn.Module):
    """[N, 3, H, W] -> two levels, [N, 8, H/2, W/2] and [N, 8, H/4, W/4]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        fine = self.first(pictures)
        return {"fine": fine, "coarse": self.second(fine)}


class SmallDetector(nn.Module):
    """A batch of pictures [N, 3, H, W] in; boxes [n, 4], scores [n] and labels [n] of the first picture out."""

    def __init__(self, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone or Backbone()
        self.classes = nn.Conv2d(8, 3, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone(pictures)["coarse"]
        scores, labels = self.classes(features)[0].flatten(1).sigmoid().max(dim=0)
        cells = torch.arange(scores.numel(), device=scores.device)
        left = (cells % features.shape[3]).to(scores.dtype) * 4
        top = torch.div(cells, features.shape[3], rounding_mode="floor").to(scores.dtype) * 4
        boxes = torch.stack([left, top, left + 10, top + 10], dim=1)
        kept = nms(boxes, scores, 0.3)
        return boxes[kept], scores[kept], labels[kept]


class ListDetector(nn.Module):
    """The same with torchvision's interface: a list of pictures in, a list of dicts out."""

    def __init__(self, detector: SmallDetector, least_score: float = 0.0) -> None:
        super().__init__()
        self.detector = detector
        self.backbone = detector.backbone
        self.least_score = least_score

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for image in images:
            boxes, scores, labels = self.detector(image[None])
            kept = scores > self.least_score
            found.append({"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]})
        return found


def small_detector(backbone: nn.Module | None = None) -> SmallDetector:
    """In eval mode, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallDetector(backbone).requires_grad_(False).eval()


def small_picture(height: int = SIDE, width: int = SIDE, seed: int = 0) -> Tensor:
    """Noise, [1, 3, H, W] in 0..1."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def small_list_detector() -> ListDetector:
    """In eval mode."""
    return ListDetector(small_detector()).eval()
