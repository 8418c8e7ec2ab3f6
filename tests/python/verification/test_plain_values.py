"""Results that hold more than tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_rt import CaptureError
from hybrid_rt.verification.plain_values import holds_tensors_only, without_plain_values


def differences(expected: Any, found: Any) -> list[str]:
    return without_plain_values(expected, found, "input 0", 1e-3)[2]


def test_tensors_alone_stay_as_they_are() -> None:
    expected, found = [torch.ones(1)], (torch.zeros(1),)
    assert without_plain_values(expected, found, "", 1e-3) == (expected, found, [])
    assert not holds_tensors_only([torch.ones(1), 3])
    assert not holds_tensors_only([torch.ones(1), []])


@dataclasses.dataclass
class Result:
    boxes: Tensor
    count: int
    masks: Tensor | None = None


def test_equal_values_of_other_containers() -> None:
    boxes = torch.ones(2, 4)
    found = {"boxes": boxes, "count": 2, "masks": None}
    assert differences((Result(boxes, 2), []), [found, []]) == []
    expected, _, _ = without_plain_values((Result(boxes, 2), []), [found, []], "", 1e-3)
    assert list(expected) == ["0.boxes"]


@pytest.mark.parametrize(
    ("expected", "found", "told"),
    [
        (2, 3, "input 0, output '0': 2 expected, 3 found"),
        (2, 2.0, "input 0, output '0': 2 expected, 2.0 found"),
        (True, 1, "input 0, output '0': True expected, 1 found"),
        ("a", "b", "input 0, output '0': 'a' expected, 'b' found"),
        (None, torch.ones(1), "input 0, output '0': None expected, a tensor found"),
        (torch.ones(1), 1, "input 0, output '0': a tensor expected, 1 found"),
        (1.0, 1.01, "input 0, output '0': 1.0 expected, 1.01 found"),
        ([], 0, "input 0, output '0': [] expected, 0 found"),
    ],
)
def test_what_differs_is_told(expected: Any, found: Any, told: str) -> None:
    assert differences([expected, torch.ones(1)], [found, torch.ones(1)]) == [told]


def test_numbers_with_a_fraction_may_be_rounded() -> None:
    assert differences([1.0, float("nan")], [1.0 + 1e-6, float("nan")]) == []


def test_an_object_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"the detector's result, 1: expected tensors, numbers, .* got object"):
        differences([torch.ones(1), object()], [torch.ones(1), None])
