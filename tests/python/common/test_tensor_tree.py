"""Values that hold tensors: going through them, changing them, and the images in them."""

from __future__ import annotations

from collections import OrderedDict
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hybrid_rt.common.json_values import finite
from hybrid_rt.common.tensor_tree import fold, images_in, leaves, map_images, map_tensors, plain, tensors_in


class Found(NamedTuple):
    boxes: Tensor
    name: str


def nested() -> dict[str, Any]:
    return {"a": (torch.ones(2), [torch.ones(1), 7]), "b": {"c": None, "d": torch.ones(3)}}


def doubled(value: Any) -> Any:
    return map_tensors(value, lambda tensor: tensor * 2)


def test_leaves_come_in_order() -> None:
    assert [len(tensor) for tensor in tensors_in(nested())] == [2, 1, 3]
    assert [leaf for leaf in leaves(nested()) if not isinstance(leaf, Tensor)] == [7, None]
    assert list(leaves(3)) == [3]
    assert list(tensors_in([])) == []


def test_tensors_are_changed_and_all_else_stays() -> None:
    before, after = nested(), doubled(nested())
    assert [float(tensor[0]) for tensor in tensors_in(after)] == [2.0, 2.0, 2.0]
    assert after["a"][1][1] == 7
    assert after["b"]["c"] is None
    assert [type(after["a"]), type(after["a"][1])] == [tuple, list]
    assert [float(tensor[0]) for tensor in tensors_in(before)] == [1.0, 1.0, 1.0]


def test_containers_keep_their_class() -> None:
    found = doubled(Found(torch.ones(1), "x"))
    assert isinstance(found, Found)
    assert (float(found.boxes), found.name) == (2.0, "x")
    ordered = OrderedDict(b=torch.ones(1), a=torch.ones(1))
    after = doubled(ordered)
    assert isinstance(after, OrderedDict)
    assert list(after) == ["b", "a"]
    assert [float(ordered["a"]), float(after["a"])] == [1.0, 2.0]
    assert doubled(MappingProxyType({"a": torch.ones(1)})) == {"a": torch.tensor([2.0])}
    best = doubled(torch.ones(2, 3).max(dim=1))
    assert (best.values.tolist(), best.indices.tolist()) == ([2.0, 2.0], [0, 0])
    assert isinstance(doubled([torch.ones(2, 3).shape])[0], torch.Size)


def test_a_fold_begins_at_the_leaves() -> None:
    depth = fold(nested(), lambda _: 0, lambda _, children: 1 + max(children))
    assert depth == 3


def test_the_native_part_gets_tensors_in_plain_containers() -> None:
    tensor = torch.ones(1)
    assert plain({0: (Found(tensor, "x"), 3.5), "b": MappingProxyType({"c": tensor})}) == {
        "0": ((tensor, None), None),
        "b": {"c": tensor},
    }


def test_json_has_lists_and_finite_numbers() -> None:
    assert finite({"a": (1, float("inf"), [float("nan")]), "b": "x"}) == {"a": [1, None, [None]], "b": "x"}


IMAGE = torch.zeros(3, 4, 5)


@pytest.mark.parametrize(
    ("argument", "count"),
    [  # the cases of tests/cpp/torchscript/test_images.cpp: one rule in two languages
        (IMAGE, 1),
        (IMAGE.to(torch.uint8), 1),
        (IMAGE.half(), 1),
        (torch.zeros(2, 3, 4, 5), 1),
        (IMAGE.long(), 0),
        (IMAGE.bool(), 0),
        (torch.zeros(4, 5), 0),
        (torch.zeros(1, 2, 3, 4, 5), 0),
        (3, 0),
        ([IMAGE, IMAGE.to(torch.uint8)], 2),
        ((IMAGE, IMAGE), 2),
        ([IMAGE, torch.zeros(2)], 0),
        ([torch.zeros(2, 3, 4, 5)], 0),
        ((IMAGE, 3), 0),
        ([], 0),
        ({"image": IMAGE}, 0),
    ],
)
def test_images_are_tensors_of_pixels(argument: Any, count: int) -> None:
    assert len(images_in((argument,))) == count


def test_changed_images_stay_where_they_were() -> None:
    scale = torch.ones(2)
    images, batch, other = map_images(([IMAGE, IMAGE], IMAGE[None], scale), lambda image: image[..., :2], one_more=True)
    assert [tuple(image.shape) for image in images] == [(3, 4, 2)] * 3
    assert tuple(batch.shape) == (1, 3, 4, 2)
    assert other is scale
