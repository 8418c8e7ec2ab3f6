"""TorchScript: the reference, and the fallback that runs wherever torch runs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..common.errors import BackendError
from ..common.specs import Artifact, blob_from_bytes
from ..torchscript import bfloat16, head_operators, jit
from .base import Availability, Backend

if TYPE_CHECKING:
    from ..capture.program import Program


class TorchScriptBackend(Backend):
    """Stores the traced segment. The run half arranges its weights for the machine that loads it."""

    name = "torchscript"
    precisions = ("fp32", "bf16")
    files: ClassVar[Mapping[str, str]] = {"module": ".pt"}
    is_fallback = True

    def availability(self) -> Availability:
        """Reports torch's version: TorchScript is part of torch and always available."""
        return Availability(True, version=torch.__version__)

    def compile(self, program: Program, precision: str) -> Artifact:
        """Traces the segment. For bf16, also casts it with its weights and runs it once.

        Args:
            program: The captured segment.
            precision: "fp32" or "bf16".

        Returns:
            The artifact, with a TorchScript archive as its blob.

        Raises:
            CaptureError: The tracer fails, or the segment calls an operator of torchvision that hybrid_rt does not
                have.
            BackendError: torch has no bf16 kernel for an operation.
        """
        spec = self.spec(program, precision, versions={"torch": torch.__version__})
        module = head_operators.rewritten(program.traced(), f"segment '{program.name}' on {self.name}")
        if precision == "bf16":
            sides = ([tensor.dtype for tensor in specs] for specs in (program.inputs, program.outputs))
            module = bfloat16.lower_to_bfloat16(module, *sides)
        archive = jit.to_bytes(module)
        if precision == "bf16":
            _try(archive, program)
        blobs = {"module": blob_from_bytes(archive)}
        return Artifact(spec, blobs, self.weights(blobs))

    def weights(self, blobs: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, int], ...]]:
        """Returns offset and length in bytes of each record of the archive, such as its tensors."""
        archive = blobs["module"].numpy().tobytes()
        found = []
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            for entry in opened.infolist():
                lengths = archive[entry.header_offset + 26 : entry.header_offset + 30]
                name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
                found.append((entry.header_offset + 30 + name + extra, entry.file_size))
        return {"module": tuple(found)}


def _try(archive: bytes, program: Program) -> None:
    """Runs the module once, because only a run shows whether every operation has a bf16 kernel."""
    module = jit.open_archive(io.BytesIO(archive))
    try:
        with torch.no_grad():
            module(*(tensor.clone() for tensor in program.examples))
    except RuntimeError as error:
        raise BackendError.make(
            TorchScriptBackend.name,
            f"segment '{program.name}'",
            expected="operations that torch has in bf16",
            got=str(error).strip().splitlines()[-1],
            remedy="Name smaller submodules in segments= to exclude that operation, or compile it in fp32.",
            code="operator-not-in-engine",
        ) from error
