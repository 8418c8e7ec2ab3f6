"""TorchScript: the reference, and the fallback that runs wherever torch does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

from .. import torchscript
from ..specs import Artifact, blob_from_bytes
from .base import Availability, Backend

if TYPE_CHECKING:
    from ..capture import Program


class TorchScriptBackend(Backend):
    """Stores the traced segment; the run half freezes and optimises it (oneDNN) for the machine that loads it."""

    name = "torchscript"
    precisions = ("fp32",)
    files: ClassVar[Mapping[str, str]] = {"module": ".pt"}

    def availability(self) -> Availability:
        """Always available: it is torch."""
        return Availability(True, version=torch.__version__)

    def compile(self, program: Program, precision: str) -> Artifact:
        """Traces the segment."""
        spec = self.spec(program, precision, versions={"torch": torch.__version__})
        return Artifact(spec, {"module": blob_from_bytes(torchscript.to_bytes(program.traced()))})
