"""Converts values to ones that JSON has."""

from __future__ import annotations

import math
from typing import Any

from .tensor_tree import Node, fold


def finite(value: Any) -> Any:
    """Returns the value with null for infinity and NaN, which JSON does not have, and lists for tuples."""

    def container(node: Node, children: list[Any]) -> Any:
        return dict(zip(node.keys, children, strict=True)) if node.kind == "dict" else children

    return fold(value, lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf, container)
