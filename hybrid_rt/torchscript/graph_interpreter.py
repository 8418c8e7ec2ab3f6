"""Runs the graph of a stored TorchScript segment operator by operator in Python, for torch.export.

This way torch.export sees the operators and keeps sizes symbolic, which it can't with the TorchScript interpreter.
Outside of torch.export, including in a trace, the segment runs as it was stored.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import CaptureError
from . import jit

_ARITHMETIC = {
    "aten::add": lambda a, b, alpha=1: a + alpha * b,
    "aten::sub": lambda a, b, alpha=1: a - alpha * b,
    "aten::rsub": lambda a, b, alpha=1: b - alpha * a,
    "aten::mul": operator.mul,
    "aten::floordiv": operator.floordiv,
    "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::neg": operator.neg,
}
"""Arithmetic on sizes: a trace records it with tensors, TorchScript computes it with numbers."""

_AS_IT_IS = ("prim::NumToTensor", "aten::Int", "aten::ScalarImplicit", "aten::IntImplicit")


class ScriptGraph(nn.Module):
    """Module that takes tensors and returns a tuple of tensors."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        """Freezes a segment and checks its graph.

        Args:
            script: A traced segment without branches and loops.

        Raises:
            CaptureError: The segment has a branch or a loop.
        """
        super().__init__()
        self.script = script
        self._graph = jit.freeze(script).graph
        for i, node in enumerate(self._graph.nodes()):
            if list(node.blocks()):
                raise CaptureError.make(
                    "capture",
                    "a stored segment",
                    expected="a recorded graph",
                    got=f"one with {node.kind()}",
                    remedy="Convert the detector again.",
                )
            if node.kind() == "prim::Constant" and isinstance(value := node.output().toIValue(), Tensor):
                self.register_buffer(f"constant_{i}", value.detach())

    def forward(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the segment.

        Args:
            **tensors: Inputs of the segment, in order.

        Returns:
            Its outputs.
        """
        if not torch.compiler.is_exporting():
            return tuple(self.script(*tensors.values()))
        _, *inputs = self._graph.inputs()
        values: dict[int, Any] = {
            value.unique(): tensor for value, tensor in zip(inputs, tensors.values(), strict=True)
        }
        for i, node in enumerate(self._graph.nodes()):
            given = [values[value.unique()] for value in node.inputs() if value.unique() in values]
            if node.kind() == "prim::Constant":
                constant = getattr(self, f"constant_{i}", None)
                values[node.output().unique()] = node.output().toIValue() if constant is None else constant
            elif node.kind() in ("prim::ListUnpack", "prim::TupleUnpack"):
                values |= {value.unique(): entry for value, entry in zip(node.outputs(), given[0], strict=True)}
            else:
                result = _run(node, given)
                made = list(node.outputs())
                if len(made) == 1:
                    values[made[0].unique()] = result
                else:
                    values |= {value.unique(): entry for value, entry in zip(made, result, strict=True)}
        outputs = [values[value.unique()] for value in self._graph.outputs()]
        return tuple(outputs[0]) if len(outputs) == 1 and not isinstance(outputs[0], Tensor) else tuple(outputs)


def _run(node: Any, given: list[Any]) -> Any:
    kind = node.kind()
    if kind == "prim::ListConstruct":
        return given
    if kind == "prim::TupleConstruct":
        return tuple(given)
    if kind == "prim::TupleIndex":
        return given[0][given[1]]
    if kind == "aten::size":
        return given[0].size(given[1]) if len(given) > 1 else list(given[0].shape)
    if kind in _AS_IT_IS and not isinstance(given[0], Tensor):
        return given[0]
    if kind in _ARITHMETIC and not any(isinstance(value, Tensor) for value in given):
        calculate: Any = _ARITHMETIC[kind]
        return calculate(*given)
    schema = torch._C.parse_schema(node.schema())
    namespace, name = schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name)
    run = getattr(packet, schema.overload_name or "default")
    names = [argument.name for argument in schema.arguments]
    positional = {
        name: value
        for name, value, argument in zip(names, given, schema.arguments, strict=True)
        if not argument.kwarg_only
    }
    keyword = {
        name: value for name, value, argument in zip(names, given, schema.arguments, strict=True) if argument.kwarg_only
    }
    return run(*positional.values(), **keyword)
