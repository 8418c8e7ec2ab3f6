"""The compile half: the artifact is the unmodified traced segment."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from hybrid_rt.backends import Artifact, Availability, Backend, Program, blob_from_bytes
from hybrid_rt.torchscript import jit


class InterpreterBackend(Backend):
    """Stores the traced segment, with weights as parameters, for torch's interpreter."""

    name = "interpreter"
    precisions = ("fp32",)
    plugin_folder: ClassVar[str | None] = str(Path(__file__).parent)

    def availability(self) -> Availability:
        """Always available, because it is part of torch."""
        return Availability(True, version=torch.__version__)

    def compile(self, program: Program, precision: str) -> Artifact:
        """Traces the segment."""
        spec = self.spec(program, precision, versions={"torch": torch.__version__})
        return Artifact(spec, {"traced": blob_from_bytes(jit.to_bytes(program.traced()))})
