"""Converts the conditions of an exported program on its input sizes to source, and checks shapes against them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from ..common.specs import UNBOUNDED, TensorSpec

FUNCTIONS = {
    "floor": "math.floor({})",
    "ceil": "math.ceil({})",
    "trunc": "int({})",
    "sym_float": "float({})",
    "round": "round({})",
}
"""Functions of one number in conditions, as Python and TorchScript source."""

_DRAWS = 300
_LARGEST_DRAWN = 80


class _Shape(tuple[int, ...]):
    """A shape with a method ``size``, like a tensor's."""

    def size(self, dimension: int) -> int:
        """Returns the size of a dimension."""
        return self[dimension]


def infix(words: str, tensors: Sequence[str]) -> str:
    """Converts a condition in postfix notation (see ``torch_export.conditions``) to Python and TorchScript source.

    ``tensors`` holds one expression per input.
    """
    stack: list[str] = []
    for word in words.split():
        if word.endswith(":"):
            tensor, dimension = map(int, word[:-1].split("."))
            stack.append(f"{tensors[tensor]}.size({dimension})")
        elif word in FUNCTIONS:
            stack.append(FUNCTIONS[word].format(stack.pop()))
        elif word.lstrip("-")[:1].isdigit():
            stack.append(word)
        else:
            right, left = stack.pop(), stack.pop()
            stack.append(f"{word}({left}, {right})" if word in ("min", "max") else f"({left} {word} {right})")
    return stack.pop()


def holds(words: str, shapes: Sequence[Sequence[int]]) -> bool:
    """Returns true if a condition holds for the inputs' shapes; false if it divides by zero."""
    source = infix(words, [f"shapes[{i}]" for i in range(len(shapes))])
    try:
        return bool(eval(source, {"math": math, "shapes": [_Shape(shape) for shape in shapes]}))
    except ZeroDivisionError:
        return False


def is_plain(words: str, specs: Sequence[TensorSpec]) -> bool:
    """Returns true if a condition seems to hold for all sizes above 1 in the ranges, so that messages can omit it.

    It is tried on random sizes, which are the same in each process.
    """
    draw = random.Random(0)

    def drawn(low: int, high: int) -> int:
        least = max(2, low)
        return low if low == high else draw.randint(least, max(least, _LARGEST_DRAWN if high == UNBOUNDED else high))

    return all(
        holds(words, [[drawn(low, high) for low, high in zip(spec.min, spec.max, strict=True)] for spec in specs])
        for _ in range(_DRAWS)
    )
