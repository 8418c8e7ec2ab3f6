"""Tests of nested values and their flat form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_rt import CaptureError
from hybrid_rt.common.structure import Flattened, structure_of


def numbers(count: int) -> list[Tensor]:
    return [torch.tensor(i) for i in range(count)]


def nested() -> dict[str, tuple[Tensor, list[Tensor]]]:
    a, b, c, d = numbers(4)
    return {"x": (a, [b]), "it's": (c, [d])}


@pytest.mark.parametrize(
    ("value", "annotation", "names"),
    [
        (torch.tensor(0), "Tensor", ["in"]),
        (numbers(2), "List[Tensor]", ["in.0", "in.1"]),
        (tuple(numbers(2)), "Tuple[Tensor, Tensor]", ["in.0", "in.1"]),
        ({"p": torch.tensor(0)}, "Dict[str, Tensor]", ["in.p"]),
        (nested(), "Dict[str, Tuple[Tensor, List[Tensor]]]", ["in.x.0", "in.x.1.0", "in.it's.0", "in.it's.1.0"]),
    ],
)
def test_value_survives_flattening(value: Any, annotation: str, names: list[str]) -> None:
    structure = structure_of(value, "value")
    flat = list(structure.flatten(value))
    assert structure.annotation == annotation
    assert list(structure.names("in")) == names
    assert structure.count == len(flat) == len(names)
    again = structure.unflatten(iter(flat))
    assert again == value
    assert type(again) is type(value)


def test_names_without_a_prefix_are_the_keys() -> None:
    assert list(structure_of(nested(), "value").names("")) == ["x.0", "x.1.0", "it's.0", "it's.1.0"]


def test_generated_expressions_take_apart_and_put_together() -> None:
    value = nested()
    structure = structure_of(value, "value")
    taken = [eval(expression, {"value": value}) for expression in structure.take_apart("value")]
    assert taken == list(structure.flatten(value))
    built = eval(structure.put_together(iter(f"flat[{i}]" for i in range(structure.count))), {"flat": taken})
    assert built == value


def test_a_tuple_of_one_stays_a_tuple() -> None:
    structure = structure_of((torch.tensor(7),), "value")
    assert eval(structure.put_together(iter(["flat"])), {"flat": 7}) == (7,)
    assert structure.annotation == "Tuple[Tensor]"


def test_lengths_name_what_the_types_leave_open() -> None:
    assert list(structure_of(nested(), "value").lengths("v")) == [("v", 2), ("v['x'][1]", 1), ('v["it\'s"][1]', 1)]
    assert list(structure_of(tuple(numbers(3)), "value").lengths("v")) == []


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (1.5, "got float 1.5"),
        (None, "got NoneType None"),
        ("image", "got str 'image'"),
        ([], "got list []"),
        ((), "got tuple ()"),
        ({}, "got dict {}"),
        ({0: torch.tensor(0), "a": torch.tensor(0)}, "got dict {0: tensor(0), 'a': tensor(0)}"),
        ({(0, 1): torch.tensor(0)}, "got dict {(0, 1): tensor(0)}"),
        ({"a": torch.tensor(0), "b": None}, "segment 'x', output['b']: expected"),
        ([torch.tensor(0), 3], "segment 'x', output[1]: expected"),
    ],
)
def test_values_that_are_not_tensors_are_refused_with_their_place(value: Any, got: str) -> None:
    with pytest.raises(CaptureError) as caught:
        structure_of(value, "segment 'x', output")
    text = str(caught.value)
    assert text.startswith("hybrid_rt[capture]: segment 'x', output")
    assert "expected tensors in lists, tuples and dicts with string or integer keys" in text
    assert got in text


@pytest.mark.parametrize(
    "value", [[torch.tensor(0), (torch.tensor(1),)], {"a": torch.tensor(0), "b": [torch.tensor(1)]}]
)
def test_mixed_types_that_torchscript_lacks_are_refused(value: Any) -> None:
    with pytest.raises(
        CaptureError, match=r"with entries of one type, as TorchScript requires, got .*Tensor.*Return a tuple"
    ):
        structure_of(value, "output")


def test_the_keys_of_a_dict_may_be_integers() -> None:
    structure = structure_of({1: torch.tensor(0), 3: torch.tensor(1)}, "output")
    assert structure.annotation == "Dict[int, Tensor]"
    assert list(structure.names("found")) == ["found.1", "found.3"]
    assert structure.put_together(iter("ab")) == "{1: a, 3: b}"
    assert list(structure.take_apart("found")) == ["found[1]", "found[3]"]


def test_a_mixed_tuple_is_allowed() -> None:
    assert structure_of((torch.tensor(0), [torch.tensor(1)]), "output").annotation == "Tuple[Tensor, List[Tensor]]"


class _Difference(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor], scale: Tensor) -> dict[str, Tensor]:
        return {"difference": (pair[0] - pair[1]) * scale}


def test_flattened_module_passes_tensors_by_parameter_name() -> None:
    one, two, three, _ = numbers(4)
    inputs = {"scale": structure_of(three, "scale"), "pair": structure_of((one, two), "pair")}
    (result,) = Flattened(_Difference(), inputs)(torch.tensor(10), torch.tensor(5), torch.tensor(2))
    assert result == 30


class _Optional(nn.Module):
    def forward(self, first: Tensor, second: Tensor | None = None, *, third: Tensor | None = None) -> Tensor:
        assert third is not None
        return first - (torch.zeros(()) if second is None else second) * third


def test_flattened_module_passes_by_position_what_comes_first() -> None:
    """A hook on the module sees only positional arguments."""
    one, two, three, _ = numbers(4)
    module = _Optional()
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs)))
    every = {"first": structure_of(one, "first"), "second": structure_of(two, "second")}
    third = {"third": structure_of(three, "third")}
    (result,) = Flattened(module, {**every, **third})(torch.tensor(10), torch.tensor(3), torch.tensor(2))
    assert result == 4
    (result,) = Flattened(module, {"first": every["first"], **third})(torch.tensor(10), torch.tensor(2))
    assert result == 10
    assert seen == [2, 1]
