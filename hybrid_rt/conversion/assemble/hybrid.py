"""The hybrid: a detector whose segments are replaced by engines."""

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
    """Runs a hybrid on a GPU for callers whose arguments and results are on the CPU."""

    def __init__(self, hybrid: torch.jit.ScriptModule, device: str) -> None:
        """Moves a copy of ``hybrid`` to the device."""
        super().__init__()
        self.device = torch.device(device)
        self.module = jit.move_to_device(hybrid, device)

    def forward(self, *arguments: Any) -> Any:
        """Copies the arguments to the device, runs the hybrid, and returns its result on the CPU."""
        found = self.module(*map_tensors(arguments, lambda tensor: tensor.to(self.device)))
        return map_tensors(found, Tensor.cpu)


@dataclass(frozen=True)
class Hybrid:
    """A detector whose segments are replaced by engines.

    Attributes:
        module: the frozen head with its engines.
        builds: the engines.
        operators: names of hybrid_rt's operators that the head calls.
        device: the kind of device that the engines are for.
    """

    module: torch.jit.ScriptModule
    builds: Sequence[EngineBuild]
    operators: list[str]
    device: str = "cpu"

    @contextmanager
    def in_promised_precision(self) -> Iterator[nn.Module]:
        """Yields the hybrid in the precision that the file promises, even where this CPU can only emulate it.

        It runs on its own kind of device if this machine has one. Arguments and results are on the CPU in any case.
        """
        place = self.device if self.device != "cuda" or torch.cuda.is_available() else "cpu"
        for build in self.builds:
            prepare(build.engine, device=place, emulate_precision=True)
        yield self.module if place == "cpu" else OnDevice(self.module, place)
        for build in self.builds:
            prepare(build.engine, device=place)
