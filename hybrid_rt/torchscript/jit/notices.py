"""Silences what torch says of TorchScript."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's notices that TorchScript is deprecated, and the tracer's about shapes that it generalises."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*")
        warnings.filterwarnings("ignore", message=r".*TorchScript.*")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield
