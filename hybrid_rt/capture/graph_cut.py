"""Finds the dense part of an exported graph: the largest set of operators that an engine can compute in one call.

The set is convex: no value leaves it and comes back. Sizes do not count as values, because both sides compute them from
the sizes of the inputs. The choice is based on counted work, so it is the same in each process and under any load.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from ..common.tensor_tree import tensors_in
from .counted_work import NO_WORK, Work, WorkCounter
from .side_effects import draws

_NOTES = (
    "aten::_assert_tensor_metadata",
    "aten::_assert_async",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
)
"""Operators that torch.export inserts as assertions, and that compute nothing."""

_DEPENDS_ON_VALUES = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)

_OPERATIONS_PER_VALUE = 8
"""Convolutions, matrix products and attention need more operations per value of their result than this."""

_NUMBERS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)


def without_notes(graph_module: GraphModule) -> GraphModule:
    """Returns a copy without torch.export's assertions, and with ``relu`` for ``relu_`` where that is equivalent.

    Writing into a tensor whose memory nothing else shares is equivalent to a new tensor that replaces it afterwards.
    """
    graph = Graph()
    copied: dict[Node, Node] = {}
    for node in graph_module.graph.nodes:
        if schema_name(node) not in _NOTES:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    result = GraphModule(graph_module, graph)
    for node in list(graph.nodes):
        other = _out_of_place(node)
        if other is None:
            continue
        written = node.args[0]
        later = set(_from(graph, node))
        written.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        node.target = other
    result.recompile()
    return result


def schema_name(node: Node) -> str:
    """Returns the qualified name of the operator that a node calls, or an empty string."""
    return str(node.target._schema.name) if isinstance(node.target, torch._ops.OpOverload) else ""


def _from(graph: Graph, node: Node) -> Iterable[Node]:
    """Returns the nodes after the given one."""
    nodes = list(graph.nodes)
    return nodes[nodes.index(node) + 1 :]


def _out_of_place(node: Node) -> Any:
    """Returns the out-of-place variant of an in-place operator if it may replace it; else None."""
    name = schema_name(node)
    if not name.startswith("aten::") or not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(torch.ops.aten, name.removeprefix("aten::")[:-1], None)
    other = getattr(packet, node.target._overloadname, None) if packet is not None else None  # type: ignore[union-attr]
    written = node.args[0] if node.args else None
    if other is None or not isinstance(written, Node) or written.op != "call_function":
        return None
    given = list(tensors_in([each.meta.get("val") for each in node.all_input_nodes]))
    if any(tensor.dtype != given[0].dtype for tensor in given) or _aliased(written):
        return None
    if isinstance(written.meta.get("val"), Tensor) and written.meta["val"].shape != node.meta["val"].shape:
        return None
    before = set(_from(node.graph, written)) - set(_from(node.graph, node))
    shown = any(written in _aliased(user) for user in written.users if user in before and user is not node)
    return None if shown else other


def _aliased(node: Node) -> list[Node]:
    """Returns the inputs that share memory with a node's result."""
    if node.target is operator.getitem:
        return [node.args[0]] if isinstance(node.args[0], Node) else []
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    return [
        value
        for value, argument in zip(node.args, node.target._schema.arguments, strict=False)
        if argument.alias_info is not None and isinstance(value, Node)
    ]


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and any(
        argument.alias_info is not None and argument.alias_info.is_write for argument in node.target._schema.arguments
    )


def is_size(node: Node) -> bool:
    """Returns true for a number that follows from the sizes of the graph's inputs."""
    value = node.meta.get("val")
    return isinstance(value, _NUMBERS) and not isinstance(value, Tensor) and not _unbacked(value)


