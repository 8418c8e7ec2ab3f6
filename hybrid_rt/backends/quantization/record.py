"""Record of an int8 artifact, which travels with it through the cache and into the bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor

from ...common.json_values import finite
from ...common.specs import blob_from_bytes

BLOB = "quantization"
"""The name of the blob that holds the record. No run half reads it."""


@dataclass(frozen=True)
class KeptLayer:
    """A layer that stays in fp32.

    Attributes:
        name: Name of the layer.
        error: Largest relative error of an output with only this layer in int8; None if time ran out.
    """

    name: str
    error: float | None = None


@dataclass(frozen=True)
class Quantization:
    """Record of a segment's quantization.

    Attributes:
        samples: number of inputs that it was calibrated on.
        layers: number of layers that int8 could compute.
        kept: the layers that stay in fp32, because in int8 they cost too much accuracy.
        error: largest relative error of an output on the compared samples, with these layers kept.
        error_everywhere: largest relative error of an output with no layer kept.
        max_error: the requested limit of the error.
        milliseconds: median of one call on a sample, measured alternately: "fp32", "int8 everywhere", "int8".
    """

    samples: int
    layers: int
    kept: tuple[KeptLayer, ...]
    error: float
    error_everywhere: float
    max_error: float
    milliseconds: dict[str, float] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """Returns one line for messages."""
        text = f"calibrated on {self.samples} samples, outputs {self.error:.1%} off"
        if not self.kept:
            return f"{text}, all {self.layers} layers in int8"
        text += f" ({self.error_everywhere:.1%} with all {self.layers} layers in int8), {len(self.kept)} kept in fp32"
        times = self.milliseconds
        if "int8" in times and "int8 everywhere" in times:
            cost = max(0.0, times["int8"] - times["int8 everywhere"])
            text += f", which cost {cost:.1f} ms of {times['int8']:.1f}"
        return f"{text}: {', '.join(map(_layer_text, self.kept))}"

    def to_blob(self) -> Tensor:
        """Returns the record as a blob of an artifact: a uint8 tensor of JSON."""
        return blob_from_bytes(json.dumps(finite(asdict(self)), sort_keys=True).encode())

    @classmethod
    def of(cls, blobs: Mapping[str, Tensor]) -> Quantization | None:
        """Returns the record among the blobs of an artifact; None if there is none, or if it can't be read."""
        blob = blobs.get(BLOB)
        if blob is None:
            return None
        try:
            values = json.loads(blob.numpy().tobytes())
            return cls(**{**values, "kept": tuple(KeptLayer(**layer) for layer in values["kept"])})
        except (ValueError, TypeError, KeyError):
            return None


def _layer_text(layer: KeptLayer) -> str:
    return layer.name if layer.error is None else f"{layer.name} ({layer.error:.1%})"
