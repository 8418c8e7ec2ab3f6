"""Hooks (`hooks` in the configuration) that make schemathesis send requests that /v1/detect accepts."""

from __future__ import annotations

import io

import numpy as np
import schemathesis
from hypothesis import strategies
from PIL import Image
from safetensors.numpy import save


def _pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _encoded(kind: str, height: int, width: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(_pixels(height, width)).save(target, kind)
    return target.getvalue()


_SIZES = [(48, 64), (1, 1), (33, 7)]
_JPEGS = [_encoded("JPEG", *size) for size in _SIZES]
_PNGS = [_encoded("PNG", *size) for size in _SIZES]
_TENSORS = [
    *(save({"image": _pixels(*size)}) for size in _SIZES),
    *(save({"image": (_pixels(*size) / np.float32(255)).transpose(2, 0, 1).copy()}) for size in _SIZES),
    save({"a": _pixels(5, 6), "b": _pixels(7, 8)}),
]

for media_type, bodies in {
    "image/jpeg": _JPEGS,
    "image/png": _PNGS,
    "application/octet-stream": _JPEGS + _PNGS,
    "application/x-safetensors": _TENSORS,
}.items():
    schemathesis.openapi.media_type(media_type, strategies.sampled_from(bodies))


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: schemathesis.Case) -> schemathesis.Case:
    """Removes options that no schema can exclude: an annotated image of several images or of floats."""
    if case.media_type in ("multipart/form-data", "application/x-safetensors") and case.query:
        case.query.pop("annotated", None)
    return case
