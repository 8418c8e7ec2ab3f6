"""Generates TorchScript for a segment from an exported program with symbolic sizes.

torch.jit.trace records numbers that Python computes from sizes as constants of the example. If that is wrong, or if
tracing fails, this is used instead: sizes stay free, and the conditions on them are known.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram

from ..common.specs import TensorSpec
from ..torchscript import jit
from ..torchscript.exported_code import ExportedCode
from ..torchscript.generated_module import generated_class
from .torch_export import conditions, size_range

_SOURCE = '''\
class Segment(nn.Module):
    """A segment as torch.export recorded it, a function of flat tensors."""

    def forward(self, {parameters}) -> Tuple[{returned}]:
        {body}
        return ({results},)
'''


_LARGE = 1 << 22
"""Larger than every size, and half of the largest integer range of float32, in which OpenVINO divides."""


def _division(node: torch.fx.Node, arguments: Sequence[str], exported: ExportedProgram) -> str:
    """Writes a quotient or remainder of sizes so that OpenVINO computes it correctly too; divisors are positive.

    OpenVINO rounds the quotient of a negative number, such as ``-height // 8``, towards zero, and assumes that the
    remainders of all sizes in a range lie between those of its two ends.
    """
    if node.target not in (operator.floordiv, operator.mod):
        return ""
    dividend, divisor = arguments
    lower, _ = size_range(exported, node.args[0].meta["val"] if isinstance(node.args[0], torch.fx.Node) else 0)
    multiple = f"({_LARGE} // {divisor})"
    raised = dividend if lower is not None and lower >= 0 else f"({dividend} + {multiple} * {divisor})"
    if node.target is operator.mod:
        return f"{raised} - ({raised} // {divisor}) * {divisor}"
    return f"{raised} // {divisor} - {multiple}" if raised != dividend else ""


def _meshgrid(arguments: Sequence[str]) -> str:
    """Writes meshgrid with views, because OpenVINO supports it in traced modules only."""
    tensors = arguments[0].strip("[]").split(", ")
    places = list(range(len(tensors)))
    if arguments[1:] == ["'xy'"] and len(tensors) > 1:
        places[:2] = [1, 0]
    sizes = ", ".join(f"{tensors[places.index(place)]}.numel()" for place in range(len(tensors)))
    grids = [
        f"{tensor}.view([{', '.join('-1' if d == place else '1' for d in range(len(tensors)))}]).expand([{sizes}])"
        for tensor, place in zip(tensors, places, strict=True)
    ]
    return f"[{', '.join(grids)}]"


@dataclass(frozen=True)
class ExportedSegment:
    """A segment as torch.export recorded it.

    Attributes:
        module: a function of flat tensors that returns a tuple.
        conditions: conditions on its inputs' sizes, see :func:`hybrid_rt.capture.torch_export.conditions`.
        float_sizes: true if it computes sizes from fractions, which requires 64 bits.
    """

    module: torch.jit.ScriptModule
    conditions: list[tuple[str, str]]
    float_sizes: bool


def exported_segment(exported: ExportedProgram, specs: Sequence[TensorSpec]) -> ExportedSegment:
    """Writes TorchScript from an exported program of flat tensors.

    Args:
        exported: the program.
        specs: specs of its inputs.

    Raises:
        CaptureError: TorchScript lacks an operator, or a condition is not a comparison of sizes.
    """
    tensors = [f"input_{i}" for i in range(len(specs))]
    code = ExportedCode(
        exported, tensors, {"aten::meshgrid": _meshgrid}, functools.partial(_division, exported=exported)
    )
    # torch.export assumes the strides of its example, whose tensors are contiguous.
    body = [*map("{0} = {0}.contiguous()".format, tensors), *code.lines]
    source = _SOURCE.format(
        parameters=", ".join(f"{name}: Tensor" for name in tensors),
        returned=", ".join(["Tensor"] * len(code.results)),
        body="\n        ".join(body),
        results=", ".join(code.results),
    )
    module = generated_class(source, "Segment", {"nn": nn, "math": math})()
    for name, tensor in code.constants.items():
        module.register_buffer(name, tensor)
    values = (node.meta.get("val") for node in exported.graph.nodes)
    return ExportedSegment(
        jit.script(module.eval()),
        conditions(exported, specs),
        any(isinstance(value, torch.SymFloat) for value in values),
    )
