"""A detector whose dense part was cut out of its exported graph: that part is one segment, the rest its head.

The graph with the segment in it is a module in Python, in which the segment is recorded and compiled like any other
submodule; the head of the hybrid is written from the same graph. It is compared with the detector itself.
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.proxy import GraphAppendingTracer, Proxy

from ..common.errors import CaptureError
from ..common.value_tree import tree_of
from .export_head import ExportedHead, export_head
from .export_stand_in import SEGMENT
from .flat_detector import SUBJECT, flat_arguments
from .graph_cut import Part, Partition, counted, is_size, schema_name, without_notes
from .observe import observe
from .probe_inputs import Sample
from .profile import Profile
from .segments import LEAST_SHARE, Share

DENSE = "dense"
"""The segment's name: the part has none in the detector."""

_ENOUGH = 0.9
"""Of the work: segments at module borders that do as much in one engine are left as they are."""


class GraphCutter:
    """A detector's exported graph, from which parts are cut."""

    def __init__(self, profile: Profile) -> None:
        """Exports the detector.

        Raises:
            CaptureError: torch.export does not take it; the text has the line.
        """
        self._profile = profile
        self._head = export_head(profile.detector, profile.example, [])
        program = self._head.program
        _, tensors = flat_arguments(profile.detector, profile.example)
        self._graph = without_notes(program.graph_module)
        self._held = _held(program)
        self._user_inputs = _user_inputs(program, self._graph.graph)
        with torch.no_grad():
            given = _all_inputs(program, [tensor.clone() for tensor in tensors])
            self._partition = Partition(self._graph.graph, counted(self._graph, given), set(self._user_inputs))

    def profile(self, excluded: frozenset[str], *, dense_only: bool) -> tuple[Profile, Part]:
        """Returns the profile of the detector with its largest part as the one segment, and the part.

        Args:
            excluded: operators that the part must not have.
            dense_only: see :meth:`Partition.largest`.

        Raises:
            CaptureError: nothing is left of it, or the graph computes sizes in a way that can't be repeated outside.
        """
        part = self._partition.largest(excluded, dense_only=dense_only)
        if part is None or part.share < LEAST_SHARE:
            raise _refused("a convolution, matrix product or attention in the exported graph, for an engine", "none")
        names = [re.sub(r"\W+", "_", spec.name).strip("_") for spec in self._head.specs]
        cut = _Cut(
            self._graph, part, self._partition.needs, dict(zip(self._user_inputs, names, strict=True)), self._held
        )
        program = copy.copy(self._head.program)
        program._graph_module = cut.outer
        head = replace(self._head, program=program)
        profile = self._profile
        detector = _CutDetector(head, cut.inner, type(profile.detector).__name__).eval()
        observed = observe(detector, profile.example)
        share = Share(
            DENSE,
            observed.uses[DENSE].seconds * 1e3,
            part.share,
            True,
            "",
            observed.measured_share(DENSE),
            observed.uses[DENSE].work.operations,
            observed.uses[DENSE].work.bytes,
        )
        example = profile.example
        found = replace(
            profile,
            observation=replace(observed, result=profile.observation.result, seconds=profile.observation.seconds),
            samples=[_sample(each, detector, example) for each in profile.samples],
            first={},
            shares=[share],
            groups=[[DENSE]],
            named=True,
            cut=head,
            original=profile.detector,
        )
        return found, part


def is_worth_cutting(profile: Profile) -> bool:
    """Tells whether segments at module borders leave much of the work to the head, or are several engines."""
    detector = profile.detector
    if hasattr(getattr(detector, "transform", None), "min_size") or next(detector.parameters(), None) is None:
        return False
    return profile.nothing is not None or len(profile.groups) > 1 or _covered(profile) < _ENOUGH


def is_better(cut: Profile, borders: Profile) -> bool:
    """Tells whether a part of the graph does more than segments at module borders, or as much in fewer engines."""
    if borders.nothing is not None:
        return True
    gained = _covered(cut) - _covered(borders)
    return gained > LEAST_SHARE or (len(borders.groups) > 1 and gained > -LEAST_SHARE)


def _covered(profile: Profile) -> float:
    return sum(share.share for share in profile.shares if share.chosen)


def _sample(sample: Sample, detector: nn.Module, example: Sequence[Any]) -> Sample:
    """The sample for a graph, which takes lists of the example's length only."""
    return replace(
        sample,
        detector=detector,
        arguments=tuple(
            argument[: len(like)] if isinstance(argument, list) and isinstance(like, list) else argument
            for argument, like in zip(sample.arguments, example, strict=True)
        ),
    )


