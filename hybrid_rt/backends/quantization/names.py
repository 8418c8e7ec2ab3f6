"""Translates an engine's names of layers into dotted paths of submodules, which the user knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...capture.program import Program

_CONVOLUTIONS = {"_convolution", "convolution", "conv1d", "conv2d", "conv3d", "conv_transpose2d"}
_PRODUCTS = {"linear", "addmm", "matmul", "mm", "bmm"}


def module_names(program: Program, convolutions: Sequence[str], products: Sequence[str]) -> dict[str, str]:
    """Returns the dotted path of the submodule behind each layer, by the engine's name of the layer.

    An engine makes one layer of each convolution and of each matrix product, in the order of torch's operations. If the
    numbers of layers and operations of one kind differ, the result has no layers of that kind.

    Args:
        program: The segment.
        convolutions: The engine's names of convolutions, in the order of torch's operations.
        products: The engine's names of matrix products, in the order of torch's operations.
    """
    operations = program.operations()
    found: dict[str, str] = {}
    for layers, kinds in ((convolutions, _CONVOLUTIONS), (products, _PRODUCTS)):
        modules = [module for operation, module, _ in operations if operation in kinds]
        if len(modules) == len(layers):
            found |= zip(layers, _unique_names(modules), strict=True)
    return found


def _unique_names(modules: Sequence[str]) -> list[str]:
    """Returns unique names: those of a module with several calls get the number of the call."""
    count, seen, names = Counter(modules), Counter[str](), []
    for module in modules:
        seen[module] += 1
        names.append(f"{module}, call {seen[module]}" if count[module] > 1 else module)
    return names
