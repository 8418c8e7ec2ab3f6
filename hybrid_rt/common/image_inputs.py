"""Describes which of a detector's inputs are images, their layouts, and the inputs that vary with them.

Sizes for comparisons, black images, thumbnails and measurements all use this description. Functions that change images
see them as [C, H, W] or [N, C, H, W]; the original layout is restored afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .tensor_tree import build, map_places, node_of, places_of

EACH = "*"
"""Stands for every entry of a list in a place."""

Place = tuple[Any, ...]
"""Path to a tensor in the tuple of a detector's arguments: positions and keys, e.g. (0, "pixels")."""

Change = Callable[[Tensor], Tensor]

AXES = "NCTDHW"
"""Letters of a layout: batch, channels, time, depth, height, width; every layout has the last two."""


@dataclass(frozen=True)
class ImageInputs:
    """The images among a detector's arguments.

    Attributes:
        layouts: layout of each image by place, e.g. ``{(0, EACH): "CHW"}`` for a list of images.
        masks: layouts of further tensors that have the height and width of the images, by place.
        counted: places of further tensors and lists that have one row or entry per image.
    """

    layouts: Mapping[Place, str] = field(default_factory=dict)
    masks: Mapping[Place, str] = field(default_factory=dict)
    counted: frozenset[Place] = frozenset()

    def layout_at(self, place: Place) -> str | None:
        """Returns the layout of the image at a place without :data:`EACH`; None: there is none."""
        return next((layout for pattern, layout in self.layouts.items() if _matches(pattern, place)), None)

    def mask_at(self, place: Place) -> str | None:
        """Returns the layout of the mask at a place without :data:`EACH`; None: there is none."""
        return next((layout for pattern, layout in self.masks.items() if _matches(pattern, place)), None)

    def of(self, arguments: tuple[Any, ...]) -> list[Tensor]:
        """Returns the images as [C, H, W], batches of them as [N, C, H, W]."""
        return [channels_first(tensor, layout) for _, tensor, layout in self._images(arguments)]

    def sizes(self, arguments: tuple[Any, ...]) -> list[tuple[int, int]]:
        """Returns (height, width) of each image, one per batch."""
        return [(image.shape[-2], image.shape[-1]) for image in self.of(arguments)]

    def map(self, arguments: tuple[Any, ...], change: Change) -> tuple[Any, ...]:
        """Returns the arguments with their images changed; ``change`` sees them as :meth:`of` returns them."""

        def changed(place: Place, tensor: Tensor) -> Tensor:
            layout = self.layout_at(place)
            return tensor if layout is None else _in_layout(change(channels_first(tensor, layout)), layout, tensor)

        return tuple(map_places(arguments, changed))

    def resized(self, arguments: tuple[Any, ...], size: tuple[int, int]) -> tuple[Any, ...]:
        """Returns the arguments with images and masks resized to (height, width); 0 keeps a side.

        Images in other arguments than the first image keep their proportion to it.
        """
        images = list(self._images(arguments))
        if not images:
            return arguments
        first_place, first, layout = images[0]
        reference = _size_of(first, layout)
        wanted = tuple(side or old for side, old in zip(size, reference, strict=True))

        def target(place: Place, sides: tuple[int, int]) -> tuple[int, int]:
            kept = tuple(side or old for side, old in zip(size, sides, strict=True))
            if place[0] == first_place[0]:
                return kept[0], kept[1]
            height, width = (
                max(1, round(side * new / old)) for side, new, old in zip(sides, wanted, reference, strict=True)
            )
            return height, width

        def changed(place: Place, tensor: Tensor) -> Tensor:
            layout = self.layout_at(place)
            mask = self.mask_at(place)
            if layout is not None:
                height, width = target(place, _size_of(tensor, layout))
                return _in_layout(resized_image(channels_first(tensor, layout), height, width), layout, tensor)
            if mask is not None:
                height, width = target(first_place, _size_of(tensor, mask))
                return _in_layout(_nearest(channels_first(tensor, mask), height, width), mask, tensor)
            return tensor

        return tuple(map_places(arguments, changed))

    def batch(self, arguments: tuple[Any, ...]) -> int:
        """Returns the number of images in the first batch; 0 if there is no batch."""
        sizes = (tensor.shape[layout.index("N")] for _, tensor, layout in self._images(arguments) if "N" in layout)
        return next(sizes, 0)

    def batched(self, arguments: tuple[Any, ...], count: int) -> tuple[Any, ...]:
        """Returns the arguments with another number of images per batch, and of rows or entries that belong to images.

        Images and rows are repeated or left out. Arguments without a batch are returned unchanged.
        """
        before = self.batch(arguments)
        if before in (0, count):
            return arguments

        def changed(place: Place, tensor: Tensor) -> Tensor:
            layout = self.layout_at(place) or ("N" if self._is_counted(place) else "")
            if "N" not in layout or tensor.shape[layout.index("N")] != before:
                return tensor
            return tensor.index_select(layout.index("N"), torch.arange(count, device=tensor.device) % before)

        return tuple(map_places(arguments, changed))

    def one_more(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Appends the first image of each list, and the first row or entry of tensors and lists with one per image."""
        lists = {place: len(value) for place, value in _lists_in(arguments) if self._is_list_of_images(place)}
        if not lists:
            return arguments
        count = next(iter(lists.values()))

        def grown(place: Place, value: Any) -> Any:
            node = node_of(value)
            if node is None:
                rows = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count
                return torch.cat([value, value[:1]]) if rows and self._is_counted(place) else value
            entries = [grown((*place, key), value[key]) for key in node.keys]
            more = place in lists or (node.kind == "list" and self._is_counted(place) and len(entries) == count)
            return build(node, [*entries, *entries[:1]] if more else entries, like=value)

        return tuple(grown((i,), argument) for i, argument in enumerate(arguments))

    def _images(self, arguments: tuple[Any, ...]) -> Iterator[tuple[Place, Tensor, str]]:
        for place, leaf in places_of(arguments):
            layout = self.layout_at(place) if isinstance(leaf, Tensor) else None
            if layout is not None and len(layout) == leaf.dim():
                yield place, leaf, layout

    def _is_counted(self, place: Place) -> bool:
        return any(_matches(pattern, place) for pattern in self.counted)

    def _is_list_of_images(self, place: Place) -> bool:
        return any(
            len(pattern) > len(place) and pattern[len(place)] == EACH and _matches(pattern[: len(place)], place)
            for pattern in self.layouts
        )


def _matches(pattern: Place, place: Place) -> bool:
    return len(pattern) == len(place) and all(a in (EACH, b) for a, b in zip(pattern, place, strict=True))


def _lists_in(value: Any, place: Place = ()) -> Iterator[tuple[Place, list[Any]]]:
    if isinstance(value, list):
        yield place, value
    node = node_of(value)
    for key in node.keys if node else ():
        yield from _lists_in(value[key], (*place, key))


def general_place(arguments: Any, place: Place) -> Place:
    """Returns a place with :data:`EACH` for the positions in lists."""
    found: list[Any] = []
    value = arguments
    for key in place:
        found.append(EACH if isinstance(value, list) else key)
        value = value[key]
    return tuple(found)


def _size_of(tensor: Tensor, layout: str) -> tuple[int, int]:
    return tensor.shape[layout.index("H")], tensor.shape[layout.index("W")]


def _order(layout: str) -> list[int]:
    """Returns the order of the axes with the batch first, and height and width last."""
    others = [axis for axis in layout if axis not in "NHW"]
    return [layout.index(axis) for axis in [*("N" if "N" in layout else ""), *others, "H", "W"]]


def channels_first(tensor: Tensor, layout: str) -> Tensor:
    """Returns an image as [C, H, W] or [N, C, H, W]; time and depth become channels."""
    ordered = tensor.permute(_order(layout))
    batch = ordered.shape[: 1 if "N" in layout else 0]
    return ordered.reshape(*batch, -1, *ordered.shape[-2:]) if ordered.numel() else _empty(ordered, layout)


def _empty(ordered: Tensor, layout: str) -> Tensor:
    """Does the same as the reshape above, which can't infer a size of a tensor without elements."""
    first = 1 if "N" in layout else 0
    channels = 1
    for size in ordered.shape[first:-2]:
        channels *= size
    return ordered.reshape(*ordered.shape[:first], channels, *ordered.shape[-2:])


def _in_layout(image: Tensor, layout: str, like: Tensor) -> Tensor:
    """Undoes :func:`channels_first`; ``like`` has the sizes of the axes that became channels."""
    order = _order(layout)
    sizes = [*image.shape[: 1 if "N" in layout else 0], *_folded(layout, like), *image.shape[-2:]]
    back = [order.index(axis) for axis in range(len(order))]
    return image.reshape(sizes).permute(back).contiguous()


def _folded(layout: str, like: Tensor) -> list[int]:
    return [like.shape[layout.index(axis)] for axis in layout if axis not in "NHW"]


def resized_image(image: Tensor, height: int, width: int) -> Tensor:
    """Returns an image [C, H, W] or a batch at another size."""
    batched = image if image.dim() == 4 else image[None]
    pixels = batched if batched.is_floating_point() else batched.float()  # a GPU resizes floats alone
    other = nn.functional.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    return (other if image.dim() == 4 else other[0]).to(image.dtype)


def _nearest(mask: Tensor, height: int, width: int) -> Tensor:
    """Returns a mask at another size without interpolating, so that it has no new values."""
    rows, columns = (
        torch.arange(new, device=mask.device) * old // new
        for new, old in zip((height, width), mask.shape[-2:], strict=True)
    )
    return mask.index_select(-2, rows).index_select(-1, columns)
