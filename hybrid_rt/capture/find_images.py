"""Determines which of a detector's inputs are images, by itself or from the user's option."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import OptionError
from ..common.image_inputs import AXES, EACH, ImageInputs, Place, general_place
from ..common.tensor_tree import map_tensors, node_of, places_of
from .image_flow import convolved_inputs
from .state import StateWatch
from .working_copy import without_wrappers

Images = Sequence[Any] | Mapping[Any, str]
"""Inputs that are images: positions, names of forward's parameters, or paths into nested arguments, e.g.
``[0]``, ``["image", (1, "depth")]``; or these with their layouts: ``{"image": "NHWC"}``."""

_LAYOUTS = {2: ("HW",), 3: ("CHW", "HWC", "NHW"), 4: ("NCHW", "NHWC"), 5: ("NCTHW", "NTCHW", "NTHWC")}
"""Possible layouts by number of dimensions, the most usual first."""

_CHANNELS = (1, 3, 4)
"""Numbers of channels of images from cameras and files."""

_LEAST_SIDE = 8
"""Smallest side of a tensor, in pixels, that may be an image judged by its shape alone."""

_FURTHER = 32
"""Pixels by which images are enlarged to find inputs that vary with them: one stride of a usual backbone."""


def find_images(detector: nn.Module, example: tuple[Any, ...], option: Images | None = None) -> ImageInputs:
    """Returns which of a detector's inputs are images.

    By default, images are the inputs whose pixels reach a convolution. In a detector without convolutions, they are
    tensors with one, three or four channels. Inputs that have the images' height and width, or one row per image, are
    found by trial runs.

    Args:
        detector: the detector. It is run, unless its only argument is one list or batch of usual images.
        example: its positional arguments.
        option: the user's option, see :data:`Images`; None: determine the images. Empty: no input is an image.

    Raises:
        OptionError: The option does not fit the example.
    """
    usual = _only_images(example) if option is None else None
    if usual is not None:
        return ImageInputs(usual)
    before = StateWatch(detector)
    try:
        layouts = _found_layouts(detector, example) if option is None else given_layouts(detector, example, option)
        if option is None:
            layouts = _with_batches(detector, example, layouts)
        return _with_companions(detector, example, ImageInputs(layouts))
    finally:
        before.restore()  # a run that was cut short may have left the detector in any state


def check_images(detector: nn.Module, example: tuple[Any, ...], option: Images | None) -> None:
    """Checks the option ``images`` before long work.

    Raises:
        OptionError: It does not fit the example.
    """
    if option is not None:
        given_layouts(detector, example, option, run=False)


def given_layouts(
    detector: nn.Module, example: tuple[Any, ...], option: Images, *, run: bool = True
) -> dict[Place, str]:
    """Returns the places and layouts that the user named; ``run``: find missing layouts by running the detector."""
    if isinstance(option, (str, bytes)) or not isinstance(option, (Sequence, Mapping)):
        raise _refused("images", "a list of inputs, or a dict of inputs and their layouts", repr(option))
    tensors = {place: leaf for place, leaf in places_of(example) if isinstance(leaf, Tensor)}
    layouts: dict[Place, str] = {}
    unknown: dict[Place, Tensor] = {}
    for which in option:
        way = _way(detector, example, which)
        inside = {place: leaf for place, leaf in tensors.items() if place[: len(way)] == way}
        if not inside:
            raise _refused(f"images, {which!r}", f"a tensor there; the tensors are {_written(tensors)}", "none")
        for place, leaf in inside.items():
            general = (*way, *general_place(example, place)[len(way) :])
            if isinstance(option, Mapping):
                layouts[general] = _checked(option[which], which, leaf)
            elif leaf.dim() in _LAYOUTS:
                unknown.setdefault(general, leaf)
            else:
                ranks = f"{min(_LAYOUTS)} to {max(_LAYOUTS)} dimensions"
                raise _refused(f"images, {which!r}", f"a tensor of {ranks}", f"shape {tuple(leaf.shape)}")
    if unknown and run:
        found = _convolved(detector, example, unknown)
        layouts |= {place: _layout(tuple(leaf.shape), found.get(place)) for place, leaf in unknown.items()}
    return layouts


def _refused(subject: str, expected: str, got: str) -> OptionError:
    return OptionError.make(
        "convert",
        subject,
        expected=expected,
        got=got,
        remedy="For example images=[0], images=['pixels'] or images={'pixels': 'NHWC'}; docs/shapes.md has more.",
        code="images-misnamed",
    )


def _written(tensors: Iterable[Place]) -> str:
    return ", ".join(".".join(map(str, place)) for place in tensors) or "none"


def _way(detector: nn.Module, example: tuple[Any, ...], which: Any) -> Place:
    """Returns the place that a position, a parameter's name, or a tuple that begins with one of them refers to."""
    first, *rest = which if isinstance(which, tuple) and which else (which,)
    if isinstance(first, str):
        names = list(inspect.signature(without_wrappers(detector).forward).parameters)
        if first not in names[: len(example)]:
            known = ", ".join(names[: len(example)])
            raise _refused(f"images, {which!r}", f"one of the arguments {known}", repr(first))
        first = names.index(first)
    if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first < len(example):
        raise _refused(f"images, {which!r}", f"a position from 0 to {len(example) - 1}, or a name", repr(first))
    value = example[first]
    for key in rest:
        node = node_of(value)
        if node is None or key not in node.keys:
            keys = ", ".join(map(repr, node.keys)) if node else "nothing, it is no container"
            raise _refused(f"images, {which!r}", f"one of {keys}", repr(key))
        value = value[key]
    return (first, *rest)


