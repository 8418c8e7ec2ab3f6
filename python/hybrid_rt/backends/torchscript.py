"""TorchScript: the reference, and the fallback that runs wherever torch does."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .. import torchscript
from ..specs import Artifact, blob_from_bytes
from .base import Availability, Backend

if TYPE_CHECKING:
    from ..capture import Program


class TorchScriptBackend(Backend):
    """Stores the traced segment; the run half lays out its weights for the machine that loads it."""

    name = "torchscript"
    precisions = ("fp32",)
    files: ClassVar[Mapping[str, str]] = {"module": ".pt"}

    def availability(self) -> Availability:
        """Always available: it is torch."""
        return Availability(True, version=torch.__version__)

    def compile(self, program: Program, precision: str) -> Artifact:
        """Traces the segment."""
        spec = self.spec(program, precision, versions={"torch": torch.__version__})
        archive = torchscript.to_bytes(program.traced())
        blobs = {"module": blob_from_bytes(archive)}
        return Artifact(spec, blobs, self.weights(blobs))

    def weights(self, blobs: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, int], ...]]:
        """The records of the archive, of which each tensor is one."""
        archive = blobs["module"].numpy().tobytes()
        found = []
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            for entry in opened.infolist():
                lengths = archive[entry.header_offset + 26 : entry.header_offset + 30]
                name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
                found.append((entry.header_offset + 30 + name + extra, entry.file_size))
        return {"module": tuple(found)}
