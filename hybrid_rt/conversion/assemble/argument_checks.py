"""Checks of an exported or traced head on its arguments, in addition to their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...common.value_tree import ValueTree, literal


def argument_checks(arguments: Mapping[str, ValueTree]) -> tuple[list[str], list[str]]:
    """Generates the code that checks a head's arguments and takes the tensors out of them.

    Args:
        arguments: the example's arguments, by the names of the parameters.

    Returns:
        Statements that refuse lengths and plain values that differ from the example's, and one expression per tensor,
        in order.
    """
    code = _Code()
    for name, tree in arguments.items():
        code.visit(name, name, tree)
    return code.statements, code.tensors


class _Code:
    """Collects the statements and the tensors' expressions."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.tensors: list[str] = []
        self._entries = 0

    def visit(self, expression: str, path: str, tree: ValueTree, *, is_entry: bool = False) -> None:
        """Adds one value.

        Args:
            expression: TorchScript code that evaluates to it.
            path: readable path of the value, for messages.
            tree: structure of the example's value.
            is_entry: true for an entry of a container whose entries have different types.
        """
        expected = f"hybrid_rt[head]: {path}: expected "
        if tree.kind == "tensor":
            self.tensors.append(expression)
        elif tree.kind == "constant" and tree.constant is None:
            # When TorchScript compiles "is None" for a value of type Any, it replaces it with False.
            is_none = f"str({expression}) == 'None'" if is_entry else f"{expression} is None"
            self._require(is_none, repr(f"{expected}None, as in the example, got a value."))
        elif tree.kind == "constant":
            value = literal(tree.constant)
            got = f"{f'{expected}{value}, as in the example, got '!r} + str({expression}) + '.'"
            self._require(f"{expression} == {value}", got)
        if tree.kind in ("list", "dict"):
            count = len(tree.children)
            got = f"{f'{expected}{count} entries, got '!r} + str(len({expression})) + '.'"
            self._require(f"len({expression}) == {count}", got)
        keys: Sequence[str | int] = tree.keys if tree.kind == "dict" else range(len(tree.children))
        for key, child in zip(keys, tree.children, strict=True):
            entry, way = f"{expression}[{key!r}]", f"{path}[{key!r}]"
            typed = self._typed(entry, way, child) if tree.is_mixed else entry
            self.visit(typed, way, child, is_entry=tree.is_mixed)

    def _typed(self, expression: str, path: str, tree: ValueTree) -> str:
        """Assigns an entry of a mixed container to a variable, checks its type, and returns the variable's name."""
        name = f"entry_{self._entries}_"
        self._entries += 1
        self.statements.append(f"{name} = {expression}")
        if tree.kind != "constant" or tree.constant is not None:
            text = f"hybrid_rt[head]: {path}: expected {tree.annotation}, as in the example, got another type."
            self._require(f"isinstance({name}, {tree.annotation})", repr(text))
        return name

    def _require(self, condition: str, text: str) -> None:
        self.statements.append(f"assert {condition}, {text}")
