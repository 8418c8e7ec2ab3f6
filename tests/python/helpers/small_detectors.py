"""Detectors of many kinds that convert in a fraction of a second, for tests that need no trained detector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

SIDE = 32


class Backbone(nn.Module):
    """Maps [N, 3, H, W] to two levels, [N, 8, H/2, W/2] and [N, 8, H/4, W/4]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.first(images)
        return {"fine": fine, "coarse": self.second(fine)}


class Alone(nn.Module):
    """A detector that consists of one segment, for any arguments; TorchScript cannot compile it."""

    def __init__(self, segment: nn.Module, name: str = "backbone") -> None:
        super().__init__()
        self.name = name
        self.add_module(name, segment)

    def forward(self, *arguments: Any) -> Any:
        return self.get_submodule(self.name)(*arguments)


class Changed(nn.Module):
    """Applies ``change`` to the result of a layer; the default layer keeps the sizes: [N, 4, H, W]."""

    def __init__(self, change: Callable[[Tensor], Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer or nn.Conv2d(3, 4, 3, padding=1)
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.layer(x))


class OneConvolution(nn.Module):
    """Maps a batch [N, 3, H, W] to [N, 4, H - 2, W - 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)

    def forward(self, batch: Tensor) -> Tensor:
        return self.backbone(batch)


class SmallDetector(nn.Module):
    """Maps a batch of images [N, 3, H, W] to the first image's boxes [n, 4], scores [n] and labels [n]."""

    def __init__(self, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone or Backbone()
        self.classes = nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images)["coarse"])

    def detect(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns boxes, scores and labels from features [N, 8, H/4, W/4]."""
        scores, labels = self.classes(features)[0].flatten(1).sigmoid().max(dim=0)
        cells = torch.arange(scores.numel(), device=scores.device)
        left = (cells % features.shape[3]).to(scores.dtype) * 4
        top = torch.div(cells, features.shape[3], rounding_mode="floor").to(scores.dtype) * 4
        boxes = torch.stack([left, top, left + 10, top + 10], dim=1)
        kept = nms(boxes, scores, 0.3)
        return boxes[kept], scores[kept], labels[kept]


class ListDetector(nn.Module):
    """The same with torchvision's interface: takes a list of images and returns a list of dicts."""

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


# Backbones with other result types, each with a matching head, because TorchScript types are static.


class Reshaped(Backbone):
    """Returns the result of ``wrap`` for the two levels."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        levels = super().forward(images)
        return self.wrap(levels["fine"], levels["coarse"])


class TakesTensor(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images))


class TakesIndexed(SmallDetector):
    """Takes a list or a tuple of levels."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.backbone(images)
        return self.detect(levels[1] + levels[0].mean())


class TakesNestedTuple(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, (coarse, others) = self.backbone(images)
        return self.detect(coarse + others["mean"] + fine.mean())


class TakesNestedDict(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.backbone(images)
        return self.detect(levels["levels"]["coarse"] + levels["means"]["fine"])


class TakesDictOfLists(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.backbone(images)
        return self.detect(levels["levels"][1] + levels["means"][0])


def mean(level: Tensor) -> Tensor:
    """Returns the mean of each channel: [N, C, 1, 1]."""
    return level.mean(dim=(2, 3), keepdim=True)


RESHAPED: dict[str, tuple[type[SmallDetector], Callable[[Tensor, Tensor], Any]]] = {
    "tensor": (TakesTensor, lambda fine, coarse: coarse + mean(fine)),
    "list": (TakesIndexed, lambda fine, coarse: [fine, coarse]),
    "tuple": (TakesIndexed, lambda fine, coarse: (fine, coarse)),
    "nested tuple": (TakesNestedTuple, lambda fine, coarse: (fine, (coarse, {"mean": mean(coarse)}))),
    "nested dict": (
        TakesNestedDict,
        lambda fine, coarse: {
            "levels": {"fine": fine, "coarse": coarse},
            "means": {"fine": mean(fine), "coarse": mean(coarse)},
        },
    ),
    "dict of lists": (
        TakesDictOfLists,
        lambda fine, coarse: {"levels": [fine, coarse], "means": [mean(fine), mean(coarse)]},
    ),
}


def reshaped_detector(kind: str) -> SmallDetector:
    """Returns a detector in eval mode. ``kind`` is one of :data:`RESHAPED`."""
    detector, wrap = RESHAPED[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return detector(Reshaped(wrap)).requires_grad_(False).eval()


class FusingBackbone(nn.Module):
    """Maps an image [N, 3, H, W] and its depth [N, 1, H, W] to [N, 8, H/4, W/4]."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = Backbone()
        self.depths = nn.Sequential(nn.Conv2d(1, 8, 3, stride=4, padding=1), nn.ReLU())

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        return self.colours(image)["coarse"] + self.depths(depth)


class FusingDetector(SmallDetector):
    """A custom detector with two inputs."""

    def __init__(self) -> None:
        super().__init__(FusingBackbone())

    def forward(self, images: Tensor, depths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images, depths))


def fusing_detector() -> FusingDetector:
    """In eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FusingDetector().requires_grad_(False).eval()


class CentreDetector(nn.Module):
    """An anchor-free detector: each cell of two levels predicts the distances to the sides of its box.

    Takes a list of images [3, H, W] of any sizes, which are padded to one size. Returns a tuple of boxes [n, 4], scores
    [n], labels [n] and the index of each box's image [n].
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.outputs = nn.Conv2d(8, 3 + 4, 3, padding=1)

    def forward(self, images: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        height = max([image.shape[1] for image in images])
        width = max([image.shape[2] for image in images])
        batch = torch.zeros([len(images), 3, height, width])
        for i, image in enumerate(images):
            batch[i, :, : image.shape[1], : image.shape[2]] = image
        levels = self.backbone(batch)
        boxes, scores, labels, owners = [], [], [], []
        for i in range(len(images)):
            for name, stride in [("fine", 2.0), ("coarse", 4.0)]:
                cells = self.outputs(levels[name])[i]
                rows = (torch.arange(cells.shape[1]) + 0.5) * stride
                columns = (torch.arange(cells.shape[2]) + 0.5) * stride
                y, x = torch.meshgrid(rows, columns, indexing="ij")
                sides = cells[3:].exp() * stride * 2.0
                box = torch.stack([x - sides[0], y - sides[1], x + sides[2], y + sides[3]], dim=-1).flatten(0, 1)
                score, label = cells[:3].flatten(1).sigmoid().max(dim=0)
                kept = nms(box, score, 0.3)
                kept = kept[score[kept] > 0.5]
                boxes.append(box[kept])
                scores.append(score[kept])
                labels.append(label[kept])
                owners.append(torch.full([kept.numel()], i, dtype=torch.int64))
        return torch.cat(boxes), torch.cat(scores), torch.cat(labels), torch.cat(owners)


def centre_detector() -> CentreDetector:
    """In eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return CentreDetector().requires_grad_(False).eval()


def small_detector(backbone: nn.Module | None = None) -> SmallDetector:
    """Returns a detector in eval mode, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallDetector(backbone).requires_grad_(False).eval()


def small_image(height: int = SIDE, width: int = SIDE, seed: int = 0) -> Tensor:
    """Returns noise, [1, 3, H, W] in 0..1."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@contextmanager
def replaced_backbone(detector: nn.Module, backbone: nn.Module) -> Iterator[None]:
    """Puts another backbone into a detector, within the block."""
    kept, detector.backbone = detector.backbone, backbone
    try:
        yield
    finally:
        detector.backbone = kept


def small_images() -> list[Tensor]:
    """Two of other sizes, [3, H, W] each, as a list detector takes them."""
    return [small_image()[0], small_image(48, 40)[0]]


def small_list_detector() -> ListDetector:
    """In eval mode."""
    return ListDetector(small_detector()).eval()


class CountingListDetector(nn.Module):
    """Counts its calls, and lowers the scores with each."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = small_detector()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.seen += 1
        found: list[dict[str, Tensor]] = []
        for image in images:
            boxes, scores, labels = self.detector(image[None])
            found.append({"boxes": boxes, "scores": scores / self.seen, "labels": labels})
        return found


def counting_list_detector() -> CountingListDetector:
    """In eval mode."""
    return CountingListDetector().eval()


def demo_backbone() -> nn.Module:
    """Returns the demo detector's backbone, for command lines that name a callable."""
    from models import digits_detector

    backbone: nn.Module = digits_detector.load().backbone
    return backbone
