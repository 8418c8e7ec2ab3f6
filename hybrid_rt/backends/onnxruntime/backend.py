"""ONNX Runtime: the artifact is an ONNX model and its weights, optimised for the machine that loads it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...capture import onnx_export
from ...common.errors import BackendError, CaptureError
from ...common.specs import Artifact, blob_from_bytes
from ..base import Availability, LayerTime, RuntimeFiles, VendorPackages
from ..quantization.backend import QuantizingBackend
from ..quantization.record import BLOB
from ..whole_graph import WholeGraph
from . import int8
from .keep_nan import keep_nan

if TYPE_CHECKING:
    from ...capture.program import Program

WEIGHTS = "weights"
"""Name of the weights' file in the model, and of the blob that the run half passes for it."""

ALIGNMENT = 64
"""Alignment of each weight in that file in bytes: a cache line, which suits vector instructions too."""

SMALLEST_WEIGHT = 1024
"""Smallest weight in bytes that is moved to the file; smaller ones stay in the model for shape inference."""

OLDEST = "1.18"
"""Oldest version of ONNX Runtime that accepts weights from memory, separate from the model."""


class OnnxRuntimeBackend(QuantizingBackend):
    """Exports the traced segment to ONNX; the package onnxruntime is needed only to run it and for int8."""

    name = "onnxruntime"
    precisions = ("fp32", "int8")
    files: ClassVar[Mapping[str, str]] = {"model": "/model.onnx", "weights": f"/{WEIGHTS}", BLOB: f"/{BLOB}.json"}
    runtime_files = RuntimeFiles(libraries=("onnxruntime/capi/libonnxruntime.so*",))

    vendor = VendorPackages(
        requirements=("onnxruntime>=1.18,<2", "onnx>=1.15,<2"),
        modules=("onnxruntime", "onnx"),
        libraries={"HYBRID_RT_ONNXRUNTIME_LIBRARY": "onnxruntime/capi/libonnxruntime.so*"},
    )

    def availability(self) -> Availability:
        """Checks that the onnx package can be imported."""
        try:
            import onnx
        except Exception as error:  # a broken install raises anything
            return Availability(False, f"the onnx package can't be imported ({error}); pip install onnx onnxruntime")
        return Availability(True, version=onnx.__version__)

    def missing_tool(self) -> str:
        """Returns why ONNX Runtime, which quantises, can't be used; empty if it can."""
        return int8.missing()

    def compile(self, program: Program, precision: str) -> Artifact:
        """Exports the segment to ONNX, and quantises it for int8."""
        import onnx

        try:
            model = onnx.load_model_from_string(program.onnx())
        except CaptureError as error:
            raise BackendError(str(error)) from error
        versions = {"onnx": onnx.__version__, "opset": str(model.opset_import[0].version), "torch": torch.__version__}
        record = {}
        if precision == "int8":
            onnx_export.hoist_constants(model)
            names, _ = onnx_export.value_names(program.inputs, program.outputs)
            progress = self.progress or (lambda share, what: None)
            model, quantization = int8.quantize_model(model, names, program, self.given, progress)
            record = {BLOB: quantization.to_blob()}
            versions |= {"onnxruntime": importlib.metadata.version("onnxruntime"), "int8": quantization.summary}
        else:
            keep_nan(model)
        _add_unused_inputs(model, program)
        weights = _cut_out_weights(model)
        spec = self.spec(program, precision, versions=versions, requirements={"version": f">={OLDEST}"})
        blobs = {"model": blob_from_bytes(model.SerializeToString(deterministic=True)), "weights": weights, **record}
        return Artifact(spec, blobs, self.weights(blobs))

    def weights(self, blobs: Mapping[str, torch.Tensor]) -> dict[str, tuple[tuple[int, int], ...]]:
        """Returns the positions of the tensors in the weights' file, which the model contains."""
        try:
            import onnx
        except ImportError:
            return {}
        found = []
        for tensor in onnx.load_model_from_string(blobs["model"].numpy().tobytes()).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place:
                found.append((int(place["offset"]), int(place["length"])))
        return {"weights": tuple(found)}

    def layer_times(
        self, files: Mapping[str, Path], precision: str, inputs: Sequence[Tensor], threads: int
    ) -> Sequence[LayerTime] | None:
        """Returns the nodes in ONNX Runtime's own profile."""
        from .layers import layer_times

        return layer_times(files["model"], inputs, threads)

    def whole_graph(self) -> WholeGraph:
        """Returns the way to run a whole detector, exported by torch, in ONNX Runtime."""
        from .whole_graph import OnnxRuntimeWholeGraph

        return OnnxRuntimeWholeGraph()


def _add_unused_inputs(model: Any, program: Program) -> None:
    """Adds inputs that the exporter left out as unused, because the run half passes all inputs by position."""
    from onnx import TensorProto, helper

    names, _ = onnx_export.value_names(program.inputs, program.outputs)
    types = {"float32": "FLOAT", "float64": "DOUBLE"}
    left = {value.name: value for value in model.graph.input}
    inputs = [
        left.get(name)
        or helper.make_tensor_value_info(
            name, getattr(TensorProto, types.get(spec.dtype, spec.dtype.upper())), [None] * len(spec.min)
        )
        for name, spec in zip(names, program.inputs, strict=True)
    ]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _cut_out_weights(model: Any) -> torch.Tensor:
    """Moves the large constants of an ONNX model into a file of weights, which it then refers to."""
    from onnx import TensorProto

    onnx_export.hoist_constants(model)  # only initializers may lie in another file
    weights = bytearray()
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < SMALLEST_WEIGHT:
            continue
        weights += bytes(-len(weights) % ALIGNMENT)
        place = {"location": WEIGHTS, "offset": str(len(weights)), "length": str(len(tensor.raw_data))}
        weights += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
    return blob_from_bytes(weights)
