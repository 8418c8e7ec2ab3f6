"""Tests of integer operators in OpenVINO: each value equals torch's, or no segment contains the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import hybrid_rt
from helpers.small_detectors import Alone
from hybrid_rt.capture.program import capture_alone

pytestmark = pytest.mark.slow

Operator = Callable[[Tensor, Tensor], Tensor]

OPERATORS: dict[str, Operator] = {
    "neg": lambda a, b: -a,
    "abs": lambda a, b: a.abs(),
    "not": lambda a, b: ~a,
    "sign": lambda a, b: a.sign(),
    "relu": lambda a, b: functional.relu(a),
    "clamp": lambda a, b: a.clamp(1, 5),
    "cumsum": lambda a, b: a.cumsum(1),
    "sum": lambda a, b: a.sum(1),
    "amax": lambda a, b: a.amax(1),
    "min": lambda a, b: a.min(1).values,
    "argmax": lambda a, b: a.argmax(1),
    "sort": lambda a, b: a.sort(dim=1).values,
    "topk": lambda a, b: a.topk(2, 1).values,
    "flip": lambda a, b: a.flip(1),
    "roll": lambda a, b: a.roll(2, 1),
    "to float": lambda a, b: a.float(),
    "to int32": lambda a, b: a.int(),
    "to bool": lambda a, b: a.bool(),
    "any": lambda a, b: a.bool().any(1),
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "reverse subtract": lambda a, b: 1 - a,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "floor": lambda a, b: a // b,
    "truncate": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "remainder": lambda a, b: a % b,
    "fmod": lambda a, b: torch.fmod(a, b),
    "square": lambda a, b: a**2,
    "half": lambda a, b: a * 0.5,
    "maximum": lambda a, b: torch.maximum(a, b),
    "equal": lambda a, b: a == b,
    "less": lambda a, b: a < b,
    "and": lambda a, b: a & b,
    "exclusive or": lambda a, b: a ^ b,
    "logical and": lambda a, b: torch.logical_and(a, b),
    "where": lambda a, b: torch.where(a > b, a, b),
    "mask": lambda a, b: torch.where(a.bool(), 1.0, -1.0),
    "masked fill": lambda a, b: a.masked_fill(b.bool(), 1),
    "tril": lambda a, b: a.tril(),
    "cat": lambda a, b: torch.cat([a, b], 1),
    "mean": lambda a, b: a.float().mean(1),
    "one": lambda a, b: torch.ones_like(a) + a,
    "pad": lambda a, b: functional.pad(a, (1, 1), value=1),
    "product": lambda a, b: a.prod(1),
}

EXAMPLE = [[1, 3, 2, 7], [5, 4, 6, 1]]
OTHER = [[2, 1, 2, 3], [1, 4, 3, 2]]

EXTREMES: dict[torch.dtype, tuple[Any, Any]] = {
    torch.uint8: ([[255, 0, 200, 3], [17, 128, 9, 254]], [[2, 255, 100, 5], [3, 127, 7, 255]]),
    torch.int8: ([[127, -128, 100, -3], [-17, 5, 9, -1]], [[2, -1, 100, 5], [3, -7, -4, 127]]),
    torch.int32: ([[2**31 - 9, -7, 2**24 + 1, -3], [-17, 5, 9, 123456789]], [[3, 2, 3, -5], [3, -7, -4, 1]]),
    torch.bool: ([[1, 0, 1, 1], [0, 0, 0, 1]], [[1, 1, 0, 1], [0, 0, 1, 0]]),
}
"""Values that no example contains: both limits, both signs, and more digits than float32 holds."""


REFUSED_OF_BOOL = {"sign", "square", "clamp", "amax", "min", "maximum", "relu"}
"""Operators that OpenVINO's converter refuses for bool, in an error that names the operator."""


class All(nn.Module):
    """Applies several operators to the same two tensors."""

    def __init__(self, operators: list[Operator]) -> None:
        super().__init__()
        self.operators = operators

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tuple(operator(a, b) for operator in self.operators)


def is_kept_out(operator: Operator, arguments: tuple[Tensor, Tensor]) -> bool:
    return capture_alone(Alone(All([operator])).eval(), "backbone", [arguments]).wide_numbers() != ""


def is_known(operator: Operator, arguments: tuple[Tensor, Tensor]) -> bool:
    """Returns true if torch implements the operator for the dtype."""
    try:
        operator(*arguments)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("dtype", EXTREMES, ids=str)
def test_each_value_is_torchs_or_the_operator_is_kept_out(dtype: torch.dtype) -> None:
    example = torch.tensor(EXAMPLE).to(dtype), torch.tensor(OTHER).to(dtype)
    known = {name: operator for name, operator in OPERATORS.items() if is_known(operator, example)}
    if dtype == torch.bool:
        known = {name: operator for name, operator in known.items() if name not in REFUSED_OF_BOOL}
    taken = {name: operator for name, operator in known.items() if not is_kept_out(operator, example)}
    assert len(taken) > 15
    module = All(list(taken.values())).eval()
    compiled = hybrid_rt.compile_segment(module, example, engine="openvino", fallback=False)
    extreme = tuple(torch.tensor(values).to(dtype) for values in EXTREMES[dtype])
    wrong = []
    for name, expected, found in zip(taken, module(*extreme), compiled(*extreme), strict=True):
        near: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6, "equal_nan": True}
        if expected.shape != found.shape or not torch.allclose(expected.double(), found.double(), **near):
            wrong.append(f"{name}: {expected.flatten().tolist()}, got {found.flatten().tolist()}")
    assert wrong == []
