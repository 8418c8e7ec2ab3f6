"""Further inputs for a detector, made from its example: they show which dimensions of a segment vary."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common.submodules import with_submodules
from ..common.tensor_tree import images_in, map_images, map_tensors
from .second_size import tiled
from .shapes import Shapes

_LEAST_SIDE = 160
"""Pixels; below it a feature pyramid has levels of one cell, which don't show what varies."""

_SMALLER = 0.2
"""Of the side to which a detector resizes its pictures: a twenty-fifth of the backbone's work."""

Resize = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sample:
    """One more run: the detector, perhaps one that resizes its pictures to smaller ones, and its arguments.

    ``required``: a failure counts, since the user asked for this size.
    """

    detector: nn.Module
    arguments: tuple[Any, ...]
    required: bool = False


def samples_of(detector: nn.Module, example: tuple[Any, ...], shapes: Shapes | None) -> list[Sample]:
    """Runs that differ from the example in what may differ later; the first is the one that costs least.

    Where pictures are a list, one is added, so that what is counted by picture varies too. One run is on black
    pictures: what is counted by object varies between it and the others.

    Args:
        detector: the detector. One that resizes its pictures (torchvision's transform) is run at smaller sizes: on
            pictures that are wider than high, and on pictures that are higher than wide.
        example: its arguments.
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
        given = [Sample(detector, map_images(example, to_size(size), one_more=True), required=True) for size in chosen]
        if isinstance(shapes, Mapping) and "batch" in shapes:
            given += _of_another_batch(given[0], shapes["batch"])
        return [*given, Sample(detector, map_images(given[0].arguments, torch.zeros_like))]
    if not resizes:
        return [Sample(detector, example, required=True), Sample(detector, map_images(example, torch.zeros_like))]
    smaller = resizing_to_smaller(detector)
    return [
        Sample(smaller, map_images(example, _wide)),
        Sample(smaller, map_images(example, _tall, one_more=True)),
        Sample(smaller, map_images(example, torch.zeros_like)),
    ]


def _of_another_batch(sample: Sample, limits: tuple[int, int]) -> list[Sample]:
    """The sample with another number of images in a batch, so that what is counted by image varies in each segment.

    All tensors with as many rows as the batch has get as many as it then has. Lists of images have one more already.
    """
    batches = [image.shape[0] for image in images_in(sample.arguments) if image.dim() == 4]
    if not batches:
        return []
    count = batches[0]
    other = count + 1 if count < limits[1] else count - 1
    if other < limits[0]:
        return []

    def repeated(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != count:
            return tensor
        return tiled(tensor, (other, *tensor.shape[1:]))

    return [Sample(sample.detector, tuple(map_tensors(sample.arguments, repeated)))]


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


def to_size(size: tuple[int, int]) -> Resize:
    """Returns a function that resizes an image to (height, width); 0 keeps a side."""

    def resized(picture: Tensor) -> Tensor:
        height, width = (wanted or side for wanted, side in zip(size, picture.shape[-2:], strict=True))
        return _resized(picture, height, width)

    return resized


def at_size(example: tuple[Any, ...], size: tuple[int, int] | None) -> tuple[Any, ...]:
    """The example with its pictures resized to (height, width); None: with copies of them."""
    return map_images(example, to_size(size) if size is not None else torch.clone)


def picture_sizes(example: tuple[Any, ...]) -> list[tuple[int, int]]:
    """(height, width) of each picture, of a batch one."""
    return [(picture.shape[-2], picture.shape[-1]) for picture in images_in(example)]


def _tall(picture: Tensor) -> Tensor:
    side = min(picture.shape[-2:])
    return _resized(picture, side, max(1, side * 2 // 3))


def _wide(picture: Tensor) -> Tensor:
    side = min(picture.shape[-2:])
    return _resized(picture, max(1, side * 2 // 3), side)


def _resized(picture: Tensor, height: int, width: int) -> Tensor:
    batched = picture if picture.dim() == 4 else picture[None]
    pixels = batched if batched.is_floating_point() else batched.float()  # a GPU resizes floats alone
    other = nn.functional.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    return (other if picture.dim() == 4 else other[0]).to(picture.dtype)