def _held(program: ExportedProgram) -> dict[str, Tensor]:
    """Weights, buffers and constants by the names of their placeholders."""
    held = {**program.state_dict, **program.constants}
    return {
        spec.arg.name: held[str(spec.target)].detach()
        for spec in program.graph_signature.input_specs
        if spec.kind is not InputKind.USER_INPUT
    }


def _user_inputs(program: ExportedProgram, graph: Graph) -> list[Node]:
    names = program.graph_signature.user_inputs
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    return [placeholders[str(name)] for name in names]


def _all_inputs(program: ExportedProgram, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The arguments of a program's graph."""
    remaining, held = iter(tensors), _held(program)
    return [
        next(remaining) if spec.kind is InputKind.USER_INPUT else held[spec.arg.name]
        for spec in program.graph_signature.input_specs
    ]


def _refused(expected: str, got: str) -> CaptureError:
    return CaptureError.make(
        "capture",
        SUBJECT,
        expected=expected,
        got=got,
        remedy="Use segments='auto', or name submodules in segments=.",
        code="no-segment-pays",
    )


class _Sizes:
    """Writes numbers that follow from sizes into a graph, as functions of the sizes of some tensors in it."""

    def __init__(self, graph: Graph, tensors: Mapping[Node, Node]) -> None:
        """``tensors``: nodes of the whole graph, and the nodes in this one that have the same sizes."""
        self._graph = graph
        self._tracer = GraphAppendingTracer(graph)
        self._places: dict[Any, tuple[Node, int]] = {}
        self._known: dict[Any, Any] = {}
        for whole, own in tensors.items():
            for d, size in enumerate(whole.meta["val"].shape):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    self._places.setdefault(size.node.expr, (own, d))

    def missing(self, value: Any) -> set[Any]:
        """Returns the symbols of a number that no tensor has as a size."""
        return {symbol for symbol in _symbols(value) if symbol not in self._places}

    def written(self, value: Any) -> Any:
        """Returns the node that computes a number, or the number itself."""
        from torch.utils._sympy.interp import sympy_interp
        from torch.utils._sympy.reference import PythonReferenceAnalysis

        if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return value
        expression = value.node.expr
        if self.missing(value):
            raise _refused("sizes that follow from those of the inputs", f"{expression}")
        if expression not in self._known:
            symbols = {symbol: Proxy(self._size(symbol), self._tracer) for symbol in _symbols(value)}
            found = sympy_interp(PythonReferenceAnalysis, symbols, expression)
            node = found.node if isinstance(found, Proxy) else found
            if isinstance(node, Node):
                node.meta["val"] = value
            self._known[expression] = node
        return self._known[expression]

    def _size(self, symbol: Any) -> Node:
        if symbol not in self._known:
            self._known[symbol] = self._graph.call_function(torch.ops.aten.sym_size.int, self._places[symbol])
        node: Node = self._known[symbol]
        return node


def _symbols(value: Any) -> Sequence[Any]:
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return []
    return sorted(value.node.expr.free_symbols, key=str)


class _Cut:
    """A graph in two: ``inner``, a module of one part of it, and ``outer``, which calls that part as a segment."""

    def __init__(
        self,
        whole: GraphModule,
        part: Part,
        order: Mapping[Node, Iterable[Node]],
        inputs: Mapping[Node, str],
        held: Mapping[str, Tensor],
    ) -> None:
        """``inputs``: the tensors that the detector is given, with names; ``held``: weights by placeholder."""
        self._whole = whole
        self._order = order
        self._part = dict.fromkeys(part.nodes)
        self._names = dict(inputs)
        self._held = held
        self._given = self._inputs()
        self._made = [node for node in part.nodes if any(self._leaves(user) for user in node.users)]
        self.inner = self._inner_module()
        self.outer = self._outer_module()

    def _leaves(self, user: Node) -> bool:
        """Tells whether a user of a node of the part is outside of it, and needs more than the node's sizes."""
        return user not in self._part and schema_name(user) != "aten::sym_size"

    def _inputs(self) -> list[Node]:
        """The tensors that the part gets, with those whose sizes alone it needs."""
        tensors: dict[Node, None] = {}
        numbers: list[Any] = []
        for node in self._part:
            for each in node.all_input_nodes:
                if is_size(each):
                    numbers.append(each.meta["val"])
                elif each not in self._part and each.name not in self._held:
                    tensors[each] = None
        for tensor in self._names:
            sizes = _Sizes(Graph(), {each: each for each in tensors})
            own = _Sizes(Graph(), {tensor: tensor})
            if any(symbol not in own.missing(number) for number in numbers for symbol in sizes.missing(number)):
                tensors[tensor] = None
        return list(tensors)

    def _inner_module(self) -> GraphModule:
        graph, root = Graph(), nn.Module()
        copied: dict[Node, Node] = {}
        for node in self._given:
            copied[node] = graph.placeholder(self._names.get(node, node.name))
            copied[node].meta["val"] = node.meta["val"]
        sizes = _Sizes(graph, dict(copied))

        def given(node: Node) -> Any:
            if node in copied:
                return copied[node]
            if is_size(node):
                return sizes.written(node.meta["val"])
            name = f"constant_{node.name}"
            root.register_buffer(name, self._held[node.name])
            copied[node] = graph.get_attr(name)
            return copied[node]

        for node in self._part:
            copied[node] = graph.node_copy(node, given)
        graph.output(tuple(copied[node] for node in self._made))
        return GraphModule(root, graph, "Dense")

    def _outer_module(self) -> GraphModule:
        graph = Graph()
        copied: dict[Node, Any] = {}
        nodes = [node for node in self._whole.graph.nodes if node not in self._part]
        behind = self._behind(nodes)
        for node in (node for node in nodes if node.op == "placeholder"):
            copied[node] = graph.node_copy(node)
        sizes = _Sizes(graph, {node: copied[node] for node in self._names})

        def copy_node(node: Node) -> None:
            if schema_name(node) == "aten::sym_size" and node.args[0] in self._part:
                copied[node] = sizes.written(node.meta["val"])
            elif node.op != "placeholder":
                copied[node] = graph.node_copy(node, copied.__getitem__)

        for node in nodes:
            if node not in behind:
                copy_node(node)
        segment = graph.call_function(
            torch.ops.hybrid_rt_export.segment.default, ([copied[n] for n in self._given], DENSE)
        )
        for i, node in enumerate(self._made):
            copied[node] = graph.call_function(operator.getitem, (segment, i))
            copied[node].meta["val"] = node.meta["val"]
        for node in nodes:
            if node in behind:
                copy_node(node)
        return GraphModule(self._whole, graph, "Outer")

    def _behind(self, nodes: Sequence[Node]) -> set[Node]:
        """The nodes that need what the part computes, or that write into what it was given."""
        found: set[Node] = set()
        for node in nodes:
            is_size_of_part = schema_name(node) == "aten::sym_size" and node.args[0] in self._part
            needed = [] if is_size_of_part else [*node.all_input_nodes, *self._order.get(node, ())]
            if node.op == "output" or any(each in found or each in self._part for each in needed):
                found.add(node)
        return found


class _CutDetector(nn.Module):
    """The graph with the part as its submodule, for the detector's arguments."""

    def __init__(self, head: ExportedHead, dense: nn.Module, name: str) -> None:
        """``name``: the detector's, for messages."""
        super().__init__()
        self.dense = dense
        self._head = head
        self._name = name

    def forward(self, *arguments: Any) -> Any:
        """Returns what the detector returns.

        Raises:
            CaptureError: arguments that the graph was not made for.
        """
        given = [tree_of(value, self._name, "") for value in arguments]
        tensors = [tensor for _, found in given for tensor in found]
        shapes = [tensor.shape for tensor in tensors]
        if [tree for tree, _ in given] != list(self._head.arguments.values()) or not self._head.takes(shapes):
            expected = " and ".join(
                [spec.sizes for spec in self._head.specs] + [told for told, _ in self._head.conditions]
            )
            raise CaptureError.make(
                "capture",
                SUBJECT,
                expected=f"inputs that its exported graph takes: {expected}",
                got=" and ".join(str([*shape]) for shape in shapes),
                code="sizes-not-taken",
            )
        inputs = _all_inputs(self._head.program, [tensor.contiguous() for tensor in tensors])
        computed = _Calling(self._head.program.graph_module, self.dense).run(*inputs)
        return self._head.result.build(iter(computed))


class _Calling(Interpreter):
    """Runs a graph, and a module in the place of its segment."""

    def __init__(self, graph_module: GraphModule, dense: nn.Module) -> None:
        super().__init__(graph_module)
        self._dense = dense

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(target, "_schema", None) is not None and target._schema.name == SEGMENT:
            return self._dense(*args[0])
        return super().call_function(target, args, kwargs)
