"""Defines the cases of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backends import registry
from ..common.errors import OptionError

RUNTIMES = {
    "eager": "eager, Python",
    "compile": "torch.compile, Python",
    "torchscript": "TorchScript, Python",
    "torchscript-cpp": "TorchScript, C++",
    "hybrid": "hybrid {engine}, Python",
    "hybrid-cpp": "hybrid {engine}, C++",
    "whole": "whole detector in {engine}, Python",
}
"""Ways to run a detector, with the names of their cases. TorchScript is frozen. ``whole`` runs the whole detector,
including post-processing, in an engine, through the engine's own interface.
"""


@dataclass(frozen=True)
class Case:
    """One way to run a detector.

    Attributes:
        runtime: one of :data:`RUNTIMES`.
        engine: name of the backend, if the runtime uses one.
        precision: precision of the engine; fp32 for runtimes of torch.
    """

    runtime: str
    engine: str = ""
    precision: str = "fp32"

    @property
    def name(self) -> str:
        """Returns the name for tables."""
        return RUNTIMES[self.runtime].format(engine=f"{self.engine} {self.precision}")

    @property
    def is_cpp(self) -> bool:
        """Returns true if it runs in a C++ program, without Python."""
        return self.runtime.endswith("-cpp")

    @property
    def kind(self) -> str:
        """Returns the runtime without its language; cases of the same kind and engine run the same file."""
        return self.runtime.removesuffix("-cpp")

    @property
    def file(self) -> str:
        """Returns the name of the file that it runs."""
        return "_".join(part for part in (self.kind, self.engine, self.precision) if part)


def cases(
    engines: Sequence[str],
    precision: str = "fp32",
    runtimes: Sequence[str] = tuple(RUNTIMES),
    device: str = "cpu",
) -> list[Case]:
    """Returns all cases in the order of :data:`RUNTIMES`, always with eager, whose boxes are the reference.

    Args:
        engines: names of backends, optionally with a precision: "openvino:bf16".
        precision: precision of the names that set none.
        runtimes: the runtimes to include.
        device: device to run on; engines run whole detectors only on the CPU.

    Raises:
        OptionError: A runtime is unknown.
    """
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise OptionError.make("bench", "runtime", expected=f"one of {', '.join(RUNTIMES)}", got=f"'{runtime}'")
    wanted = [(name, own or precision) for name, _, own in (engine.partition(":") for engine in engines)]
    found = []
    for runtime in RUNTIMES:
        if runtime not in runtimes and runtime != "eager":
            continue
        if "{engine}" not in RUNTIMES[runtime]:
            found.append(Case(runtime))
            continue
        found += [
            Case(runtime, engine, own)
            for engine, own in wanted
            if runtime != "whole" or (device == "cpu" and _takes_whole_detectors(engine, own))
        ]
    return found


def _takes_whole_detectors(engine: str, precision: str) -> bool:
    whole_graph = registry.whole_graph(engine)
    return whole_graph is not None and precision in whole_graph.precisions
