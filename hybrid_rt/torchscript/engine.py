"""The TorchScript class ``hybrid_rt.Engine`` as Python sees it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Engine(Protocol):
    """An engine in a module: its variants, and the one that was chosen and loaded, if any.

    The class is C++ (cpp/src/torchscript/script_engine.h); TorchScript gives it no Python type.
    """

    def prepare(self, backend: str, device: torch.device, threads: int, emulate_precision: bool) -> None:
        """Chooses a variant and loads it."""

    def segments(self) -> list[str]:
        """Returns the dotted paths of the submodules that it replaces."""

    def fields(self) -> dict[str, str]:
        """Returns the saved state without the blobs."""

    def blobs(self) -> list[Tensor]:
        """Returns the table of bytes that the variants' blobs point into."""

    def choice(self) -> str:
        """Returns the variant that runs, and the reasons against the others, as JSON."""
