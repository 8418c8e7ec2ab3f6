"""Tests of Program.exported(): torch.export with the sizes that the specs leave free."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from helpers.small_detectors import Alone
from hybrid_rt import CaptureError
from hybrid_rt.capture import torch_export
from hybrid_rt.capture.call_recording import recording
from hybrid_rt.capture.observe import observe
from hybrid_rt.capture.program import Program, capture, capture_alone
from hybrid_rt.common.specs import UNBOUNDED


class Calls(nn.Module):
    """Is a segment that calls one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Conv2d(3, 3, 3, stride=2, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(self.layer, x, y)


RANGES = [(1, 4), (3, 3), (8, 64), (8, UNBOUNDED)]


def program_of(function: Callable[..., Any], *, half: bool = False) -> Program:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 24)
    detector = Alone(Calls(function), "segment").eval()
    observed = [(x, x[..., ::2, ::2] if half else x)]
    observation = observe(detector, observed[0])
    with recording(detector, ["segment"]) as run:
        detector(*observed[0])
    low, high = RANGES[2]
    second = [*RANGES[:2], (low // 2, high // 2), (4, UNBOUNDED)] if half else RANGES
    return capture(observation, ["segment"], [run], [RANGES, second])


@functools.cache
def r50_fpn() -> tuple[nn.Module, Program]:
    """Returns a detector, and its backbone and rpn.head as one program with N, H and W free."""
    torch.manual_seed(0)
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=64, max_size=96).eval()
    example = ([torch.rand(3, 64, 96)],)
    names = ["backbone", "rpn.head"]
    observation = observe(detector, example)
    with recording(detector, names) as run:
        detector(*example)
    return detector, capture(observation, names, [run], [[(1, 8), (3, 3), (32, 1344), (32, 1344)]])


def sizes_of(program: torch.export.ExportedProgram) -> list[list[bool]]:
    """Returns for each input which of its dimensions are symbolic."""
    inputs = program.graph_signature.user_inputs
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return [[isinstance(size, torch.SymInt) for size in nodes[name].shape] for name in inputs]


@pytest.mark.slow
def test_a_backbone_and_a_head_are_one_program_with_free_sizes() -> None:
    detector, program = r50_fpn()
    made = program.exported()
    assert sizes_of(made) == [[True, False, True, True]]
    assert not any("==" in text for text, _ in torch_export.conditions(made, program.inputs))
    x = torch.rand(2, 3, 32, 160)
    features = detector.backbone(x)
    logits, deltas = detector.rpn.head(list(features.values()))
    for got, expected in zip(made.module()(x), [*features.values(), *logits, *deltas], strict=True):
        torch.testing.assert_close(got, expected)


def test_another_precision_holds_inside_only() -> None:
    program = program_of(lambda layer, x, y: layer(x) + F.avg_pool2d(y, 3, 2, 1))
    made = program.exported(torch.bfloat16)
    x, y = torch.rand(2, 3, 16, 24), torch.rand(2, 3, 16, 24)
    (got,), (expected,) = made.module()(x, y), program.run([x, y])
    assert got.dtype == torch.float32
    error = (got - expected).abs().max().item()
    assert 0 < error < 0.02
    assert {value.dtype for value in made.state_dict.values()} == {torch.bfloat16}
    assert program.members[0].module.layer.weight.dtype == torch.float32  # the detector's weight is unchanged


def test_sizes_that_must_agree_are_conditions() -> None:
    program = program_of(lambda layer, x, y: layer(x + y))
    found = torch_export.conditions(program.exported(), program.inputs)
    for d in (0, 2, 3):
        assert (f"x.shape[{d}] == y.shape[{d}]", f"0.{d}: 1.{d}: ==") in found


def test_sizes_in_a_proportion_are_conditions() -> None:
    program = program_of(lambda layer, x, y: layer(x + F.interpolate(y, scale_factor=2.0)), half=True)
    found = torch_export.conditions(program.exported(), program.inputs)
    assert ("x.shape[3] == 2 * y.shape[3]", "0.3: 2 1.3: * ==") in found


def test_sizes_that_must_be_even_are_conditions() -> None:
    program = program_of(lambda layer, x, y: x + F.interpolate(layer(y), scale_factor=2.0))
    found = torch_export.conditions(program.exported(), program.inputs)
    assert any(text.startswith("x.shape[3] == 2 + 2 *") and "y.shape[3]" in text for text, _ in found)


def branch_on(condition: Callable[[int, int], bool]) -> list[tuple[str, str]]:
    """Returns the conditions of a segment that computes other values if a condition on its sides holds."""

    def computed(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return layer(2 * x if condition(x.shape[2], x.shape[3]) else x)

    program = program_of(computed)
    return torch_export.conditions(program.exported(), program.inputs)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (lambda height, width: width / height > 1.6, "0.3: 0.2: / 1.6 <="),
        (lambda height, width: width / height > 2, "0.3: 2 0.2: * <="),
        (lambda height, width: 48 / width > 40 / height, "48 0.2: * 40 0.3: * <="),
    ],
)
def test_a_branch_on_fractions_is_multiplied_out_for_engines(condition: Any, words: str) -> None:
    if "/" in words:
        with pytest.raises(CaptureError, match=r"expected conditions that compare integers and fractions of sizes"):
            branch_on(condition)
        return
    assert words in [found for _, found in branch_on(condition)]


def test_a_size_that_decides_is_refused() -> None:
    program = program_of(lambda layer, x, y: layer(x) if y.shape[2] <= 20 else layer(2 * x))
    text = (
        "hybrid_rt[capture]: segment 'segment', input 'y', dimension 2: expected a program for every size of "
        "1..4 x 3 x 8..64 x 8.., got one for 8..20. Its code depends on this size"
    )
    with pytest.raises(CaptureError, match=re.escape(text)):
        program.exported()


def test_a_size_that_is_fixed_is_refused() -> None:
    program = program_of(lambda layer, x, y: layer(x) + y.flatten(2).mean(2)[:, :, None, None] * int(y.shape[3] == 24))
    text = "segment 'segment', input 'y', dimension 3: expected a program for every size of .*, got one for 24 only"
    with pytest.raises(CaptureError, match=text):
        program.exported()


def test_unexportable_code_is_reported() -> None:
    program = program_of(lambda layer, x, y: layer(x) if y.mean().item() > 0 else layer(2 * x))
    with pytest.raises(CaptureError, match=r"hybrid_rt\[capture\]: segment 'segment': expected a module that torch."):
        program.exported()


def test_static_sizes_stay_numbers() -> None:
    torch.manual_seed(0)
    detector = Alone(nn.Conv2d(3, 3, 3), "segment").eval()
    program = capture_alone(detector, "segment", [(torch.rand(1, 3, 8, 8),)])
    assert sizes_of(program.exported()) == [[False] * 4]
