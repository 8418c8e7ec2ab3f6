"""Checks of an exported or traced head on its arguments, in addition to their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...common.value_tree import ValueTree, literal


def argument_checks(arguments: Mapping[str, ValueTree]) -> tuple[list[str], list[str]]:
    """Returns what a head does first, and where its tensors are then.

    Args:
        arguments: by the names of the parameters.

    Returns:
        Statements that refuse other lengths and plain values than the example's; an expression per tensor, in order.
    """
    code = _Code()
    for name, tree in arguments.items():
        code.visit(name, name, tree)
    return code.statements, code.tensors


class _Code:
    """Statements and expressions, as they are written."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.tensors: list[str] = []
        self._entries = 0

    def visit(self, expression: str, path: str, tree: ValueTree, *, is_entry: bool = False) -> None:
        """Adds one value.

        Args:
            expression: leads to it.
            path: the way to it, for people.
            tree: the example's.
            is_entry: whether it is of a container of several types.
        """
        told = f"hybrid_rt[head]: {path}: expected "
        if tree.kind == "tensor":
            self.tensors.append(expression)
        elif tree.kind == "constant" and tree.constant is None:
            # TorchScript takes "is None" for false, before any call, of a value that it knows as Any alone.
            is_none = f"str({expression}) == 'None'" if is_entry else f"{expression} is None"
            self._require(is_none, repr(f"{told}None, as in the example, got a value."))
        elif tree.kind == "constant":
            value = literal(tree.constant)
            got = f"{f'{told}{value}, as in the example, got '!r} + str({expression}) + '.'"
            self._require(f"{expression} == {value}", got)
        if tree.kind in ("list", "dict"):
            count = len(tree.children)
            got = f"{f'{told}{count} entries, got '!r} + str(len({expression})) + '.'"
            self._require(f"len({expression}) == {count}", got)
        keys: Sequence[str | int] = tree.keys if tree.kind == "dict" else range(len(tree.children))
        for key, child in zip(keys, tree.children, strict=True):
            entry, way = f"{expression}[{key!r}]", f"{path}[{key!r}]"
            typed = self._typed(entry, way, child) if tree.is_mixed else entry
            self.visit(typed, way, child, is_entry=tree.is_mixed)

    def _typed(self, expression: str, path: str, tree: ValueTree) -> str:
        """Gives an entry of a container of several types a name of its own type; returns that name."""
        name = f"entry_{self._entries}_"
        self._entries += 1
        self.statements.append(f"{name} = {expression}")
        if tree.kind != "constant" or tree.constant is not None:
            text = f"hybrid_rt[head]: {path}: expected {tree.annotation}, as in the example, got another type."
            self._require(f"isinstance({name}, {tree.annotation})", repr(text))
        return name

    def _require(self, condition: str, text: str) -> None:
        self.statements.append(f"assert {condition}, {text}")
