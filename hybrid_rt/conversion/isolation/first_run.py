"""Runs a new artifact once, because that is where a vendor's runtime is most likely to crash."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ...bundle.blob_table import pack
from ...common.errors import BackendError
from ...common.specs import Artifact
from ..assemble.engine_module import make_engine, prepare, run_flat


def run_once(artifact: Artifact, examples: Sequence[Tensor]) -> None:
    """Runs an artifact on an example, as verification will.

    It only shows that the process survives. Verification reports an engine that can't run here or refuses the inputs.
    """
    device = artifact.spec.device
    if device == "cuda" and not torch.cuda.is_available():
        return
    engine = make_engine(["segment"], pack([artifact]))
    with contextlib.suppress(BackendError, RuntimeError):
        prepare(engine, device=device, emulate_precision=True)
        run_flat(engine, tuple(tensor.to(device) for tensor in examples))
        if device == "cuda":
            torch.cuda.synchronize()
