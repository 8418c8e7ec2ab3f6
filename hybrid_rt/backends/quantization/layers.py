"""Finds the layers of a graph that int8 could compute, and which of them matter most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A node of an engine's graph.

    Attributes:
        name: its name in the engine's model.
        is_layer: int8 computes it.
        reads: names of the values that it reads.
        writes: names of the values that it writes.
    """

    name: str
    is_layer: bool
    reads: Sequence[str]
    writes: Sequence[str]


@dataclass(frozen=True)
class Layers:
    """Layers that int8 could compute.

    Attributes:
        names: their names, in the order in which they run.
        edges: the first and the last ones.
        branches: for each output of the graph the layers that lead only to it.
    """

    names: list[str]
    edges: frozenset[str]
    branches: dict[str, frozenset[str]]

    @classmethod
    def of(cls, nodes: Iterable[Node], results: Mapping[str, str]) -> Layers:
        """Finds the layers of a graph.

        Args:
            nodes: in an order in which they can run.
            results: the value behind each output of the graph, by the output's name.
        """
        names: list[str] = []
        before: dict[str, frozenset[str]] = {}
        first: set[str] = set()
        inner: set[str] = set()
        for node in nodes:
            above = _union(before.get(value, frozenset()) for value in node.reads)
            if node.is_layer:
                names.append(node.name)
                inner |= above
                if not above:
                    first.add(node.name)
                above |= {node.name}
            before |= dict.fromkeys(node.writes, above)
        reached = {output: before.get(value, frozenset()) for output, value in results.items()}
        branches = {
            output: found - _union(others for other, others in reached.items() if other != output)
            for output, found in reached.items()
        }
        return cls(names, frozenset(first | (set(names) - inner)), branches)


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*sets)
