"""Names of layers that the user knows: the dotted paths of submodules, in place of the engines' own names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...capture.program import Program

_CONVOLUTIONS = {"_convolution", "convolution", "conv1d", "conv2d", "conv3d", "conv_transpose2d"}
_PRODUCTS = {"linear", "addmm", "matmul", "mm", "bmm"}


def module_names(program: Program, convolutions: Sequence[str], products: Sequence[str]) -> dict[str, str]:
    """Returns by an engine's name of a layer that of the submodule that it comes from.

    An engine makes one layer of each convolution and of each matrix product, in the order of torch's operations. If
    their numbers differ, nothing is returned for them.

    Args:
        program: the segment.
        convolutions: the engine's names for them, in the order of torch's operations.
        products: likewise.
    """
    operations = program.operations()
    found: dict[str, str] = {}
    for layers, kinds in ((convolutions, _CONVOLUTIONS), (products, _PRODUCTS)):
        modules = [module for operation, module, _ in operations if operation in kinds]
        if len(modules) == len(layers):
            found |= zip(layers, _told_apart(modules), strict=True)
    return found


def _told_apart(modules: Sequence[str]) -> list[str]:
    """A module that is called several times has a name for each call."""
    count, seen, names = Counter(modules), Counter[str](), []
    for module in modules:
        seen[module] += 1
        names.append(f"{module}, call {seen[module]}" if count[module] > 1 else module)
    return names
