"""The latency contract of a bundle: the times that were measured on one machine, with its description.

The native part (cpp/src/spec/latency.cpp) validates a file's contract and compares it with measurements, for Python and
C++ alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import _native
from ..common.errors import BundleError, OptionError
from ..common.latency import percentile

FEWEST_CALLS = 20
"""With fewer calls, the 95th percentile would be the slowest one."""

_FEWEST_FOR_P99 = 100

MOST_SIZES = 64
"""More sizes than this are refused, in Python as in C++."""

LONGEST_SIDE = 16384

Size = tuple[int, int]
"""Height, width."""


@dataclass(frozen=True)
class MachineDescription:
    """The properties of a machine that its times depend on.

    Attributes:
        processor: name of the processor, from the kernel.
        architecture: architecture, such as "x86_64".
        cpus: number of CPUs that the process may use.
        gpu: name of the GPU that was measured; empty for the CPU.
    """

    processor: str
    architecture: str
    cpus: int
    gpu: str = ""

    @classmethod
    def here(cls, gpu: int = -1) -> MachineDescription:
        """Returns the description of this machine.

        Args:
            gpu: index of the GPU to describe; -1: none.
        """
        return cls(**_native.machine_description(gpu))

    def __str__(self) -> str:
        """Returns one line, e.g. ``AMD EPYC 9R14, x86_64, 2 CPUs``."""
        gpu = f"{self.gpu}, " if self.gpu else ""
        return f"{gpu}{self.processor}, {self.architecture}, {self.cpus} {'CPU' if self.cpus == 1 else 'CPUs'}"


@dataclass(frozen=True)
class SizeLatency:
    """Percentiles of the milliseconds that a call takes on images of one size.

    Attributes:
        height: height of the images, in pixels.
        width: width of the images, in pixels.
        count: number of timed calls.
        p50: smallest time that at least half of the calls do not exceed.
        p95: smallest time that at least 95 % of the calls do not exceed.
        p99: smallest time that at least 99 % of the calls do not exceed; None if fewer than 100 calls were timed.
    """

    height: int
    width: int
    count: int
    p50: float
    p95: float
    p99: float | None = None

    @classmethod
    def of(cls, size: Size, milliseconds: Sequence[float]) -> SizeLatency:
        """Returns the percentiles of calls.

        Args:
            size: height and width of the images.
            milliseconds: times of at least 20 calls.
        """
        times = list(milliseconds)
        p99 = percentile(times, 99) if len(times) >= _FEWEST_FOR_P99 else None
        return cls(*size, len(times), percentile(times, 50), percentile(times, 95), p99)

    def __str__(self) -> str:
        """Returns one line, e.g. ``480x640: p50 11.30 ms, p95 12.10 ms, p99 12.90 ms (100 calls)``."""
        p99 = "" if self.p99 is None else f", p99 {self.p99:.2f} ms"
        return f"{self.height}x{self.width}: p50 {self.p50:.2f} ms, p95 {self.p95:.2f} ms{p99} ({self.count} calls)"


@dataclass(frozen=True)
class LatencyContract:
    """Times of a bundle on one machine.

    Attributes:
        machine: machine on which they were measured.
        device: "cpu" or "cuda".
        threads: number of threads of torch and of each engine.
        engines: variant that ran each engine, by the engine's name: "openvino:bf16".
        input: source of the images that were resized: "golden sample" or "own inputs".
        measured: date and time in UTC (ISO 8601).
        sizes: the percentiles, by image size.
    """

    machine: MachineDescription
    device: str
    threads: int
    engines: Mapping[str, str]
    input: str
    measured: str
    sizes: tuple[SizeLatency, ...]

    @classmethod
    def from_json(cls, values: Any) -> LatencyContract:
        """Returns the field ``latency_contract`` of a manifest.

        Args:
            values: the field, as JSON values.

        Raises:
            BundleError: A value is impossible for a measurement; the text names the field.
        """
        try:
            text = json.dumps(values, allow_nan=False)
        except ValueError as error:
            raise BundleError.make(
                "bundle", "manifest, latency_contract", expected="finite numbers", got=str(error)
            ) from error
        _native.latency_sizes(text, "", 0.0, 0, [])
        known: dict[str, Any] = {name: values[name] for name in cls.__dataclass_fields__}
        known["machine"] = MachineDescription(**_fields_of(MachineDescription, values["machine"]))
        known["sizes"] = tuple(SizeLatency(**_fields_of(SizeLatency, size)) for size in values["sizes"])
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest's field ``latency_contract`` as JSON values."""
        values = asdict(self)
        values["engines"] = dict(self.engines)
        values["sizes"] = list(values["sizes"])
        return values

    @property
    def lines(self) -> list[str]:
        """Returns lines for a terminal: the conditions, then one line per size."""
        threads = f"{self.threads} {'thread' if self.threads == 1 else 'threads'}"
        engines = ", ".join(f"{name} on {variant}" for name, variant in self.engines.items())
        heading = f"latency contract: {self.machine}; {self.device}, {threads}, {self.input}; {engines or 'no engine'}"
        return [heading, *(f"  {size}" for size in self.sizes)]


def _fields_of(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that are fields of a dataclass; newer files may have more."""
    return {name: values[name] for name in kind.__dataclass_fields__ if name in values}


def check_sizes(sizes: Sequence[Size], scope: str) -> list[Size]:
    """Returns the sizes without duplicates.

    Raises:
        OptionError: A size is impossible for an image, or there are too many.
    """
    found = list(dict.fromkeys((height, width) for height, width in sizes))
    wrong = [size for size in found if not all(1 <= side <= LONGEST_SIDE for side in size)]
    if wrong or len(found) > MOST_SIZES:
        got = f"{wrong[0]}" if wrong else f"{len(found)}"
        raise OptionError.make(
            scope, "sizes", expected=f"at most {MOST_SIZES} pairs (height, width) of 1 to {LONGEST_SIDE}", got=got
        )
    return found
