"""Tests of images among arguments: other layouts, sizes and counts, with the arguments that depend on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_rt.common.image_inputs import EACH, ImageInputs, general_place


def numbered(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    size = 1
    for length in shape:
        size *= length
    return (torch.arange(size) % 251).reshape(shape).to(dtype)


LAYOUTS = [
    ("CHW", (3, 4, 5), (3, 4, 5)),
    ("HWC", (4, 5, 3), (3, 4, 5)),
    ("HW", (4, 5), (1, 4, 5)),
    ("NHW", (2, 4, 5), (2, 1, 4, 5)),
    ("NCHW", (2, 3, 4, 5), (2, 3, 4, 5)),
    ("NHWC", (2, 4, 5, 3), (2, 3, 4, 5)),
    ("NTHWC", (2, 6, 4, 5, 3), (2, 18, 4, 5)),
    ("NCTHW", (2, 3, 6, 4, 5), (2, 18, 4, 5)),
    ("WNH", (5, 2, 4), (2, 1, 4, 5)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize(("layout", "shape", "seen"), LAYOUTS, ids=[layout for layout, _, _ in LAYOUTS])
def test_each_layout_is_seen_with_channels_first_and_comes_back(
    layout: str, shape: tuple[int, ...], seen: tuple[int, ...], dtype: torch.dtype
) -> None:
    images = ImageInputs({(0,): layout})
    image = numbered(*shape, dtype=dtype)
    (found,) = images.of((image,))
    assert tuple(found.shape) == seen
    height, width = shape[layout.index("H")], shape[layout.index("W")]
    assert images.sizes((image,)) == [(height, width)]
    (same,) = images.map((image,), torch.clone)
    assert torch.equal(same, image)
    (resized,) = images.resized((image,), (8, 10))
    assert resized.dtype == dtype
    assert [resized.shape[layout.index(axis)] for axis in "HW"] == [8, 10]
    assert [resized.shape[i] for i, axis in enumerate(layout) if axis not in "HW"] == [
        shape[i] for i, axis in enumerate(layout) if axis not in "HW"
    ]
    (back,) = images.resized((images.map((image,), torch.zeros_like)[0],), (0, 7))
    assert back.shape[layout.index("H")] == height
    assert not back.any()


def test_rows_and_columns_of_a_layout_are_not_mixed_up() -> None:
    image = torch.zeros(1, 4, 6, 3)
    image[0, 0, :, 1] = 1.0  # the first row of the second channel
    (resized,) = ImageInputs({(0,): "NHWC"}).resized((image,), (8, 6))
    assert resized[0, 0, :, 1].min() == 1.0
    assert resized[0, 0, :, 0].max() == 0.0
    assert resized[0, 7, :, 1].max() == 0.0


def test_only_images_and_their_masks_are_resized() -> None:
    texts, image, mask = torch.rand(1, 9, 16), torch.rand(1, 3, 8, 8), torch.rand(1, 8, 8) > 0.5
    images = ImageInputs({(1,): "NCHW"}, masks={(2,): "NHW"})
    same, resized, grown = images.resized((texts, image, mask), (16, 12))
    assert same is texts
    assert tuple(resized.shape) == (1, 3, 16, 12)
    assert tuple(grown.shape) == (1, 16, 12)
    assert grown.dtype == torch.bool
    assert torch.equal(grown[:, ::2, 0], mask[:, :, 0])
    assert images.map((texts, image, mask), torch.zeros_like)[2] is mask


def test_images_of_further_arguments_keep_their_proportion() -> None:
    images = ImageInputs({(0,): "NCHW", (1,): "NCHW", (2, EACH): "CHW"})
    frame, template, listed = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 16, 16), [torch.rand(3, 32, 32)]
    found = images.resized((frame, template, listed), (64, 48))
    assert [tuple(image.shape[-2:]) for image in (found[0], found[1], found[2][0])] == [(64, 48), (32, 24), (64, 48)]


def test_all_images_of_one_list_get_the_size() -> None:
    images = ImageInputs({(0, EACH): "CHW"})
    (resized,) = images.resized(([torch.rand(3, 8, 9), torch.rand(3, 5, 4)],), (6, 7))
    assert [tuple(image.shape) for image in resized] == [(3, 6, 7)] * 2


def test_nested_images_are_found_and_all_else_stays() -> None:
    images = ImageInputs({(0, "sample", EACH, 0): "CHW"})
    boxes = torch.rand(2, 4)
    arguments = ({"sample": [(torch.rand(3, 4, 5), boxes)], "name": "x"},)
    assert images.sizes(arguments) == [(4, 5)]
    (changed,) = images.map(arguments, torch.zeros_like)
    assert not changed["sample"][0][0].any()
    assert changed["sample"][0][1] is boxes
    assert changed["name"] == "x"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_varies_with_what_is_counted_by_image(count: int) -> None:
    images = ImageInputs({(0,): "NHWC"}, counted=frozenset({(1,), (2, EACH)}))
    batch, texts, times, other = numbered(2, 4, 5, 3), numbered(2, 3), [torch.tensor([1.0, 2.0])], torch.ones(2)
    found = images.batched((batch, texts, times, other), count)
    assert [len(found[0]), len(found[1]), len(found[2][0])] == [count] * 3
    assert torch.equal(found[0][-1], batch[(count - 1) % 2])
    assert torch.equal(found[1][-1], texts[(count - 1) % 2])
    assert found[3] is other


def test_a_list_gets_one_more_with_what_is_counted_by_image() -> None:
    images = ImageInputs({(0, EACH): "CHW"}, counted=frozenset({(1,), (2,)}))
    listed, scales, texts, other = [torch.rand(3, 4, 5)], [0.5], torch.rand(1, 7), torch.rand(1, 7)
    found = images.one_more((listed, scales, texts, other))
    assert [len(found[0]), len(found[1]), len(found[2])] == [2, 2, 2]
    assert torch.equal(found[0][1], listed[0])
    assert found[3] is other
    assert len(listed) == 1


def test_dicts_per_image_are_one_list_of_images() -> None:
    images = ImageInputs({(0, EACH, "image"): "CHW"})
    (found,) = images.one_more(([{"image": torch.rand(3, 4, 5), "height": 4}],))
    assert [entry["height"] for entry in found] == [4, 4]


@pytest.mark.parametrize("arguments", [(), (torch.rand(3),), ([],), (3, None)])
def test_without_images_arguments_stay(arguments: tuple[Any, ...]) -> None:
    images = ImageInputs({(0, EACH): "CHW"})
    assert images.of(arguments) == []
    assert images.resized(arguments, (4, 4)) == arguments
    assert images.batched(arguments, 2) == arguments


def test_a_tensor_of_another_rank_than_its_layout_is_not_an_image() -> None:
    assert ImageInputs({(0,): "NCHW"}).of((torch.rand(3, 4, 5),)) == []


def test_an_image_without_pixels_stays_one() -> None:
    (found,) = ImageInputs({(0,): "NHWC"}).of((torch.rand(0, 4, 5, 3),))
    assert tuple(found.shape) == (0, 3, 4, 5)


def test_the_positions_in_lists_are_general_those_in_tuples_are_not() -> None:
    value = ([torch.ones(1), (torch.ones(1), torch.ones(1))],)
    assert general_place(value, (0, 1, 1)) == (0, EACH, 1)