def _checked(layout: Any, which: Any, tensor: Tensor) -> str:
    fits = isinstance(layout, str) and len(set(layout)) == len(layout) == tensor.dim()
    if not fits or not set("HW") <= set(layout) <= set(AXES):
        raise _refused(
            f"images, {which!r}",
            f"a layout of {tensor.dim()} letters out of {', '.join(AXES)}, H and W among them, for a tensor of shape "
            f"{tuple(tensor.shape)}",
            repr(layout),
        )
    return str(layout)


def _only_images(example: tuple[Any, ...]) -> dict[Place, str] | None:
    """Returns the layouts if the only argument is a list or batch of usual images; None: the detector has to be run."""
    tensors = {general_place(example, place): leaf for place, leaf in places_of(example) if isinstance(leaf, Tensor)}
    if len(tensors) != 1:
        return None
    ((place, tensor),) = tensors.items()
    is_listed = len(place) == 2 and place[-1] == EACH
    if tensor.dim() != (3 if is_listed else 4) or not _has_pixels(tensor):
        return None
    *_, channels, height, width = tensor.shape
    usual = channels in _CHANNELS and height >= _LEAST_SIDE and width >= _LEAST_SIDE
    return {place: _LAYOUTS[tensor.dim()][0]} if usual else None


def _has_pixels(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.dtype == torch.uint8


def _found_layouts(detector: nn.Module, example: tuple[Any, ...]) -> dict[Place, str]:
    candidates: dict[Place, Tensor] = {}
    for place, leaf in places_of(example):
        if isinstance(leaf, Tensor) and leaf.dim() in _LAYOUTS and _has_pixels(leaf):
            candidates.setdefault(general_place(example, place), leaf)
    if not candidates:
        return {}
    found = _convolved(detector, example, candidates)
    if found:
        return {place: _layout(tuple(candidates[place].shape), shape) for place, shape in found.items()}
    layouts = {place: _by_channels(place, leaf) for place, leaf in candidates.items()}
    return {place: layout for place, layout in layouts.items() if layout}


def _convolved(
    detector: nn.Module, example: tuple[Any, ...], candidates: Iterable[Place]
) -> dict[Place, Sequence[int]]:
    wanted = set(candidates)
    tensors = [place for place, leaf in places_of(example) if isinstance(leaf, Tensor)]
    exact = [place for place in tensors if general_place(example, place) in wanted]
    found = convolved_inputs(detector, example, exact)
    return {general_place(example, place): shape for place, shape in reversed(found.items())}


def _layout(shape: Sequence[int], convolved: Sequence[int] | None) -> str:
    """Returns the layout of a tensor that reached a convolution as [N, C, H, W] or [N, C, T, H, W] of other sizes."""
    layouts = _LAYOUTS[len(shape)]
    if convolved is None:
        return _usual(shape)

    def score(layout: str) -> int:
        sizes = dict(zip(layout, shape, strict=True))
        batch, channels, height, width = convolved[0], convolved[1], convolved[-2], convolved[-1]
        return (
            4 * (sizes.get("C", 1) == channels)
            + (sizes.get("N", 1) == batch)
            + (sizes["H"] == height and sizes["W"] == width)
        )

    best = max(layouts, key=score)  # the first of equals
    return best if score(best) >= 4 else _usual(shape)


def _usual(shape: Sequence[int]) -> str:
    """Guesses the layout from the shape alone."""
    first, *others = _LAYOUTS[len(shape)]
    last = [layout for layout in others if layout.endswith("C")]
    is_last = len(shape) > 2 and shape[-1] in _CHANNELS and shape[first.index("C")] not in _CHANNELS
    return last[0] if is_last and last else first


def _by_channels(place: Place, tensor: Tensor) -> str:
    """Guesses the layout of a tensor that reaches no convolution; empty if it is probably not an image."""
    if tensor.dim() != (3 if place[-1] == EACH else 4) and tensor.dtype != torch.uint8:
        return ""
    layout = _usual(tuple(tensor.shape))
    sizes = dict(zip(layout, tensor.shape, strict=True))
    is_usual = sizes["C"] in _CHANNELS and min(sizes["H"], sizes["W"]) >= _LEAST_SIDE
    return layout if is_usual else ""


def _with_batches(detector: nn.Module, example: tuple[Any, ...], layouts: dict[Place, str]) -> dict[Place, str]:
    """Returns the layouts; [1, H, W] is a batch of grey images if a batch of two runs, else one image [C, H, W]."""
    single = [
        place
        for place, leaf in places_of(example)
        if layouts.get(place) == "CHW" and isinstance(leaf, Tensor) and leaf.shape[0] == 1
    ]
    if not single:
        return layouts
    batches = ImageInputs({**layouts, **dict.fromkeys(single, "NHW")})
    found = _that_runs(detector, [batches], lambda rule: rule.batched(example, 2), otherwise=ImageInputs(layouts))
    return dict(found.layouts)


def _with_companions(detector: nn.Module, example: tuple[Any, ...], images: ImageInputs) -> ImageInputs:
    """Adds inputs that vary with the images; they are found by trial runs, because equal sizes may be coincidence."""
    sizes = images.sizes(example)
    if not sizes:
        return images
    others = [
        (place, leaf)
        for place, leaf in places_of(example)
        if isinstance(leaf, Tensor) and images.layout_at(place) is None
    ]
    masks = {
        general_place(example, place): layout
        for place, leaf in others
        if leaf.dim() in (2, 3, 4) and tuple(leaf.shape[-2:]) == sizes[0]
        for layout in [("HW", "NHW", "NCHW")[leaf.dim() - 2]]
    }
    if masks:
        with_masks = replace(images, masks=masks)
        larger = (sizes[0][0] + _FURTHER, sizes[0][1] + _FURTHER)
        images = _that_runs(detector, [with_masks, images], lambda rule: rule.resized(example, larger))
    counted = _counted(example, images)
    if not counted:
        return images
    batch = images.batch(example)
    return _that_runs(
        detector,
        [replace(images, counted=frozenset(counted)), images],
        lambda rule: rule.batched(example, batch + 1) if batch else rule.one_more(example),
    )


def _counted(example: tuple[Any, ...], images: ImageInputs) -> set[Place]:
    """Returns tensors with one row per image and lists with one entry per image, unless that may be coincidence."""
    count = images.batch(example) or len(images.sizes(example))
    is_listed = not images.batch(example)
    found = {
        general_place(example, place)
        for place, leaf in places_of(example)
        if isinstance(leaf, Tensor) and images.layout_at(place) is None and leaf.dim() > 0 and leaf.shape[0] == count
    }
    if is_listed:
        found = {place for place in found if EACH not in place}
        lists = {(i,) for i, value in enumerate(example) if isinstance(value, list) and len(value) == count}
        found |= lists - {place[:1] for place in images.layouts}
    return found


def _that_runs(
    detector: nn.Module,
    rules: Sequence[ImageInputs],
    change: Callable[[ImageInputs], tuple[Any, ...]],
    otherwise: ImageInputs | None = None,
) -> ImageInputs:
    """Returns the first rule whose changed example the detector accepts; if none, ``otherwise`` or the first rule."""
    for rule in rules:
        try:
            with torch.no_grad():
                detector(*map_tensors(change(rule), Tensor.clone))
        except Exception:  # whatever the detector's code raises of sizes that do not fit
            continue
        return rule
    return otherwise or rules[0]
