"""A detector as a function of flat tensors: what is exported, and what is recorded where its values are not tensors."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..common.value_tree import ValueTree, tree_of

SUBJECT = "the detector's head"


def flat_arguments(detector: nn.Module, example: tuple[Any, ...]) -> tuple[dict[str, ValueTree], list[Tensor]]:
    """Returns what each argument of the example is made of, by forward's parameters, and their tensors in order.

    Raises:
        CaptureError: an argument of a kind that TorchScript has no type for.
    """
    arguments: dict[str, ValueTree] = {}
    tensors: list[Tensor] = []
    for name, value in zip(_parameters(detector, len(example)), example, strict=True):
        arguments[name], found = tree_of(value, f"{SUBJECT}, argument '{name}'", "Pass such values as the example.")
        tensors += found
    return arguments, tensors


def _parameters(detector: nn.Module, count: int) -> list[str]:
    """The names of forward's first parameters."""
    names: list[str] = []
    for name, parameter in inspect.signature(detector.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(count - len(names))]
        elif parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            names.append(name)
    return names[:count]


class FlatDetector(nn.Module):
    """A detector as a function of flat tensors; ``results`` gets what its results are made of."""

    def __init__(self, detector: nn.Module, arguments: Sequence[ValueTree], results: list[ValueTree]) -> None:
        """``arguments``: what each argument is made of."""
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
