"""Artifacts and their specs, which are known without opening them; the Python twin of cpp/include/hybrid_rt/specs.h."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """A number format that engines compute in.

    Attributes:
        speedup: speed-up of an engine over eager mode for a convolutional network, on a CPU with instructions for the
            precision; used only for predictions. R50-FPN at 800x800 on two cores took 1335 ms eager, 841 in OpenVINO
            in fp32, 425 in bf16, and about a third of fp32's time in int8.
        needs_engine: true if requesting it is an error when only the fallback, which stays in fp32, would run.
        needs_calibration: true if a compiler needs sample inputs to determine the ranges of values.
    """

    speedup: float
    needs_engine: bool = False
    needs_calibration: bool = False


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(speedup=1.5),
    "bf16": Precision(speedup=2.9),
    "fp16": Precision(speedup=2.9, needs_engine=True),
    "int8": Precision(speedup=4.0, needs_engine=True, needs_calibration=True),
}
"""The precisions by name; each backend lists those that it supports."""

REFERENCE_PRECISION = "fp32"
"""The precision of detectors in eager mode, with which all others are compared."""

UNBOUNDED = -1
"""Value of a maximum that stands for no upper bound."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a segment; for each dimension d, min[d] <= size <= max[d] (``UNBOUNDED``: no maximum).

    ``opt`` is the size that the compiler optimizes for. ``dtype`` is torch's name, e.g. ``"float32"``.
    """

    name: str
    dtype: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @property
    def is_static(self) -> bool:
        """Returns true if every dimension has a single size."""
        return self.min == self.max

    @property
    def sizes(self) -> str:
        """Returns the ranges of its dimensions as text, e.g. ``"1.. x 3 x 32..416 x 32..416"``."""
        return " x ".join(map(_range, self.min, self.max)) or "a scalar"

    def holds(self, shape: Sequence[int]) -> bool:
        """Returns true if a tensor of this shape is within the ranges."""
        return len(shape) == len(self.min) and all(
            low <= size and (high == UNBOUNDED or size <= high)
            for size, low, high in zip(shape, self.min, self.max, strict=True)
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TensorSpec:
        """Creates a spec from the result of ``dataclasses.asdict`` after a round trip through JSON."""
        return cls(**{**values, **{key: tuple(values[key]) for key in ("min", "opt", "max")}})

    def __str__(self) -> str:
        """Returns one line, e.g. ``x: 1.. x 3 x 32..416 x 32..416 float32``."""
        return f"{self.name}: {self.sizes} {self.dtype}"


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}..{'' if high == UNBOUNDED else high}"


@dataclass(frozen=True)
class ArtifactSpec:
    """Contract of an artifact's inputs and outputs, and its requirements for the machine that runs it.

    Attributes:
        backend: name of the backend.
        precision: precision of the artifact, e.g. "bf16".
        device: kind of device that it was compiled for: "cpu", "cuda".
        inputs: the tensors that it takes, in order.
        outputs: the tensors that it returns, in order.
        requirements: requirements for the machine, see :meth:`Backend.spec`.
        versions: versions of the packages that compiled it.
    """

    backend: str
    precision: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    requirements: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Returns the name that options use, e.g. "openvino:bf16"."""
        return f"{self.backend}:{self.precision}"

    def is_named(self, name: str) -> bool:
        """Returns true if a name refers to it: "tensorrt", "tensorrt:fp16", "tensorrt:fp16@8.6+8.9".

        Args:
            name: the name. The text after "@" is one of its requirements: compute capabilities, or a requirement's
                name and value, e.g. "tensorrt==10.14.1". "+" replaces the comma, which separates names.
                cpp/src/engine/variants.cpp uses the same rule.
        """
        name, at, required = name.partition("@")
        return name in (self.backend, self.label) and (not at or required in _requirement_names(self))


def _requirement_names(spec: ArtifactSpec) -> list[str]:
    """Returns the requirements in the form used in names, the compute capability first."""
    texts = {name: value.replace(",", "+") for name, value in spec.requirements.items()}
    capabilities = [texts[name] for name in ("compute_capability",) if name in texts]
    return capabilities + [f"{name}{text}" for name, text in sorted(texts.items())]


def variant_names(specs: Sequence[ArtifactSpec]) -> list[str]:
    """Returns a name for each variant of an engine; equal names get the variants' requirements as suffixes."""
    names = []
    for spec in specs:
        others = [other for other in specs if other is not spec and other.label == spec.label]
        longer = (f"{spec.label}@{required}" for required in _requirement_names(spec) if others)
        distinct = (name for name in longer if not any(other.is_named(name) for other in others))
        names.append(next(distinct, spec.label))
    return names


@dataclass(frozen=True)
class Artifact:
    """Output of a backend's compiler.

    Attributes:
        spec: contract and requirements.
        blobs: byte strings by name: one-dimensional uint8 CPU tensors, see :func:`blob_from_bytes`.
        weights: (offset, size) in bytes of unchanged weights in each blob; a bundle stores weights that several
            variants share only once.
    """

    spec: ArtifactSpec
    blobs: dict[str, torch.Tensor]
    weights: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Returns the number of bytes of all blobs."""
        return sum(blob.numel() for blob in self.blobs.values())

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Returns the SHA-256 of each blob's bytes, in hexadecimal digits."""
        return {name: hashlib.sha256(blob.numpy().data).hexdigest() for name, blob in self.blobs.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the blobs as arrays, which copies each once (torch copies a tensor three times), and the digests."""
        arrays = {name: blob.numpy() for name, blob in self.blobs.items()}
        return _unpickled, (self.spec, arrays, self.weights, self.digests)


def _unpickled(spec: ArtifactSpec, arrays: Mapping[str, Any], weights: Any, digests: dict[str, str]) -> Artifact:
    artifact = Artifact(spec, {name: torch.from_numpy(array) for name, array in arrays.items()}, weights)
    vars(artifact)["digests"] = digests
    return artifact


def engine_name(segments: Sequence[str]) -> str:
    """Returns an engine's name for messages from the dotted paths of its segments, e.g. ``"backbone+rpn.head"``."""
    return "+".join(segments)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns torch's name of a dtype, e.g. ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def blob_from_bytes(data: bytes | bytearray) -> torch.Tensor:
    """Returns a one-dimensional uint8 CPU tensor that holds a copy of ``data``."""
    if not data:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
