"""Defines the data of a conversion's report and its JSON form (docs/report.md)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch

from ...backends.quantization.record import Quantization
from ...bundle.latency_contract import LatencyContract
from ...capture.segments import Share
from ...common.class_names import name_of
from ...common.json_values import finite
from ...common.specs import TensorSpec
from ...common.version import __version__
from ...verification.verify import TensorError, Thresholds, Verification
from ..assemble.builds import EngineBuild
from ..assemble.given_up import GivenUp
from .images import ImageReport
from .measurement import Measurement

SCHEMA_VERSION = 2
"""Version of the JSON; incremented if a field is removed or changes its meaning, but not for new fields."""


@dataclass(frozen=True)
class PrecisionTrial:
    """A precision that precision="auto" tried.

    Attributes:
        precision: its name.
        milliseconds: median of one call on the example, measured alternately with the others; None: not measured.
        reason: why it was not chosen; empty: it was.
    """

    precision: str
    milliseconds: float | None
    reason: str

    @property
    def line(self) -> str:
        """Returns a line for a terminal, e.g. ``bf16: 11.3 ms, taken``."""
        time = "" if self.milliseconds is None else f"{self.milliseconds:.1f} ms, "
        return f"{self.precision}: {time}{self.reason or 'taken'}"


@dataclass(frozen=True)
class VariantReport:
    """One artifact. Its size is that of its blobs, in bytes; ``cached``: it was found in the cache, not compiled.

    ``quantization`` is the record of an int8 artifact's calibration and of the layers in fp32; None if unknown.
    """

    backend: str
    precision: str
    size: int
    cached: bool
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)
    quantization: Quantization | None = None


@dataclass(frozen=True)
class EngineReport:
    """One engine: the submodules in it, its inputs and outputs, and its variants in the file's order.

    ``name`` is for messages: the members, joined by "+". ``share`` is their part of the detector's counted work, 0..1.
    """

    name: str
    members: list[str]
    share: float
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    variants: list[VariantReport]

    @classmethod
    def of(cls, build: EngineBuild, shares: Sequence[Share]) -> EngineReport:
        """Returns the report of an engine; ``shares``: those of all submodules that were considered."""
        program = build.program
        members = [member.name for member in program.members]
        return cls(
            name=program.name,
            members=members,
            share=min(1.0, sum(share.share for share in shares if share.name in members)),
            inputs=list(program.inputs),
            outputs=list(program.outputs),
            variants=[
                VariantReport(
                    backend=variant.artifact.spec.backend,
                    precision=variant.artifact.spec.precision,
                    size=variant.artifact.size,
                    cached=variant.cached,
                    device=variant.artifact.spec.device,
                    versions=dict(variant.artifact.spec.versions),
                    quantization=Quantization.of(variant.artifact.blobs),
                )
                for variant in build.variants
            ],
        )


def _versions() -> dict[str, str]:
    return {
        "hybrid_rt": __version__,
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "python": platform.python_version(),
    }


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.backends.cpu.get_cpu_capability()}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass
class ReportData:
    """Record of a conversion. The JSON has the same fields; docs/report.md describes each."""

    detector: str
    path: str
    engines: list[EngineReport]
    head_operators: list[str]
    verification: Verification | None
    precision: str = "fp32"
    head: str = "script"
    head_refused: dict[str, str] = field(default_factory=dict)
    shares: list[Share] = field(default_factory=list)
    predicted_gain: float = 1.0
    golden: str = ""
    thresholds: Thresholds | None = None
    pictures: list[ImageReport] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    measurement: Measurement | None = None
    not_measured: str = "not requested"
    versions: dict[str, str] = field(default_factory=_versions)
    machine: str = field(default_factory=_machine)
    made: str = field(default_factory=_now)
    file_size: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    given_up: list[GivenUp] = field(default_factory=list)
    state: list[str] = field(default_factory=list)
    precisions: list[PrecisionTrial] = field(default_factory=list)
    signed_with: list[str] = field(default_factory=list)
    signatures_dropped: list[str] = field(default_factory=list)
    latency_contract: LatencyContract | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values; a number that is not finite becomes None."""
        values = asdict(self)
        values["verification"] = self.verification and self.verification.to_json()
        for image in values["pictures"]:
            del image["jpeg"]
            for box in image["expected"] + image["found"]:
                if name := name_of(box["label"], self.class_names):
                    box["class_name"] = name
        if self.measurement is not None:
            values["measurement"]["gain"] = self.measurement.gain
        return {"schema_version": SCHEMA_VERSION, **finite(values)}

    @property
    def segments(self) -> list[EngineReport]:
        """Returns ``engines``, by its old name."""
        warnings.warn(
            "ConversionReport.segments is deprecated, use ConversionReport.engines", DeprecationWarning, stacklevel=2
        )
        return self.engines

    @property
    def boxes(self) -> tuple[int, int]:
        """Returns the number of matched boxes and of all boxes."""
        matches = self.verification.pictures if self.verification else []
        return sum(match.matched for match in matches), sum(match.expected for match in matches)

    @property
    def worst(self) -> TensorError | None:
        """Returns the engine output with the largest error; None if none was compared."""
        errors = self.verification.tensors if self.verification else []
        return max(errors, key=lambda error: error.relative_error, default=None)
