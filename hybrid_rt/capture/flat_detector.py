"""Wraps a detector as a function of flat tensors, for torch.export and torch.jit.trace."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..common.value_tree import ValueTree, tree_of

SUBJECT = "the detector's head"


def flat_arguments(detector: nn.Module, example: tuple[Any, ...]) -> tuple[dict[str, ValueTree], list[Tensor]]:
    """Returns the structure of each argument of the example, by forward's parameters, and their tensors in order.

    Raises:
        CaptureError: TorchScript has no type for an argument.
    """
    arguments: dict[str, ValueTree] = {}
    tensors: list[Tensor] = []
    for name, value in zip(_parameters(detector, len(example)), example, strict=True):
        arguments[name], found = tree_of(value, f"{SUBJECT}, argument '{name}'", "Pass such values as the example.")
        tensors += found
    return arguments, tensors


def _parameters(detector: nn.Module, count: int) -> list[str]:
    """Returns the names of forward's first parameters."""
    names: list[str] = []
    for name, parameter in inspect.signature(detector.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(count - len(names))]
        elif parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            names.append(name)
    return names[:count]


class FlatDetector(nn.Module):
    """A detector as a function of flat tensors; each run appends the structure of its result to ``results``."""

    def __init__(self, detector: nn.Module, arguments: Sequence[ValueTree], results: list[ValueTree]) -> None:
        """``arguments``: the structure of each argument."""
        super().__init__()
        self.detector = detector
        self.arguments = tuple(arguments)
        self.note = results.append

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Returns what the detector returns."""
        remaining = iter(tensors)
        return self.detector(*(argument.build(remaining) for argument in self.arguments))

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        """Returns the tensors and computed numbers of the result."""
        remedy = "Wrap the detector in a module that returns such values."
        tree, computed = tree_of(self.run(tensors), f"{SUBJECT}, its result", remedy, is_result=True)
        self.note(tree)
        return tuple(computed)
