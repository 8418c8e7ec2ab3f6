"""Tests that 64 bit integers are not computed in engines that use 32 bits, and that indices are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import Alone
from hybrid_rt import BackendError
from hybrid_rt.capture.program import Program, capture_alone

FEATURES = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
HASHES = torch.tensor([2**45 + 7, 3, -(2**50)])
WHOLE = torch.arange(12).reshape(2, 6) % 5


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, whole: Tensor) -> Any:
        return self.function(x * self.scale, whole)


def program_of(function: Callable[..., Any], x: Tensor = FEATURES, whole: Tensor = WHOLE) -> Program:
    return capture_alone(Alone(Calls(function)).eval(), "backbone", [(x, whole)])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: x / (n - 1),
        lambda x, n: x + n.float(),
        lambda x, n: (x, n + 1),
        lambda x, n: (x, n.reshape(12)),
        lambda x, n: (x, n > 3),
        lambda x, n: (x, torch.cat([n, n]) * 2),
        lambda x, n: (x * 3e7).long() + 1,
        lambda x, n: x.double(),
        lambda x, n: (x.double() * 2).float(),
        lambda x, n: (x, torch.arange(6) * 2**32),
        lambda x, n: (x, (torch.arange(6) - 2**40).abs()),
        lambda x, n: (x, HASHES + 1),
        lambda x, n: x.masked_fill(torch.arange(6) < torch.full((6,), 2**62), 0.0),
    ],
)
def test_wide_numbers_are_found(function: Callable[..., Any]) -> None:
    found = program_of(function).wide_numbers()
    assert "int64" in found or "float64" in found


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: x.gather(1, n),
        lambda x, n: nn.functional.embedding(n, x.reshape(6, 2)),
        lambda x, n: x + torch.arange(6),
        lambda x, n: x.masked_fill(n == 0, 0.0),
        lambda x, n: x * n.bool(),
        lambda x, n: x * n.clamp(0, 4),
        lambda x, n: x.argsort(1) + 1,
        lambda x, n: x[:, (x[0] * 5).long()],
        lambda x, n: x * 2.5,
        lambda x, n: x + (torch.arange(6) - 2**31 + 6).abs(),
        lambda x, n: x[:, : 2**62],
    ],
)
def test_indices_and_masks_are_small(function: Callable[..., Any]) -> None:
    assert program_of(function).wide_numbers() == ""


def runs_of(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns how often a program of two calls runs until it is known that its numbers are small."""
    program = program_of(function)
    program = replace(program, calls=program.calls * 2)
    runs: list[int] = []
    run = Program.run
    monkeypatch.setattr(Program, "run", lambda self, inputs: runs.append(1) or run(self, inputs))
    assert program.wide_numbers() == ""
    return len(runs)


def test_indices_that_nothing_reads_need_no_further_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Max pooling makes them beside its result."""
    assert runs_of(lambda x, n: x.sort(-1).values, monkeypatch) == 1


@pytest.mark.parametrize("function", [lambda x, n: x.sort(-1).indices, lambda x, n: x.gather(-1, x.argsort(-1))])
def test_weights_that_are_used_or_returned_matter(
    function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runs_of(function, monkeypatch) == 2


@pytest.mark.parametrize(
    ("value", "is_wide"),
    [(3, False), (2**40, True)],
)
def test_memory_has_no_values_before_it_is_written(value: int, is_wide: bool) -> None:
    program = program_of(lambda x, n: (x, torch.empty(6, dtype=torch.int64).fill_(value)))
    torch.use_deterministic_algorithms(True)  # fills new memory with the largest value
    try:
        assert bool(program.wide_numbers()) == is_wide
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: (x, (x * 9).long() // 3),
        lambda x, n: (x, (torch.arange(6) - 3) // 2),
        lambda x, n: (x, torch.div(torch.arange(6), -2, rounding_mode="floor")),
        lambda x, n: (x, torch.arange(6, dtype=torch.int32).sub(3).floor_divide(2)),
        lambda x, n: (x, torch.arange(1000) ** 3),
    ],
)
def test_whole_numbers_that_openvino_computes_otherwise(function: Callable[..., Any]) -> None:
    found = program_of(function).wide_numbers()
    assert "rounds to zero" in found or "in float32" in found


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: (x, torch.arange(6) // 2),
        lambda x, n: (x, x.argmax(1) // 3, x.topk(3).indices // 2),
        lambda x, n: (x, (x * 9).long().clamp(min=0) // 3),
        lambda x, n: (x, torch.arange(6) % 4 - 1),
        lambda x, n: (x, torch.arange(100) ** 2),
        lambda x, n: (x, torch.arange(6) / 4),
    ],
)
def test_whole_numbers_that_it_computes_as_torch_does(function: Callable[..., Any]) -> None:
    assert program_of(function).wide_numbers() == ""


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_narrow_whole_numbers_are_free(kind: torch.dtype) -> None:
    assert program_of(lambda x, n: x + n, whole=WHOLE.to(kind)).wide_numbers() == ""


@pytest.mark.parametrize("function", [lambda x, n: x + (n - 3), lambda x, n: (x.double() * n).float()])
def test_the_engine_refuses_them_with_the_way_out(function: Callable[..., Any]) -> None:
    with pytest.raises(BackendError, match=r"fit into 32 bits, got aten::.*64.*int32 or float32"):
        hybrid_rt.compile_segment(Calls(function).eval(), (FEATURES, WHOLE), engine="openvino", fallback=False)


def test_an_engine_with_64_bits_takes_them() -> None:
    module = Calls(lambda x, n: (x, n - 3)).eval()
    compiled = hybrid_rt.compile_segment(module, (FEATURES, WHOLE), engine="torchscript")
    large = WHOLE + 2**40
    assert torch.equal(compiled(FEATURES, large)[1], large - 3)


@pytest.mark.parametrize("large", [2**31, -(2**31) - 1, 2**32, 2**40 + 3])
def test_large_numbers_that_come_in_at_a_call_are_refused(large: int) -> None:
    """Many segments take a mask of 0 and 1; 2**32 would become 0 in 32 bits."""
    module = Calls(lambda x, n: x.masked_fill(n.bool(), 0.0)).eval()
    compiled = hybrid_rt.compile_segment(
        module, (FEATURES, WHOLE), engine="openvino", fallback=False, strict=True, verify=False
    )
    assert torch.equal(compiled(FEATURES, WHOLE), module(FEATURES, WHOLE))
    assert torch.equal(compiled(FEATURES, WHOLE + 2**31 - 9), module(FEATURES, WHOLE + 2**31 - 9))
    with pytest.raises(RuntimeError, match=rf"input 1: expected integers that fit into 32 bits.*got {large}"):
        compiled(FEATURES, WHOLE * 0 + large)
