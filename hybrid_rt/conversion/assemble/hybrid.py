"""A detector with engines in its segments' places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...common.tensor_tree import map_tensors
from ...torchscript import jit
from .builds import EngineBuild
from .engine_module import prepare


class OnDevice(nn.Module):
    """A hybrid that runs on a GPU, for arguments and results on the CPU."""

    def __init__(self, hybrid: torch.jit.ScriptModule, device: str) -> None:
        """``hybrid``: it stays where it is; a copy is moved."""
        super().__init__()
        self.device = torch.device(device)
        self.module = jit.move_to_device(hybrid, device)

    def forward(self, *arguments: Any) -> Any:
        """As the hybrid."""
        found = self.module(*map_tensors(arguments, lambda tensor: tensor.to(self.device)))
        return map_tensors(found, Tensor.cpu)


@dataclass(frozen=True)
class Hybrid:
    """A detector with engines in its segments' places.

    Attributes:
        module: the frozen head with its engines.
        builds: the engines.
        operators: hybrid_rt's operators that the head calls.
        device: the kind of device that the engines are for.
    """

    module: torch.jit.ScriptModule
    builds: Sequence[EngineBuild]
    operators: list[str]
    device: str = "cpu"

    @contextmanager
    def in_promised_precision(self) -> Iterator[nn.Module]:
        """Yields the hybrid in the precision that the file promises, even where this CPU can only emulate it.

        It runs on the device that it is for, if there is one here, and takes and returns tensors on the CPU even so.
        """
        place = self.device if self.device != "cuda" or torch.cuda.is_available() else "cpu"
        for build in self.builds:
            prepare(build.engine, device=place, emulate_precision=True)
        yield self.module if place == "cpu" else OnDevice(self.module, place)
        for build in self.builds:
            prepare(build.engine, device=place)
