"""Shares a program between two processes: one keeps the detector, and the other requests the forms that it compiles."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import torch

from ...capture.program import Program
from ...torchscript import jit


class NotHere(Exception):
    """A compiler needs an object that only the detector's own process has; the text names it."""


def plain_parts(program: Program) -> dict[str, Any]:
    """Returns the parts of a program that are sent with a request; the others are sent on demand by :func:`form_of`."""
    return {
        "name": program.name,
        "inputs": program.inputs,
        "outputs": program.outputs,
        "calls": program.calls[:1],
        "calibration": program.calibration,
        "by_export": program.by_export,
    }


def form_of(program: Program, form: str, *arguments: Any) -> Any:
    """Returns one form of a program, as :class:`RemoteProgram` asks for it.

    Raises:
        CaptureError: The segment can't be captured in that form.
    """
    if form == "traced":
        return jit.to_bytes(program.traced())
    if form == "exported":
        exported = program.exported(*arguments)
        stream = io.BytesIO()
        torch.export.save(exported, stream)
        return stream.getvalue(), list(exported._guards_code)
    return getattr(program, form)(*arguments)


class RemoteProgram(Program):
    """A program whose detector is in another process."""

    def __init__(self, parts: dict[str, Any], ask: Callable[..., Any]) -> None:
        """``parts``: see :func:`plain_parts`; ``ask``: :func:`form_of` in the other process."""
        for name, value in parts.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_ask", ask)

    def __getattr__(self, name: str) -> Any:
        """Raises an error for attributes that were not sent, such as ``members``."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotHere(f"program.{name}")

    @functools.cached_property
    def _traced(self) -> torch.jit.ScriptModule:
        archive = self._ask("traced")
        try:
            return jit.open_archive(io.BytesIO(archive))
        except RuntimeError:
            import torchvision  # noqa: F401  it may call operators of this package

            try:
                return jit.open_archive(io.BytesIO(archive))
            except RuntimeError as error:
                raise NotHere(f"what its code calls: {error}") from error

    def onnx(self) -> bytes:
        """See :class:`Program`."""
        model: bytes = self._ask("onnx")
        return model

    def wide_numbers(self) -> str:
        """See :class:`Program`."""
        found: str = self._ask("wide_numbers")
        return found

    def operations(self) -> list[tuple[str, str, str]]:
        """See :class:`Program`."""
        found: list[tuple[str, str, str]] = self._ask("operations")
        return found

    def exported(self, inside: torch.dtype | None = None) -> torch.export.ExportedProgram:
        """See :class:`Program`."""
        from ...torchscript import fake_engine  # noqa: F401  it may call operators of ours, which it gives shapes

        archive, guards = self._ask("exported", inside)
        exported = torch.export.load(io.BytesIO(archive))
        exported._guards_code = guards  # which its file does not keep
        return exported

    def chain(self, inside: torch.dtype | None = None) -> Any:
        """Raises NotHere, because the user's code for the segments is in the other process."""
        raise NotHere("program.chain")

    def run(self, inputs: Any) -> tuple[torch.Tensor, ...]:
        """Raises NotHere, because the user's code for the segments is in the other process."""
        raise NotHere("program.run")
