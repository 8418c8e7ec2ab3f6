"""Further inputs for a detector, made from its example: they show which dimensions of a segment vary."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common.image_inputs import ImageInputs, resized_image
from ..common.submodules import with_submodules
from .shapes import Shapes

_LEAST_SIDE = 160
"""Pixels; below it a feature pyramid has levels of one cell, which don't show what varies."""

_SMALLER = 0.2
"""Of the side to which a detector resizes its images: a twenty-fifth of the backbone's work."""


@dataclass(frozen=True)
class Sample:
    """One more run: the detector, perhaps one that resizes its images to smaller ones, and its arguments.

    ``required``: a failure counts, since the user asked for this size.
    """

    detector: nn.Module
    arguments: tuple[Any, ...]
    required: bool = False


def samples_of(
    detector: nn.Module, example: tuple[Any, ...], images: ImageInputs, shapes: Shapes | None
) -> list[Sample]:
    """Runs that differ from the example in what may differ later; the first is the one that costs least.

    If images are a list, one is added, so that a number per image varies too. One run is on black images: a number
    per object varies between it and the others.

    Args:
        detector: the detector. One that resizes its images (torchvision's transform) is run at smaller sizes: on
            images that are wider than high, and on images that are higher than wide.
        example: its arguments.
        images: which of them are images.
        shapes: see :data:`hybrid_rt.capture.shapes.Shapes`. Sizes: the smallest and the largest of them. Ranges:
            their ends. None: the example's size, if nothing resizes it.
    """
    resizes = hasattr(getattr(detector, "transform", None), "min_size")
    if isinstance(shapes, Mapping):
        # Of the segment's input: ranges of the pictures only if nothing resizes them.
        ends = [(shapes.get("height", (0, 0))[end], shapes.get("width", (0, 0))[end]) for end in (0, 1)]
        sizes = [] if resizes else ends
    else:
        sizes = sorted(shapes or [], key=lambda size: size[0] * size[1])
    if sizes:
        chosen = dict.fromkeys([sizes[0], sizes[-1]])
        one_more = images.one_more(example)
        given = [Sample(detector, images.resized(one_more, size), required=True) for size in chosen]
        if isinstance(shapes, Mapping) and "batch" in shapes:
            given += _of_another_batch(given[0], images, shapes["batch"])
        return [*given, Sample(detector, images.map(given[0].arguments, torch.zeros_like))]
    if not resizes:
        return [Sample(detector, example, required=True), Sample(detector, images.map(example, torch.zeros_like))]
    smaller = resizing_to_smaller(detector)
    return [
        Sample(smaller, images.map(example, _wide)),
        Sample(smaller, images.map(images.one_more(example), _tall)),
        Sample(smaller, images.map(example, torch.zeros_like)),
    ]


def _of_another_batch(sample: Sample, images: ImageInputs, limits: tuple[int, int]) -> list[Sample]:
    """The sample with another number of images in a batch, so that what is counted by image varies in each segment.

    Lists of images have one more already.
    """
    count = images.batch(sample.arguments)
    other = count + 1 if count < limits[1] else count - 1
    if not count or other < limits[0]:
        return []
    return [Sample(sample.detector, images.batched(sample.arguments, other))]


def resizing_to_smaller(detector: nn.Module) -> nn.Module:
    """Returns the detector with a transform that resizes images to a fifth of what it would; a fixed size is kept."""
    transform: Any = detector.get_submodule("transform")
    if getattr(transform, "fixed_size", None) is not None:
        return detector
    smaller = copy.copy(transform)
    side = transform.min_size[-1]
    other = min(side, max(_LEAST_SIDE, int(side * _SMALLER)))
    smaller.min_size, smaller.max_size = (other,), transform.max_size * other // side
    return with_submodules(detector, {"transform": smaller})


def _tall(picture: Tensor) -> Tensor:
    side = min(picture.shape[-2:])
    return resized_image(picture, side, max(1, side * 2 // 3))


def _wide(picture: Tensor) -> Tensor:
    side = min(picture.shape[-2:])
    return resized_image(picture, max(1, side * 2 // 3), side)
