"""Collects images for the report, with the boxes of the detector and of the hybrid."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...common.image_inputs import ImageInputs
from ...verification.boxes import detections_of, matching_boxes
from ...verification.thresholds import Thresholds

MOST_IMAGES = 4
MOST_BOXES = 100
LONGEST_SIDE = 640
"""Longer side of the images that are kept, in pixels."""

_JPEG_QUALITY = 90


@dataclass(frozen=True)
class FoundBox:
    """A box (x1, y1, x2, y2 in pixels of the image as it was given) with its class and score.

    ``matched``: the verification pairs it with a box of the other side.
    """

    box: tuple[float, float, float, float]
    label: int
    score: float
    matched: bool


@dataclass(frozen=True)
class ImageReport:
    """One image that was compared.

    Attributes:
        index: index among the verification's images.
        height, width: size of the original image, in pixels.
        jpeg: the image, at most :data:`LONGEST_SIDE` pixels long; not in the JSON.
        expected, found: the best boxes of the detector and of the hybrid, at most :data:`MOST_BOXES`.
        not_drawn: number of entries in each further field of the detections, e.g. masks.
    """

    index: int
    height: int
    width: int
    jpeg: bytes
    expected: list[FoundBox]
    found: list[FoundBox]
    not_drawn: dict[str, int] = field(default_factory=dict)


class ImageSamples:
    """Keeps the first images of a verification; a ``watch`` for :func:`.verify.compare_modules`."""

    def __init__(self, thresholds: Thresholds, images: ImageInputs) -> None:
        """``thresholds``: limits for matching boxes. ``images``: which arguments are images."""
        self.images: list[ImageReport] = []
        self._thresholds = thresholds
        self._images = images
        self._count = 0

    def __call__(self, arguments: tuple[Any, ...], expected: Any, found: Any) -> None:
        """Keeps the images of a call if both results are detections with one entry per image."""
        wanted, had = detections_of(expected), detections_of(found)
        if wanted is None or had is None or len(wanted) != len(had):
            return
        images = _drawable(self._images.of(arguments))
        for i, (want, have) in enumerate(zip(wanted, had, strict=True)):
            if len(self.images) < MOST_IMAGES and len(images) == len(wanted):
                self._keep(images[i], want, have)
            self._count += 1

    def _keep(self, image: Tensor, want: Mapping[str, Tensor], have: Mapping[str, Tensor]) -> None:
        height, width = image.shape[-2:]
        pairs = matching_boxes(want, have, self._thresholds)
        self.images.append(
            ImageReport(
                index=self._count,
                height=height,
                width=width,
                jpeg=_jpeg(image),
                expected=_found(want, {i for i, _ in pairs}),
                found=_found(have, {j for _, j in pairs}),
                not_drawn={name: len(value) for name, value in want.items() if name not in _DRAWN},
            )
        )


_DRAWN = ("boxes", "labels", "scores")


def _found(side: Mapping[str, Tensor], matched: Set[int]) -> list[FoundBox]:
    order = side["scores"].argsort(descending=True)[:MOST_BOXES].tolist()
    boxes, labels, scores = side["boxes"].tolist(), side["labels"].tolist(), side["scores"].tolist()
    return [FoundBox(tuple(boxes[i]), labels[i], scores[i], i in matched) for i in order]


def _drawable(images: Sequence[Tensor]) -> list[Tensor]:
    """Returns images [C, H, W] with one or three channels (the first three of four), with batches split up."""
    drawable = [image[..., :3, :, :] for image in images if image.shape[-3] in (1, 3, 4)]
    return [one for image in drawable for one in (image.unbind() if image.dim() == 4 else [image])]


def _jpeg(image: Tensor) -> bytes:
    """Encodes an image. Floats are in 0..1; integers, and floats with values above 2, are in 0..255."""
    values = image.detach().cpu().float()
    if not image.is_floating_point() or float(values.max()) > 2:
        values = values / 255
    pixels = values.clamp(0, 1).mul(255).round().to(torch.uint8).expand(3, -1, -1)
    small = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
