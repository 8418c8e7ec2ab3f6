"""TorchScript source of what torch.export recorded: one line per call, sizes as whole numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ..common.error_text import LIBRARIES
from ..common.errors import CaptureError
from ..common.value_tree import literal

NAMESPACES = ("aten", "torchvision", "hybrid_rt")
"""Namespaces of operators that exist in a C++ program: torch's own, and those that hybrid_rt has or replaces."""

_SUBJECT = "the detector's head"

_SKIPPED = {
    "aten::_assert_tensor_metadata",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
    "aten::_assert_async",
}
"""What export notes of tensors beside its conditions; their values follow from the operators themselves."""

_NUMBERS: dict[Any, str] = {
    operator.add: "{} + {}",
    operator.sub: "{} - {}",
    operator.mul: "{} * {}",
    operator.floordiv: "{} // {}",
    operator.mod: "{} % {}",
    operator.truediv: "{} / {}",
    operator.pow: "{} ** {}",
    operator.neg: "-{}",
    operator.ge: "{} >= {}",
    operator.le: "{} <= {}",
    operator.gt: "{} > {}",
    operator.lt: "{} < {}",
    operator.eq: "{} == {}",
    operator.ne: "{} != {}",
    operator.and_: "{} and {}",
    operator.or_: "{} or {}",
    torch.sym_not: "not {}",
    torch.sym_max: "max({}, {})",
    torch.sym_min: "min({}, {})",
    torch.sym_float: "float({})",
    torch.sym_int: "int({})",
    math.floor: "math.floor({})",
    math.ceil: "math.ceil({})",
    math.trunc: "int({})",
    math.sqrt: "math.sqrt({})",
    round: "round({})",
}
"""Calls on sizes and other numbers."""

_INLINED = ("wrap_with_set_grad_enabled", "wrap_with_autocast")

_TYPES = {torch.SymInt: "int", torch.SymFloat: "float", torch.SymBool: "bool", int: "int", float: "float", bool: "bool"}

Call = Callable[[Sequence[str]], str]
"""From arguments, a call; all as source."""


