"""Wraps parts of a detector that are TorchScript already in Python modules, which take hooks and have a signature."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .generated_module import generated_class


class ScriptedPart(nn.Module):
    """Base class of the generated modules. Holds the wrapped part."""

    def __init__(self, scripted: torch.jit.ScriptModule) -> None:
        """Wraps a part.

        Args:
            scripted: The part, in eval mode.
        """
        super().__init__()
        self.scripted = scripted


_TEMPLATE = '''\
class Generated(ScriptedPart):
    """Calls a part that is TorchScript already."""

    def forward(self, {parameters}):
        return self.scripted({arguments})
'''


def scripted_part(scripted: torch.jit.ScriptModule) -> ScriptedPart:
    """Returns a module that calls a scripted or traced one and has the same parameters."""
    forward: Any = scripted.forward
    arguments = forward.schema.arguments[1:]
    source = _TEMPLATE.format(
        parameters=", ".join(
            f"{argument.name}: {argument.type}" + _default(argument.default_value, argument.has_default_value())
            for argument in arguments
        ),
        arguments=", ".join(argument.name for argument in arguments),
    )
    part: ScriptedPart = generated_class(source, "Generated", {"ScriptedPart": ScriptedPart})(scripted)
    return part.train(scripted.training)


def _default(value: Any, exists: bool) -> str:
    return f" = {value!r}" if exists else ""