def _unbacked(value: Any) -> bool:
    """Returns true if a number, or a tensor's size, depends on values of tensors."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return bool(free_unbacked_symbols(value))


@dataclass(frozen=True)
class NodeWork:
    """The counted work of a node, and the number of values in its result."""

    work: Work
    values: int


_NOTHING = NodeWork(NO_WORK, 0)


def counted(graph_module: GraphModule, inputs: Sequence[Any]) -> dict[Node, NodeWork]:
    """Runs the graph on its inputs (including the weights), and returns the counted work of each node."""
    found: dict[Node, NodeWork] = {}

    class Counting(Interpreter):
        def run_node(self, n: Node) -> Any:
            parts: list[Work] = []
            with WorkCounter(parts.append):
                result = super().run_node(n)
            found[n] = NodeWork(sum(parts, NO_WORK), sum(tensor.numel() for tensor in tensors_in(result)))
            return result

    with torch.no_grad():
        Counting(graph_module).run(*inputs)
    return found


@dataclass(frozen=True)
class Part:
    """Nodes that will form one engine.

    Attributes:
        nodes: the nodes, in the graph's order.
        share: their fraction of the graph's counted work, 0..1.
        operators: qualified names of the operators that they call.
    """

    nodes: tuple[Node, ...]
    share: float
    operators: frozenset[str]


class Partition:
    """The nodes of a graph in indivisible units, with the dependencies between them.

    A unit is an operator with the entries of the tuple or list that it returns.

    Attributes:
        needs: the units that have to be computed before each unit.
    """

    def __init__(self, graph: Graph, work: Mapping[Node, NodeWork], given: Collection[Node]) -> None:
        """``work``: work of each node; ``given``: the placeholders other than weights."""
        self._given = given
        self._work = work
        self._total = sum(each.work.cost for each in work.values()) or 1
        self._nodes = [node for node in graph.nodes if node.op == "call_function" and not is_size(node)]
        self._unit = {node: _unit(node) for node in self._nodes}
        self._units = [node for node in self._nodes if self._unit[node] is node]
        self._place = {unit: i for i, unit in enumerate(self._units)}
        self.needs: dict[Node, set[Node]] = {unit: set() for unit in self._units}
        self._written: set[Node] = set()
        for node in self._nodes:
            self.needs[self._unit[node]] |= self._units_of(node.all_input_nodes) - {self._unit[node]}
        self._keep_order_of_writes()
        self._users: dict[Node, set[Node]] = {unit: set() for unit in self._units}
        for unit, needed in self.needs.items():
            for each in needed:
                self._users[each].add(unit)

    def _units_of(self, nodes: Iterable[Node]) -> set[Node]:
        return {self._unit[node] for node in nodes if node in self._unit}

    def _keep_order_of_writes(self) -> None:
        """Keeps all uses of a written tensor before or after the write, and outside of engines."""
        base: dict[Node, Node] = {}
        for node in self._nodes:
            shown = [base.get(each, each) for each in _aliased(node)]
            base[node] = shown[0] if shown else node
        for written in {base[node] for node in self._nodes if _writes(node)}:
            members = {node for node in self._nodes if base[node] is written} | {written}
            self._written |= self._units_of(members)
            touching = [
                self._unit[node]
                for node in self._nodes
                if node in members or not members.isdisjoint(node.all_input_nodes)
            ]
            for i, unit in enumerate(touching):
                earlier = touching[:i] if _writes(unit) else [each for each in touching[:i] if _writes(each)]
                self.needs[unit] |= {each for each in earlier if self._place[each] < self._place[unit]}

    def largest(self, excluded: frozenset[str] = frozenset(), *, dense_only: bool = False) -> Part | None:
        """Returns the convex part with the most work; None if none has a convolution, matrix product or attention.

        Args:
            excluded: operators that it must not contain.
            dense_only: begin and end the part at a convolution, matrix product or attention.
        """
        taken = {unit for unit in self._units if unit not in self._written and _fits_engine(unit, excluded)}
        level = self._levels(taken)
        best: set[Node] = set()
        for k in sorted({level[unit] for unit in taken}):
            found = self._extended({unit for unit in taken if level[unit] == k}, taken)
            if any(self._is_dense(unit) for unit in found) and self._cost(found) > self._cost(best):
                best = found
        if dense_only:
            best = self._between_dense(best)
        if not best:
            return None
        nodes = tuple(node for node in self._nodes if self._unit[node] in best)
        return Part(nodes, self._cost(best) / self._total, frozenset(map(schema_name, best)))

    def _is_dense(self, unit: Node) -> bool:
        """Returns true for convolutions, matrix products and attention."""
        counted = self._work.get(unit, _NOTHING)
        return counted.work.bytes > 0 and counted.work.operations > _OPERATIONS_PER_VALUE * max(counted.values, 1)

    def _cost(self, units: set[Node]) -> int:
        return sum(self._work.get(unit, _NOTHING).work.cost for unit in units)

    def _levels(self, taken: set[Node]) -> dict[Node, int]:
        """Counts how often the path to each unit leaves the set ``taken``; units of the same level are convex."""
        level: dict[Node, int] = {}
        for unit in self._units:
            level[unit] = max(
                (level[each] + (unit in taken and each not in taken) for each in self.needs[unit]), default=0
            )
        return level

    def _extended(self, part: set[Node], taken: set[Node]) -> set[Node]:
        """Adds preceding and following units as long as the part stays convex."""
        part = set(part)
        for units, neighbours in ((reversed(self._units), self._users), (self._units, self.needs)):
            beyond: set[Node] = set()  # units outside of the part from which it is reached in this direction
            for unit in units:
                if unit in part:
                    continue
                is_next = any(each in part for each in neighbours[unit])
                is_beyond = any(each in beyond for each in neighbours[unit])
                if unit in taken and is_next and not is_beyond:
                    part.add(unit)
                elif is_next or is_beyond:
                    beyond.add(unit)
        return part

    def _between_dense(self, part: set[Node]) -> set[Node]:
        dense = {unit for unit in part if self._is_dense(unit)}
        after, before = set(dense), set(dense)
        for unit in self._units:
            if unit in part and self.needs[unit] & after:
                after.add(unit)
        for unit in reversed(self._units):
            if unit in part and self._users[unit] & before:
                before.add(unit)
        found = after & before
        free = self._free_of_inputs()
        for unit in reversed(self._units):  # grids and embeddings, which follow from weights and sizes alone
            if unit in part and unit in free and self._users[unit] and self._users[unit] <= found:
                found.add(unit)
        return found

    def _free_of_inputs(self) -> set[Node]:
        free: set[Node] = set()
        for unit in self._units:
            if not any(node in self._given for node in unit.all_input_nodes) and self.needs[unit] <= free:
                free.add(unit)
        return free


def _unit(node: Node) -> Node:
    while node.target is operator.getitem and isinstance(node.args[0], Node) and node.args[0].op == "call_function":
        node = node.args[0]
    return node


def _fits_engine(unit: Node, excluded: frozenset[str]) -> bool:
    """Returns true unless an operator is known to be unsupported by every engine."""
    target = unit.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    schema = target._schema
    if not schema.name.startswith("aten::") or schema.name in excluded or _writes(unit):
        return False
    if any(tag in target.tags for tag in _DEPENDS_ON_VALUES):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags:
        given = {argument.name: value for argument, value in zip(schema.arguments, unit.args, strict=False)}
        if draws(schema.name, {**given, **unit.kwargs}):
            return False
    made = list(tensors_in(unit.meta.get("val")))
    if not made or any(_unbacked(size) for tensor in made for size in tensor.shape):
        return False
    read = tensors_in([node.meta.get("val") for node in unit.all_input_nodes])
    if any(t.dtype == torch.float64 or t.is_complex() or t.layout != torch.strided for t in (*read, *made)):
        return False
    return not any(isinstance(node.meta.get("val"), _NUMBERS) and not is_size(node) for node in unit.all_input_nodes)
