"""Checks of an exported or traced head on its arguments, in addition to their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...common.value_tree import ValueTree, literal


def argument_checks(arguments: Mapping[str, ValueTree]) -> Iterator[str]:
    """Yields statements that refuse other lengths and plain values than the example's."""
    for name, tree in arguments.items():
        for path, node in tree.paths(name):
            text = f"hybrid_rt[head]: {path}: expected "
            if node.kind in ("list", "dict"):
                count = len(node.children)
                yield f"assert len({path}) == {count}, {f'{text}{count} entries, got '!r} + str(len({path})) + '.'"
            elif node.kind == "constant" and node.constant is None:
                yield f"assert {path} is None, {f'{text}None, as in the example, got a value.'!r}"
            elif node.kind == "constant":
                value = literal(node.constant)
                yield f"assert {path} == {value}, {f'{text}{value}, as in the example, got '!r} + str({path}) + '.'"
