"""Tests of iterating over values that hold tensors, and of changing them."""

from __future__ import annotations

import functools
from collections import OrderedDict
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybrid_rt.common.json_values import finite
from hybrid_rt.common.tensor_tree import fold, leaves, map_places, map_tensors, places_of, plain, tensors_in


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


def test_the_native_part_gets_tensors_and_plain_values_in_plain_containers() -> None:
    tensor = torch.ones(1)
    assert plain({0: (Found(tensor, "x"), 3.5, object()), "b": MappingProxyType({"c": tensor})}) == {
        "0": ((tensor, "x"), 3.5, None),
        "b": {"c": tensor},
    }


def test_json_has_lists_and_finite_numbers() -> None:
    assert finite({"a": (1, float("inf"), [float("nan")]), "b": "x"}) == {"a": [1, None, [None]], "b": "x"}


def test_places_lead_to_their_leaves() -> None:
    assert [place for place, _ in places_of(nested())] == [("a", 0), ("a", 1, 0), ("a", 1, 1), ("b", "c"), ("b", "d")]
    value = nested()
    assert all(leaf is functools.reduce(lambda held, key: held[key], place, value) for place, leaf in places_of(value))


def test_one_tensor_is_changed_by_its_place() -> None:
    after = map_places(nested(), lambda place, tensor: tensor * (7 if place == ("a", 1, 0) else 1))
    assert [float(tensor[0]) for tensor in tensors_in(after)] == [1.0, 7.0, 1.0]