class ExportedCode:
    """The source of a program, and the constants that it names.

    Attributes:
        lines: statements, in order.
        results: an expression per computed value of the result.
        constants: tensors by the names of the attributes that hold them.
    """

    def __init__(
        self,
        exported: ExportedProgram,
        parameters: Sequence[str],
        stand_ins: Mapping[str, Call],
        numbers: Callable[[torch.fx.Node, Sequence[str]], str] = lambda node, arguments: "",
    ) -> None:
        """Writes the source.

        Args:
            exported: the program.
            parameters: an expression per tensor that it takes.
            stand_ins: what to write in the place of operators, by their qualified names.
            numbers: returns another expression for a call on sizes, given its arguments as source; empty: the usual.

        Raises:
            CaptureError: TorchScript in C++ lacks an operator, or the program keeps state or has control flow.
        """
        self.lines: list[str] = []
        self.constants: dict[str, Tensor] = {}
        self._stand_ins = stand_ins
        self._numbers = numbers
        self._count = 0
        self._names: dict[torch.fx.Node, str] = {}
        self._kept: dict[torch.fx.Node, str] = {}
        _refuse_state(exported)
        self.results = self._graph(exported.graph_module, self._inputs(exported, parameters))

    def _inputs(self, exported: ExportedProgram, parameters: Sequence[str]) -> list[str]:
        """An expression per placeholder; constants are attributes of the module."""
        held = {**exported.state_dict, **exported.constants}
        remaining = iter(parameters)
        given = []
        placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                given.append(next(remaining))
                continue
            if spec.kind is InputKind.BUFFER or spec.kind is InputKind.PARAMETER:
                self._kept[node] = str(spec.target).removeprefix("detector.")
            if node.users:
                name = f"constant_{len(self.constants)}"
                self.constants[name] = held[spec.target].detach()
                given.append(f"self.{name}")
            else:
                given.append("None")
        return given

    def _graph(self, module: torch.fx.GraphModule, given: Iterable[str]) -> list[str]:
        """Writes the statements of a graph; returns its results."""
        remaining = iter(given)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self._names[node] = next(remaining)
            elif node.op == "call_function":
                self._call(module, node)
            elif node.op == "output":
                return [self._written(value) for value in node.args[0]]
            elif node.op != "get_attr":
                raise _refused("calls of operators", f"'{node.op}' of {node.target}", node)
        return []

    def _call(self, module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
        target: Any = node.target
        if isinstance(target, torch._ops.OpOverload):
            self._operator(node, target)
        elif target is operator.getitem:
            source, index = node.args
            inlined = self._names.get(source) if isinstance(source, torch.fx.Node) else None
            self._assign(node, f"{inlined}[{index}]")
        elif target in _NUMBERS:
            arguments = [*map(self._written, node.args)]
            self._number(node, self._numbers(node, arguments) or _NUMBERS[target].format(*arguments))
        elif getattr(target, "__name__", "") == "sym_sum":
            self._number(node, " + ".join(self._written(value) for value in node.args[0]))  # type: ignore[union-attr]
        elif getattr(target, "__name__", "") == "sym_ite":
            chosen, one, other = map(self._written, node.args)
            self._number(node, f"{one} if {chosen} else {other}")
        elif isinstance(target, torch._ops.HigherOrderOperator) and target.__name__ in _INLINED:
            self._inline(module, node, target.__name__)
        elif getattr(target, "__name__", "") != "_set_grad_enabled":
            raise _refused("operators of torch", getattr(target, "__name__", str(target)), node)

    def _inline(self, module: torch.fx.GraphModule, node: torch.fx.Node, name: str) -> None:
        """A part under no_grad or a disabled autocast: nothing of both is left in a frozen head."""
        if name == "wrap_with_autocast":
            enabled, body, arguments = node.args[2], node.args[4], node.args[5:]
            if enabled:
                raise _refused("a head without autocast", "torch.autocast(enabled=True)", node)
        else:
            body, arguments = node.args[1], node.args[2:]
        inner = getattr(module, str(body.target))  # type: ignore[union-attr]
        results = self._graph(inner, [self._written(argument) for argument in arguments])
        self._assign(node, f"({', '.join(results)},)")

    def _operator(self, node: torch.fx.Node, target: torch._ops.OpOverload) -> None:
        namespace, _, name = target._schema.name.partition("::")
        if target._schema.name in _SKIPPED:
            return
        if target._schema.name == "aten::_assert_scalar":
            self.lines.append(f"assert {self._written(node.args[0])}, {_ASSERTION + str(node.args[1])!r}")
            return
        if target._schema.name == "aten::sym_size":
            self._assign(node, f"{self._written(node.args[0])}.size({self._written(node.args[1])})")
            return
        if target._schema.name in ("aten::sym_numel", "aten::sym_stride", "aten::sym_storage_offset"):
            written = [self._written(argument) for argument in node.args]
            self._assign(node, f"{written[0]}.{name.removeprefix('sym_')}({', '.join(written[1:])})")
            return
        if target._schema.name in self._stand_ins:
            given = [self._written(value) for value in (*node.args, *node.kwargs.values())]
            self._assign(node, self._stand_ins[target._schema.name](given))
            return
        if namespace not in NAMESPACES:
            raise _refused(f"operators of {', '.join(NAMESPACES)}", target._schema.name, node)
        self._refuse_writing(node, target)
        parameters = {argument.name: argument for argument in target._schema.arguments}
        positional = [
            _typed(value, argument.type, self._written)
            for value, argument in zip(node.args, target._schema.arguments, strict=False)
        ]
        named = [f"{key}={_typed(value, parameters[key].type, self._written)}" for key, value in node.kwargs.items()]
        call = f"torch.ops.{namespace}.{name}({', '.join([*positional, *named])})"
        if node.meta.get("val") is None:
            self.lines.append(call)
        else:
            self._number(node, call)

    def _refuse_writing(self, node: torch.fx.Node, target: torch._ops.OpOverload) -> None:
        """Refuses an operator that writes into a weight or buffer: a bundle keeps nothing from call to call."""
        for value, argument in zip(node.args, target._schema.arguments, strict=False):
            if argument.alias_info is None or not argument.alias_info.is_write or not isinstance(value, torch.fx.Node):
                continue
            kept = self._kept.get(_base(value))
            if kept is not None:
                raise _refused(
                    "a head without state between calls",
                    f"a write into its buffer '{kept}'",
                    node,
                    "keeps-state",
                )

    def _number(self, node: torch.fx.Node, expression: str) -> None:
        """Assigns a call's result; numbers get the type that they had in Python."""
        kind = _TYPES.get(type(node.meta.get("val")))
        self._assign(node, f"{kind}({expression})" if kind else expression)

    def _assign(self, node: torch.fx.Node, expression: str) -> None:
        name = f"value_{self._count}_"
        self._count += 1
        self._names[node] = name
        self.lines.append(f"{name} = {expression}")

    def _written(self, value: Any) -> str:
        """A value as source."""
        if isinstance(value, torch.fx.Node):
            return self._names[value]
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self._written, value))}]"
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        if isinstance(value, complex):
            raise _refused("real numbers", f"the complex number {value}", None)
        return literal(value)


