"""Silences torch's warnings about TorchScript."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses torch's deprecation notices of TorchScript, and the tracer's warnings about shapes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*")
        warnings.filterwarnings("ignore", message=r".*TorchScript.*")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield
