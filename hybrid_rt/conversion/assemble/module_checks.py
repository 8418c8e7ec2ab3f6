"""Checks up front that a module can be captured."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ...capture.side_effects import find_side_effects
from ...capture.working_copy import is_training
from ...common.errors import CaptureError, OptionError
from .engine_module import EngineModule


def check_module(module: nn.Module, scope: str, subject: str) -> None:
    """Checks before long work that a detector, or a part of one, can be captured.

    Args:
        module: the argument that the user passed.
        scope: the scope in the error's text, e.g. "convert".
        subject: the argument's name.

    Raises:
        OptionError: It is not a module in Python code, is in training mode, has weights without values or not on the
            CPU, or has a part that is compiled already.
    """
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise OptionError.make(
            scope,
            subject,
            expected="an nn.Module in Python code",
            got=type(module).__name__,
            remedy=f"Pass the {subject} before scripting.",
            code="detector-not-ready",
        )
    children = [(name, child) for name, child in module.named_modules() if child.training]
    training = [name or type(module).__name__ for name, child in children if module.training or is_training(child)]
    if training:
        raise OptionError.make(
            scope,
            subject,
            expected="eval mode",
            got=f"training mode in {', '.join(training[:3])}",
            remedy=f"Call {subject}.eval() first.",
            code="detector-not-ready",
        )
    _check_weights(module, scope, subject)
    compiled = [name or subject for name, child in module.named_modules() if isinstance(child, EngineModule)]
    if compiled:
        raise OptionError.make(
            scope,
            subject,
            expected="modules of torch's operators",
            got=f"a compiled engine as {', '.join(compiled)}",
            remedy="Restore the module that was passed to compile_segment; convert() compiles it.",
            code="detector-not-ready",
        )


def _check_weights(module: nn.Module, scope: str, subject: str) -> None:
    """Checks that weights and buffers have values, on the CPU.

    Raises:
        OptionError: A weight or buffer has no values yet, or is on another device.
    """
    empty = [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if is_lazy(tensor)]
    if empty:
        raise OptionError.make(
            scope,
            subject,
            expected="weights with values",
            got=f"uninitialised lazy weights: {', '.join(empty[:3])}",
            remedy=f"Run {subject}(...) once, then load its weights.",
            code="detector-not-ready",
        )
    elsewhere = {str(tensor.device) for tensor in [*module.parameters(), *module.buffers()]} - {"cpu"}
    if elsewhere:
        raise OptionError.make(
            scope,
            subject,
            expected="all weights on the cpu",
            got=f"weights on {', '.join(sorted(elsewhere))}",
            remedy="On 'meta' they have no values: build it on the CPU, or call to_empty(device='cpu') and load its "
            "state_dict."
            if "meta" in elsewhere
            else f"Call {subject}.cpu() first; load(device=) says where the bundle will run.",
            code="detector-not-ready",
        )


class Alone(nn.Module):
    """A detector that consists of one segment, which is named after the module's class."""

    def __init__(self, module: nn.Module) -> None:
        """``module``: the segment."""
        super().__init__()
        self.name = type(module).__name__
        self.add_module(self.name, module)

    def forward(self, *arguments: Any) -> Any:
        """Calls the module."""
        return self.get_submodule(self.name)(*arguments)


def check_repeatable(module: nn.Module, arguments: tuple[Any, ...], scope: str) -> None:
    """Checks that a module runs the same operations in every call, on its inputs alone, as an engine does.

    Raises:
        CaptureError: It does not; the text names the reason.
    """
    alone = Alone(module)
    findings = find_side_effects(alone, arguments)
    if alone.name in findings:
        raise CaptureError.make(
            scope,
            f"module {alone.name}",
            expected="the same operations in every call, on its inputs alone",
            got=findings[alone.name],
            remedy="An engine can't repeat that: change the module, or use a smaller one.",
            code="not-repeatable",
        )
