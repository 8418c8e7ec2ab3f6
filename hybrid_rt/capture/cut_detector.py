"""Cuts the dense part out of a detector's exported graph, as one segment whose head is the rest of the graph.

The graph with its segment is a module in Python, so that the segment is recorded and compiled like any other submodule.
The hybrid's head is generated from the same graph. The hybrid is compared with the original detector.
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
from ..common.submodules import image_transform
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
"""Name of the segment, which is not a submodule of the detector."""

_ENOUGH = 0.9
"""Fraction of the work from which a single engine for segments at module borders is kept."""


class GraphCutter:
    """Exports a detector, and cuts parts out of its graph."""

    def __init__(self, profile: Profile) -> None:
        """Exports the detector.

        Raises:
            CaptureError: torch.export does not accept it; the text names the line.
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
        """Returns the profile of the detector with its largest part as the only segment, and that part.

        Args:
            excluded: operators that the part must not contain.
            dense_only: see :meth:`Partition.largest`.

        Raises:
            CaptureError: No part is left, or the graph computes a size in a way that can't be repeated outside of it.
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
    """Returns true if segments at module borders leave much of the work to the head, or form several engines."""
    detector = profile.detector
    if image_transform(detector) is not None or next(detector.parameters(), None) is None:
        return False
    return profile.nothing is not None or len(profile.groups) > 1 or _covered(profile) < _ENOUGH


def is_better(cut: Profile, borders: Profile) -> bool:
    """Returns true if a part of the graph covers more work than segments at module borders, or as much in one go."""
    if borders.nothing is not None:
        return True
    gained = _covered(cut) - _covered(borders)
    return gained > LEAST_SHARE or (len(borders.groups) > 1 and gained > -LEAST_SHARE)


def _covered(profile: Profile) -> float:
    return sum(share.share for share in profile.shares if share.chosen)


def _sample(sample: Sample, detector: nn.Module, example: Sequence[Any]) -> Sample:
    """Returns the sample for a graph, which accepts only lists of the example's length."""
    return replace(
        sample,
        detector=detector,
        arguments=tuple(
            argument[: len(like)] if isinstance(argument, list) and isinstance(like, list) else argument
            for argument, like in zip(sample.arguments, example, strict=True)
        ),
    )


def _held(program: ExportedProgram) -> dict[str, Tensor]:
    """Returns weights, buffers and constants by the names of their placeholders."""
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
    """Returns all arguments of a program's graph: the user's tensors, weights, buffers and constants."""
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
    """Adds nodes to a graph that compute symbolic numbers from the sizes of tensors in it."""

    def __init__(self, graph: Graph, tensors: Mapping[Node, Node]) -> None:
        """``tensors``: nodes of the whole graph, with the nodes of this graph that have the same sizes."""
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
    """Splits a graph into ``inner``, a module of one part, and ``outer``, which calls that part as a segment."""

    def __init__(
        self,
        whole: GraphModule,
        part: Part,
        order: Mapping[Node, Iterable[Node]],
        inputs: Mapping[Node, str],
        held: Mapping[str, Tensor],
    ) -> None:
        """``inputs``: the detector's input tensors, with names; ``held``: weights by placeholder."""
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
        """Returns true if a user of one of the part's nodes is outside of the part, and needs more than its sizes."""
        return user not in self._part and schema_name(user) != "aten::sym_size"

    def _inputs(self) -> list[Node]:
        """Returns the tensors that the part needs, including those of which it needs only the sizes."""
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
        """Returns the nodes that depend on the part's results, or that write into its inputs."""
        found: set[Node] = set()
        for node in nodes:
            is_size_of_part = schema_name(node) == "aten::sym_size" and node.args[0] in self._part
            needed = [] if is_size_of_part else [*node.all_input_nodes, *self._order.get(node, ())]
            if node.op == "output" or any(each in found or each in self._part for each in needed):
                found.add(node)
        return found


class _CutDetector(nn.Module):
    """Runs the graph, with the part as a submodule, on the detector's arguments."""

    def __init__(self, head: ExportedHead, dense: nn.Module, name: str) -> None:
        """``name``: the detector's, for messages."""
        super().__init__()
        self.dense = dense
        self._head = head
        self._name = name

    def forward(self, *arguments: Any) -> Any:
        """Returns what the detector returns.

        Raises:
            CaptureError: The graph does not support the sizes of the arguments.
        """
        given = [tree_of(value, self._name, "") for value in arguments]
        tensors = [tensor for _, found in given for tensor in found]
        shapes = [tensor.shape for tensor in tensors]
        if [tree for tree, _ in given] != list(self._head.arguments.values()) or not self._head.takes(shapes):
            expected = " and ".join(
                [spec.sizes for spec in self._head.specs] + [text for text, _ in self._head.conditions]
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
    """Runs a graph, with a module in the place of its segment."""

    def __init__(self, graph_module: GraphModule, dense: nn.Module) -> None:
        super().__init__(graph_module)
        self._dense = dense

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(target, "_schema", None) is not None and target._schema.name == SEGMENT:
            return self._dense(*args[0])
        return super().call_function(target, args, kwargs)
