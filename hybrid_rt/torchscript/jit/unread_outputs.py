"""Finds outputs of engines whose sizes, dtype or device the head reads, but not their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...common.specs import engine_name

Output = tuple[str, int]
"""An engine's name and the position of one of its outputs."""

_RUN = "hybrid_rt::run_engine"
_HANDED_ON = "hybrid_rt::handed_on"
"""Compares its tensors with the engine's own and reads no values."""

_READ_NO_VALUE = frozenset(
    {
        "aten::__contains__",
        "aten::__is__",
        "aten::__isnot__",
        "aten::dim",
        "aten::is_floating_point",
        "aten::keys",
        "aten::len",
        "aten::numel",
        "aten::size",
        "prim::device",
        "prim::dtype",
        "prim::is_cuda",
        "prim::layout",
    }
)
"""Operators whose results do not contain an input tensor or depend on its values."""

_TAKE_APART = frozenset({"prim::ListUnpack", "prim::TupleUnpack"})

_HOLD = _TAKE_APART | {
    "aten::__getitem__",
    "aten::items",
    "aten::list",
    "aten::values",
    "prim::DictConstruct",
    "prim::ListConstruct",
    "prim::TupleConstruct",
    "prim::TupleIndex",
    "prim::unchecked_cast",
    "prim::unchecked_unwrap_optional",
}
"""Operators whose results may contain their input tensors. They read no values and modify no container."""


def unread_outputs(module: torch.jit.ScriptModule, counts: Mapping[str, int]) -> dict[str, frozenset[int]]:
    """Returns the positions of the outputs whose sizes are all that a frozen hybrid's head reads, by engine.

    An output counts as read as soon as any operator takes it, or takes a container that may hold it, unless that
    operator is known to read no values. So a list that is modified after its creation counts as read, with everything
    in it. An output that the head does not use at all is omitted: programs with their own heads may need it.

    Args:
        module: The hybrid, with its stand-ins connected.
        counts: Number of outputs of each engine, by name. Other engines in the head are ignored.
    """
    flow = _Flow(module.graph, counts)
    return {
        name: frozenset(i for i in range(count) if (name, i) in flow.measured - flow.read)
        for name, count in counts.items()
    }


class _Flow:
    """Follows the outputs through a graph and records which are read, and of which only the sizes are read."""

    def __init__(self, graph: Any, counts: Mapping[str, int]) -> None:
        """Visits the graph repeatedly until nothing new is found, because loops pass values back.

        Args:
            graph: The graph.
            counts: Number of outputs of each engine, by name.
        """
        self.read: set[Output] = set()
        self.measured: set[Output] = set()
        self._counts = counts
        self._held: dict[int, frozenset[Output]] = {}
        self._has_changed = True
        while self._has_changed:
            self._has_changed = False
            self._visit_block(graph)
        self._mark_read(graph.outputs())

    def _visit_block(self, block: Any) -> None:
        for node in block.nodes():
            self._visit(node)

    def _visit(self, node: Any) -> None:
        kind = node.kind()
        inputs, outputs = list(node.inputs()), list(node.outputs())
        if kind == _RUN:
            name = engine_name(inputs[0].toIValue().segments())
            self._add(outputs[0], frozenset((name, i) for i in range(self._counts.get(name, 0))))
            self._mark_read(inputs[1:])
        elif kind == _HANDED_ON:
            self._visit_handed_on(inputs, outputs[0])
        elif kind in _TAKE_APART:
            for i, output in enumerate(outputs):
                self._add(output, self._entry(inputs[0], i))
        elif kind in ("aten::__getitem__", "prim::TupleIndex"):
            self._add(outputs[0], self._entry(inputs[0], inputs[1].toIValue()))
        elif kind in _HOLD:
            self._add(outputs[0], self._all(inputs))
        elif kind == "prim::If":
            self._visit_branches(node, outputs)
        elif kind == "prim::Loop":
            self._visit_loop(node, inputs, outputs)
        elif kind in _READ_NO_VALUE:
            self.measured |= self._all(value for value in inputs if value.type().kind() == "TensorType")
        else:
            self._mark_read(inputs)
            for inner in node.blocks():
                self._visit_block(inner)
                self._mark_read(inner.outputs())

    def _visit_handed_on(self, inputs: list[Any], output: Any) -> None:
        engine, first, count = inputs[0], inputs[-2].toIValue(), inputs[-1].toIValue()
        if engine.node().kind() != _RUN or first is None or count is None:
            self._mark_read(inputs)
            return
        self._add(output, frozenset(found for found in self._all([engine]) if first <= found[1] < first + count))

    def _visit_branches(self, node: Any, outputs: list[Any]) -> None:
        for inner in node.blocks():
            self._visit_block(inner)
            for output, value in zip(outputs, inner.outputs(), strict=True):
                self._add(output, self._all([value]))

    def _visit_loop(self, node: Any, inputs: list[Any], outputs: list[Any]) -> None:
        (body,) = node.blocks()
        _, *carried = body.inputs()
        for value, given in zip(carried, inputs[2:], strict=True):
            self._add(value, self._all([given]))
        self._visit_block(body)
        _, *results = body.outputs()
        for value, output, result in zip(carried, outputs, results, strict=True):
            self._add(value, self._all([result]))
            self._add(output, self._all([value]))

    def _entry(self, container: Any, place: Any) -> frozenset[Output]:
        """Returns the outputs that may be at a place of a list, tuple or dict; ``place`` is None if it is unknown.

        Containers that are modified later need no care here: everything in them counts as read.
        """
        node = container.node()
        kind, made = node.kind(), list(node.inputs())
        held = self._all([container])
        if kind == "aten::list":
            return self._entry(made[0], place)
        if kind == "prim::DictConstruct":
            entries = _entries(node)
            return self._all([entries[place]]) if place in entries else held
        if not isinstance(place, int) or place < 0:
            return held
        if kind == _RUN:
            return frozenset(found for found in held if found[1] == place)
        if kind == _HANDED_ON:
            first = made[-2].toIValue()
            return held if first is None else frozenset(found for found in held if found[1] == first + place)
        if kind == "aten::values" and made[0].node().kind() == "prim::DictConstruct":
            made = list(_entries(made[0].node()).values())
        elif kind not in ("prim::ListConstruct", "prim::TupleConstruct"):
            return held
        return self._all([made[place]]) if place < len(made) else held

    def _all(self, values: Iterable[Any]) -> frozenset[Output]:
        return frozenset().union(*(self._held.get(value.unique(), frozenset()) for value in values))

    def _add(self, value: Any, found: frozenset[Output]) -> None:
        before = self._held.get(value.unique(), frozenset())
        if not found <= before:
            self._held[value.unique()] = before | found
            self._has_changed = True

    def _mark_read(self, values: Iterable[Any]) -> None:
        self.read |= self._all(values)


def _entries(node: Any) -> dict[Any, Any]:
    """Returns the entries of a dict's construction, in order; empty unless all keys are known and distinct."""
    values = list(node.inputs())
    keys = [key.toIValue() for key in values[::2]]
    return dict(zip(keys, values[1::2], strict=True)) if None not in keys and len(set(keys)) == len(keys) else {}