_ASSERTION = "hybrid_rt[head]: values: expected sizes such as torch.export assumed, got others. "


def _typed(value: Any, kind: Any, write: Callable[[Any], str]) -> str:
    """An operator's argument as source, of the type that its schema says."""
    if value is None:
        return "None"
    if kind.kind() == "OptionalType":
        return _typed(value, kind.getElementType(), write)
    if kind.kind() == "ListType" and isinstance(value, (list, tuple)):
        entry = kind.getElementType()
        parts = [_typed(one, entry, write) for one in value]
        written = f"[{', '.join(parts)}]"
        if entry.kind() == "OptionalType" or not parts:
            return f"torch.jit.annotate(List[{_name(entry)}], {written})"
        return written
    if kind.kind() == "FloatType" and not isinstance(value, float):
        return f"float({write(value)})"
    return write(value)


def _name(kind: Any) -> str:
    if kind.kind() == "OptionalType":
        return f"Optional[{_name(kind.getElementType())}]"
    names = {"TensorType": "Tensor", "FloatType": "float", "BoolType": "bool"}
    return names.get(kind.kind(), "int")


def _base(node: torch.fx.Node) -> torch.fx.Node:
    """The tensor whose memory a view shows."""
    while isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema
        viewed = [
            value
            for value, argument in zip(node.args, schema.arguments, strict=False)
            if argument.alias_info is not None and isinstance(value, torch.fx.Node)
        ]
        if not viewed:
            break
        node = viewed[0]
    return node


def _refuse_state(exported: ExportedProgram) -> None:
    for spec in exported.graph_signature.output_specs:
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            kept = str(spec.target).removeprefix("detector.")
            raise _refused(
                "a head without state between calls",
                f"a write into its buffer '{kept}'",
                None,
                "keeps-state",
            )


def _refused(expected: str, got: str, node: torch.fx.Node | None, code: str = "head-not-exportable") -> CaptureError:
    where = _user_line(node) if node is not None else ""
    return CaptureError.make(
        "capture",
        _SUBJECT,
        expected=expected,
        got=f"{got}{where}",
        remedy="Change the code, put it into a segment, or use head='trace'.",
        code=code,
    )


def _user_line(node: torch.fx.Node) -> str:
    """``' at head.py:12'``, of the line that recorded a call, if torch noted it."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
    files = [line.removeprefix('File "') for line in lines if line.startswith('File "')]
    places = [file for file in files if not file.startswith(LIBRARIES)]
    if not places:
        return ""
    file, line, *_ = places[-1].split(", ")
    name = file.rpartition("/")[2].rstrip('"')
    return f" at {name}:{line.removeprefix('line ')}"
