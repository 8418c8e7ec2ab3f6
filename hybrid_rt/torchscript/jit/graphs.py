"""Reads and modifies the graphs of TorchScript modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ...common.errors import FusionError
from ...common.specs import engine_name


def connect(module: torch.jit.ScriptModule, segments: Mapping[str, Sequence[str]]) -> None:
    """Connects the stand-ins of a fused engine's later segments to the engine's outputs, in a frozen module.

    Args:
        module: The head with its stand-ins. It is modified.
        segments: Segments of each engine, by the engine's name.

    Raises:
        FusionError: On some path, the head runs a later segment without the first one.
    """

    def visit(block: Any, engines: dict[str, Any]) -> None:
        for node in block.nodes():
            if node.kind() == "hybrid_rt::run_engine":
                engine = next(node.inputs()).toIValue()
                engines[engine_name(engine.segments())] = node.output()
            elif node.kind() == "hybrid_rt::handed_on":
                segment = list(node.inputs())[2].toIValue()
                if segment not in engines:
                    error = FusionError.make(
                        "capture",
                        f"segments '{segment}'",
                        expected="the head to run all of them in order whenever it runs the last one",
                        got="a branch or loop between them",
                        remedy="Convert with fuse=False.",
                        code="segments-not-one",
                    )
                    error.segments = tuple(segments[segment])
                    raise error
                node.replaceInput(0, engines[segment])
            for inner in node.blocks():
                visit(inner, dict(engines))

    visit(module.graph, {})
    torch._C._jit_pass_dce(module.graph)


def engines_of(module: torch.jit.ScriptModule) -> dict[str, Any]:
    """Returns the engines of a frozen hybrid by name."""
    engines: dict[str, Any] = {}
    for node in engine_runs(module.graph):
        engine = next(node.inputs()).toIValue()
        engines[engine_name(engine.segments())] = engine
    return engines


def operations_of(module: torch.jit.ScriptModule, name: str) -> list[tuple[str, str, str]]:
    """Returns a traced module's operations in order: operator, calling submodule, source line.

    Args:
        module: Module that was traced from a :class:`hybrid_rt.common.structure.Flattened`, whose submodule is
            ``module``.
        name: Dotted path of that submodule, which replaces the recorded one.
    """
    found = []
    for node in nodes_of(module.graph):
        if not node.kind().startswith("aten::"):
            continue
        scope = node.scopeName().rpartition("/")[2].removeprefix("__module.").removeprefix("module")
        lines = [line for line in node.sourceRange().splitlines() if f"{torch.__path__[0]}/" not in line]
        line = lines[0].strip() if lines else ""
        found.append((node.kind().removeprefix("aten::"), name + scope, line))
    return found


def tidy(graph: Any) -> None:
    """Removes unused nodes from a modified graph and lets torch check the rest."""
    torch._C._jit_pass_dce(graph)
    torch._C._jit_pass_lint(graph)


def nodes_of(block: Any) -> Iterator[Any]:
    """Yields all nodes, including those of inner blocks."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from nodes_of(inner)


def engine_runs(block: Any) -> Iterator[Any]:
    """Returns the nodes that run engines."""
    return (node for node in nodes_of(block) if node.kind() == "hybrid_rt::run_engine")


def members_of(chained: torch.jit.ScriptModule) -> list[tuple[torch.jit.ScriptModule, tuple[int, ...]]]:
    """Returns the modules that :func:`chain` joined, with the sources of their inputs, also after saving and loading.

    The result is empty for a module that :func:`chain` did not make.
    """
    outputs: dict[int, int] = {}  # by call result: index of its first tensor among all outputs
    first = 0
    members: list[tuple[torch.jit.ScriptModule, tuple[int, ...]]] = []
    for node in chained.graph.nodes():
        if node.kind() != "prim::CallMethod":
            continue
        called, *inputs = node.inputs()
        name = called.node().s("name") if called.node().kind() == "prim::GetAttr" else ""
        if name != f"member_{len(members)}":
            continue
        sources = []
        for value in inputs:
            if value.node().kind() == "prim::TupleIndex":
                result, index = value.node().inputs()
                place: Any = index.toIValue()
                sources.append(outputs[result.unique()] + int(place))
        members.append((getattr(chained, name), tuple(sources)))
        outputs[node.output().unique()] = first
        first += len(node.output().type().elements())
    return members


def replace_operator(graph: Any, name: str, other: str, inputs: Sequence[str], results: int) -> None:
    """Replaces each call of an operator in a graph by a call of another one with the same inputs and results."""
    pattern = "graph({inputs}):\n    {results} = {op}({inputs})\n    return ({results})"
    names = {"inputs": ", ".join(f"%{each}" for each in inputs), "results": ", ".join(f"%r{i}" for i in range(results))}
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(
        pattern.format(op=name, **names), pattern.format(op=other, **names), graph
    )


def graphs_of(module: torch.jit.ScriptModule) -> Iterator[Any]:
    """Yields the graphs of all methods of a module and its submodules, with called functions inlined."""
    for part in module.modules():
        native: Any = getattr(part, "_c", None)  # placeholders for frozen constants have none
        for name in native._method_names() if native is not None else ():
            graph = native._get_method(name).graph
            if any(node.kind() == "prim::CallFunction" for node in nodes_of(graph)):
                torch._C._jit_pass_inline(graph)
            yield graph


def returns_losses_and_detections(module: torch.jit.ScriptModule) -> bool:
    """Returns true if a scripted detector returns torchvision's pair (losses, detections)."""
    returned = module.forward.schema.returns[0].type
    return str(returned) == "Tuple[Dict[str, Tensor], List[Dict[str, Tensor]]]"


def signature_of(module: torch.jit.ScriptModule) -> tuple[list[str], list[str]]:
    """Returns the types of forward's required parameters and of its results as in TorchScript: ``List[Tensor]``."""
    schema = module.forward.schema
    taken = [str(argument.type) for argument in schema.arguments[1:] if argument.default_value is None]
    return taken, [str(returned.type) for returned in schema.returns]
