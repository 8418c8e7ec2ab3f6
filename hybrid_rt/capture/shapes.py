"""Determines the sizes that a detector's backbone will receive."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..common.errors import OptionError
from ..common.image_inputs import ImageInputs
from ..common.specs import UNBOUNDED
from ..common.submodules import image_transform
from .observe import Observation

Range = tuple[int, int]
Shapes = Sequence[tuple[int, int]] | Mapping[str, Range]
"""Image sizes (height, width) that the detector will receive, or the ranges "batch", "height" and "width" of the
segment's own input."""

_DIMENSIONS = ("batch", "height", "width")


def ranges_of(detector: nn.Module, example: Sequence[int], shapes: Shapes | None) -> list[Range] | None:
    """Returns (min, max) of batch, channels, height and width of the backbone's input.

    Args:
        detector: the detector.
        example: the shape of the backbone's input on the example, [N, C, H, W].
        shapes: see :data:`Shapes`. None: whatever the detector's own transform (torchvision's
            ``GeneralizedRCNNTransform``) can produce, with any batch; the example's size if it has none.

    Returns:
        The ranges; None if the input is not a batch of images, so that dimensions that vary between calls are free.

    Raises:
        OptionError: ``shapes`` are neither sizes nor ranges, or do not include the example's size.
    """
    if len(example) != 4:
        return None
    _, transform = image_transform(detector) or ("", None)
    batch, channels, height, width = ((size, size) for size in example)
    if transform is not None and hasattr(transform, "size_divisible") and hasattr(transform, "max_size"):
        means = getattr(transform, "image_mean", None)
        if means is not None and example[1] != len(means):  # features, not what the transform makes
            return None
        batch = (1, UNBOUNDED)
        height, width = _ranges_of_transform(transform)
    if isinstance(shapes, Mapping):
        ranges = {"batch": batch, "height": height, "width": width, **_checked(shapes)}
        batch, height, width = (ranges[name] for name in _DIMENSIONS)
    elif shapes is not None:
        height, width = _span(detector, _checked_sizes(shapes), channels[0])
    found = [batch, channels, height, width]
    for name, size, (low, high) in zip(("batch", "channels", "height", "width"), example, found, strict=True):
        if size < low or (high != UNBOUNDED and size > high):
            raise OptionError.make(
                "convert",
                f"shapes, {name}",
                expected=f"a range that includes the example's {size}",
                got=f"{low}..{high}",
                remedy="Widen the range, or use an example inside it.",
                code="sizes-not-taken",
            )
    return found


def check_shapes(shapes: Shapes | None) -> None:
    """Checks before long work that ``shapes`` are sizes or ranges.

    Raises:
        OptionError: They are neither.
    """
    if isinstance(shapes, Mapping):
        _checked(shapes)
    elif shapes is not None:
        _checked_sizes(shapes)


def _ranges_of_transform(transform: Any) -> tuple[Range, Range]:
    """Returns the ranges of height and width after torchvision's transform.

    It resizes the short side to min_size and the long side to at most max_size, and pads.
    """
    divisor = int(transform.size_divisible)

    def padded(size: float) -> int:
        return math.ceil(size / divisor) * divisor

    if transform.fixed_size is not None:
        width, height = (padded(size) for size in transform.fixed_size)
        return (height, height), (width, width)
    longest = padded(transform.max_size)
    return (divisor, longest), (divisor, longest)


def _checked(shapes: Mapping[str, Range]) -> dict[str, Range]:
    unknown = sorted(set(shapes) - set(_DIMENSIONS))
    if unknown:
        raise OptionError.make(
            "convert",
            "shapes",
            expected=f"ranges for {', '.join(_DIMENSIONS)}",
            got=", ".join(map(repr, unknown)),
            remedy="For inputs that are not images, pass verify_inputs= with other sizes; what differs is free.",
        )
    checked = {}
    for name, value in shapes.items():
        pair = tuple(value) if isinstance(value, Sequence) else ()
        if len(pair) != 2 or not all(isinstance(size, int) for size in pair) or not 1 <= pair[0] <= pair[1]:
            raise OptionError.make(
                "convert", f"shapes, {name}", expected="(min, max) with 1 <= min <= max", got=repr(value)
            )
        checked[name] = (pair[0], pair[1])
    return checked


def _checked_sizes(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    pairs = list(sizes) if isinstance(sizes, Sequence) else []
    if not pairs or not all(_is_size(pair) for pair in pairs):
        raise OptionError.make(
            "convert",
            "shapes",
            expected="image sizes [(height, width), ...] in pixels, at least one, or ranges by name",
            got=repr(sizes),
        )
    return [(pair[0], pair[1]) for pair in pairs]


def _is_size(pair: Any) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair)


def _span(detector: nn.Module, sizes: Sequence[tuple[int, int]], channels: int) -> tuple[Range, Range]:
    """Returns the ranges of height and width after the detector's transform, over all image sizes."""
    seen = []
    transform = _transform(detector)
    for size in sizes:
        image = torch.zeros(channels, *size)
        seen.append(tuple(transform([image])[0].tensors.shape[-2:]) if transform is not None else size)
    heights, widths = zip(*seen, strict=True)
    return (min(heights), max(heights)), (min(widths), max(widths))


def _transform(detector: nn.Module) -> Any:
    """Returns what turns images into a batch: torchvision's transform, or the detector's own; None: nothing does."""
    _, transform = image_transform(detector) or ("", None)
    return transform or getattr(detector, "transform", None)


def input_ranges(
    observation: Observation, name: str, images: ImageInputs, shapes: Shapes | None
) -> list[list[tuple[int, int]]] | None:
    """Returns the ranges of a segment's inputs if these are only images, and it is called once per forward."""
    use = observation.use(name)
    calls = use.calls if use else []
    if len(calls) != 1 or calls[0] is None:
        return None
    channels = {image.shape[-3] for image in images.of(observation.example)}
    if 1 in channels:
        channels.add(3)  # what a grey image becomes before a usual backbone
    found = []
    for shape, _ in calls[0].input_tensors:
        is_features = len(shape) == 4 and shape[1] not in channels
        if shapes is not None and is_features and _transform(observation.detector) is None:
            return None  # their sizes follow from the images'
        ranges = ranges_of(observation.detector, shape, shapes)
        if ranges is None:
            return None
        found.append(ranges)
    return found
