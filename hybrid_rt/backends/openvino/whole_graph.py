"""A whole detector in OpenVINO, through its Python interface."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...capture.program import capture_alone
from ..base import Backend
from ..whole_graph import Call, WholeDetector, WholeGraph
from .vendor import import_nncf, import_openvino

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Inference precision of each precision. In int8, operations that NNCF does not quantise are computed in f32."""


class _Holder(nn.Module):
    """Holds the detector under a name, so that it can be captured as a segment."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.whole(image)
        return found


class OpenVINOWholeGraph(WholeGraph):
    """Compiles the detector like a segment. Sizes that differ between the images stay free."""

    precisions: ClassVar[tuple[str, ...]] = tuple(_HINTS)

    def __init__(self, backend: Backend) -> None:
        """Initialises it.

        Args:
            backend: The backend that compiles the detector, without our rewrites of the graph.
        """
        self._backend = backend

    def build(self, whole: WholeDetector, precision: str, directory: Path) -> None:
        """Compiles the detector and writes each blob of the artifact as a file."""
        images = whole.images
        if len({image.shape for image in images}) == 1:
            images = [images[0], images[0].transpose(1, 2).contiguous()]
        program = capture_alone(_Holder(whole.detector).eval(), "whole", [(image,) for image in images])
        compiled = "fp32" if precision == "int8" else precision
        for name, blob in self._backend.compile(program, compiled).blobs.items():
            (directory / name).write_bytes(blob.numpy().tobytes())
        if precision == "int8":
            _quantize(directory, whole.calibration or images)

    def open(self, precision: str, directory: Path, threads: int) -> Call:
        """Compiles the stored model for this machine."""
        core = import_openvino().Core()
        model = _read(core, directory)
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(model, "CPU", options)
        return lambda image: [torch.from_numpy(value.copy()) for value in compiled([image.numpy()]).values()]


def _read(core: Any, directory: Path) -> Any:
    return core.read_model((directory / "xml").read_bytes(), (directory / "weights").read_bytes())


def _quantize(directory: Path, images: Sequence[Tensor]) -> None:
    """Quantises a stored model with NNCF's defaults, as OpenVINO's users do, including boxes and scores."""
    from .int8 import quiet

    nncf, openvino = import_nncf(), import_openvino()
    with quiet():
        samples = nncf.Dataset([image.numpy() for image in images])
        quantized = nncf.quantize(_read(openvino.Core(), directory), samples, subset_size=len(images))
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as temporary:  # the model still reads the original files
        xml = Path(temporary) / "model.xml"
        openvino.save_model(quantized, str(xml), compress_to_fp16=False)
        for name, path in (("xml", xml), ("weights", xml.with_suffix(".bin"))):
            (directory / name).write_bytes(path.read_bytes())
