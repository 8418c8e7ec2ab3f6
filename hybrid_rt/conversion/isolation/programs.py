"""A program in two processes: the detector stays in one, and what a compiler asks for of it goes to the other."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import torch

from ...capture.program import Program
from ...torchscript import jit


class NotHere(Exception):
    """A compiler asks for what only the detector's own process has; the text says for what."""


def plain_parts(program: Program) -> dict[str, Any]:
    """Returns what is sent of a program at once; the rest is asked for, see :func:`form_of`."""
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
        CaptureError: the segment can't be captured in it.
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
        """Called for what was not sent, such as ``members``."""
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
        """Raises NotHere: the code of the segments is the user's."""
        raise NotHere("program.chain")

    def run(self, inputs: Any) -> tuple[torch.Tensor, ...]:
        """Raises NotHere: the code of the segments is the user's."""
        raise NotHere("program.run")
