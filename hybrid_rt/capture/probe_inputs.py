"""Derives further inputs for a detector from its example, to find the dimensions of segments that vary."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common.image_inputs import ImageInputs, resized_image
from ..common.submodules import image_transform, with_submodules
from ..common.tensor_tree import places_of
from .shapes import Shapes

_LEAST_SIDE = 160
"""Smallest side in pixels; below it, a feature pyramid has levels of one cell, which hide variation."""

_MOST_OTHERS = 3
"""Maximum number of runs on the user's further arguments."""


@dataclass(frozen=True)
class Sample:
    """A further run: the detector (possibly a copy that resizes images to a smaller size), and its arguments.

    ``required``: a failure is an error, because the user asked for this size.
    """

    detector: nn.Module
    arguments: tuple[Any, ...]
    required: bool = False


def samples_of(
    detector: nn.Module,
    example: tuple[Any, ...],
    images: ImageInputs,
    shapes: Shapes | None,
    further: Sequence[tuple[Any, ...]] = (),
) -> list[Sample]:
    """Returns runs that differ from the example in everything that may vary later; the cheapest run is the first.

    A list of images gets one more image, so that dimensions with one entry per image vary. One run has black images, so
    that dimensions with one entry per object vary.

    Args:
        detector: the detector. One that resizes its images (torchvision's transform) is run at smaller sizes: on
            images that are wider than high, and on images that are higher than wide.
        example: its arguments.
        images: which of the arguments are images.
        shapes: see :data:`hybrid_rt.capture.shapes.Shapes`. For sizes, the smallest and the largest are run; for
            ranges, their ends; for None, the example's size if the detector does not resize images.
        further: arguments from the user. Those with images of the example's sizes, and other inputs of other sizes, are
            run too, so that the latter vary.
    """
    return [
        *_samples_by_images(detector, example, images, shapes),
        *_of_other_inputs(detector, example, images, further),
    ]


def _samples_by_images(
    detector: nn.Module, example: tuple[Any, ...], images: ImageInputs, shapes: Shapes | None
) -> list[Sample]:
    resizes = image_transform(detector) is not None
    if isinstance(shapes, Mapping):
        # Ranges apply to the segment's input, and to the images only if nothing resizes them.
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


def _of_other_inputs(
    detector: nn.Module, example: tuple[Any, ...], images: ImageInputs, further: Sequence[tuple[Any, ...]]
) -> list[Sample]:
    """Returns runs on the user's arguments that differ from the example in the sizes of inputs that are not images."""

    def sizes(arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        of_images = [tuple(image.shape) for image in images.of(arguments)]
        others = [
            (place, tuple(leaf.shape))
            for place, leaf in places_of(arguments)
            if isinstance(leaf, Tensor) and images.layout_at(place) is None
        ]
        return of_images, others

    seen = [sizes(example)]
    samples: list[Sample] = []
    for arguments in further:
        found = sizes(arguments)
        if found[0] == seen[0][0] and found not in seen and len(samples) < _MOST_OTHERS:
            samples.append(Sample(detector, arguments, required=True))
            seen.append(found)
    return samples


def _of_another_batch(sample: Sample, images: ImageInputs, limits: tuple[int, int]) -> list[Sample]:
    """Returns the sample with another batch size, so that dimensions with one entry per image vary in each segment.

    Returns nothing for lists of images, which have one more image already.
    """
    count = images.batch(sample.arguments)
    other = count + 1 if count < limits[1] else count - 1
    if not count or other < limits[0]:
        return []
    return [Sample(sample.detector, images.batched(sample.arguments, other))]


def resizing_to_smaller(detector: nn.Module, least: int = _LEAST_SIDE) -> nn.Module:
    """Returns the detector with a transform that resizes images to a smaller size; a fixed size is kept.

    Args:
        detector: the detector.
        least: the shorter side of the resized images in pixels; a detector that makes them smaller is not changed. The
            default divides the work of a backbone at 800 pixels by 25.
    """
    found = image_transform(detector)
    transform: Any = found and found[1]
    if found is None or getattr(transform, "fixed_size", None) is not None:
        return detector
    smaller = copy.copy(transform)
    side = transform.min_size[-1]
    other = min(side, least)
    smaller.min_size, smaller.max_size = (other,), transform.max_size * other // side
    return with_submodules(detector, {found[0]: smaller})


def _tall(image: Tensor) -> Tensor:
    side = min(image.shape[-2:])
    return resized_image(image, side, max(1, side * 2 // 3))


def _wide(image: Tensor) -> Tensor:
    side = min(image.shape[-2:])
    return resized_image(image, max(1, side * 2 // 3), side)
