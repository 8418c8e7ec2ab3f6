"""TorchScript segments in bfloat16: cast once, weights and all, with nothing left to decide in a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import jit
from .generated_module import generated_class

_FLOAT32, _BFLOAT16 = 6, 15
"""Values of c10::ScalarType in a graph."""

_FLOATS = frozenset(
    f"aten::{name}" for name in ("zeros", "ones", "empty", "eye", "linspace", "logspace", "rand", "randn")
)
"""Operations without tensor inputs that return float32 if no dtype is given."""

_NUMBERS = frozenset({"aten::full", "aten::arange"})
"""Operations that return float32 if no dtype is given and their number is not an integer."""

_OF_ONE_DTYPE = frozenset(
    f"aten::{name}"
    for name in (
        *("_convolution", "convolution", "conv1d", "conv2d", "conv3d", "linear", "matmul", "mm", "bmm", "addmm"),
        *("baddbmm", "layer_norm", "group_norm", "instance_norm", "prelu"),
    )
)
"""Operations that refuse operands of different dtypes instead of computing in the wider one."""


_LOWERED = '''\
class Lowered(nn.Module):
    """A module of flat tensors that computes in bfloat16."""

    def forward(self, {parameters}) -> Tuple[{returned}]:
        outputs = self.inside({arguments})
        return ({results},)
'''


def lower_to_bfloat16(
    module: torch.jit.ScriptModule, inputs: Sequence[str], outputs: Sequence[str]
) -> torch.jit.ScriptModule:
    """A module of flat tensors that computes in bfloat16 where ``module`` does in float32, but for inputs and outputs.

    It is frozen first, so that what freezing computes (batch norms folded into convolutions) is computed in float32.
    Batch norms that are left keep their numbers in float32, which torch's kernels take beside bfloat16.

    Args:
        module: what :func:`torchscript.chain` returns; it is not changed.
        inputs: their dtypes, "float32".
        outputs: likewise.
    """
    frozen = jit.freeze(module)
    weights: set[int] = set()  # values, by torch's number
    for node in list(jit.nodes_of(frozen.graph)):
        if node.kind() == "prim::Constant":
            if _lower_constant(node):
                weights.add(node.output().unique())
            continue
        _lower_dtypes(node, frozen.graph)
        if node.kind() in _OF_ONE_DTYPE and weights.intersection(value.unique() for value in node.inputs()):
            _cast_inputs(node, frozen.graph, weights)
    names = [f"input_{i}" for i in range(len(inputs))]
    source = _LOWERED.format(
        parameters=", ".join(f"{name}: Tensor" for name in names),
        returned=", ".join(["Tensor"] * len(outputs)),
        arguments=", ".join(
            f"{name}.to(torch.bfloat16)" if dtype == "float32" else name
            for name, dtype in zip(names, inputs, strict=True)
        ),
        results=", ".join(
            f"outputs[{i}].to(torch.float32)" if dtype == "float32" else f"outputs[{i}]"
            for i, dtype in enumerate(outputs)
        ),
    )
    wrapper = generated_class(source, "Lowered", {"nn": nn, "torch": torch})()
    wrapper.add_module("inside", jit.submodule(frozen))
    return jit.script(wrapper.eval())


def _lower_constant(node: Any) -> bool:
    """Lowers a constant; returns true if it was float32."""
    value = node.output().toIValue()
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return False
    if all(use.user.kind() == "aten::batch_norm" for use in node.output().uses()):
        return False
    node.t_("value", value.to(torch.bfloat16))
    node.output().inferTypeFrom(node.t("value"))
    return True


def _cast_inputs(node: Any, graph: Any, weights: set[int]) -> None:
    """Casts operands next to a weight: integers times 0.5, for example, are still float32."""
    graph.setInsertPoint(node)
    for i, value in enumerate(list(node.inputs())):
        if str(value.type()) == "Tensor" and value.unique() not in weights:
            options = [graph.insertConstant(option) for option in (_BFLOAT16, False, False, None)]
            node.replaceInput(i, graph.insertNode(graph.create("aten::to", [value, *options], 1)).output())


def _lower_dtypes(node: Any, graph: Any) -> None:
    """Replaces requests for float32, e.g. ``zeros(dtype=float32)``, by bfloat16, because operations do not mix both."""
    schema = node.schema()
    if schema == "(no schema)":
        return
    values = list(node.inputs())
    makes_floats = node.kind() in _FLOATS or (
        node.kind() in _NUMBERS and any(str(value.type()) == "float" for value in values)
    )
    names = [argument.name for argument in torch._C.parse_schema(schema).arguments]
    for i, (name, value) in enumerate(zip(names, values, strict=False)):
        if name != "dtype" or value.node().kind() != "prim::Constant":
            continue
        dtype = value.toIValue()
        if dtype == _FLOAT32 or (dtype is None and makes_floats):
            graph.setInsertPoint(node)
            node.replaceInput(i, graph.insertConstant(_BFLOAT16))
