"""OpenVINO on CPUs: the artifact is the IR (xml and weights), compiled for the machine that loads it."""

from __future__ import annotations

import copy
import importlib.metadata
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...common.errors import BackendError
from ...common.specs import Artifact, TensorSpec, blob_from_bytes
from ...torchscript import jit
from ..base import Availability, LayerTime, RuntimeFiles, VendorPackages
from ..quantization.backend import QuantizingBackend
from ..quantization.record import BLOB
from ..whole_graph import WholeGraph
from . import int8, sizes_only
from .group_norm import normalise_by_channels
from .keep_nan import keep_nan
from .pixel_order import keep_pixels_together
from .vendor import import_openvino

if TYPE_CHECKING:
    from ...capture.program import Program


class OpenVINOBackend(QuantizingBackend):
    """Converts the traced segment. bf16 is a hint for the runtime, with weights in fp16; NNCF quantises to int8."""

    name = "openvino"
    precisions = ("fp32", "bf16", "int8")
    files: ClassVar[Mapping[str, str]] = {
        "xml": ".xml",
        "weights": ".bin",
        BLOB: ".json",
        sizes_only.MODEL_FOR_HEAD: ".head.xml",
        sizes_only.POSITIONS: ".head.txt",
    }
    runtime_files = RuntimeFiles(
        libraries=(
            "openvino/libs/libopenvino_c.so*",
            "openvino/libs/libopenvino_intel_cpu_plugin.so*",
            "openvino/libs/libopenvino_ir_frontend.so*",
        ),
        # TBB's: how cores and memory are laid out, and its allocator.
        optional=("openvino/libs/libtbbbind*.so*", "openvino/libs/libtbbmalloc.so*"),
    )

    vendor = VendorPackages(
        requirements=("openvino>=2024.4,<2027",),
        modules=("openvino", "nncf"),
        libraries={"HYBRID_RT_OPENVINO_LIBRARY": "openvino/libs/libopenvino_c.so*"},
    )
    auto_for: ClassVar[Mapping[str, int]] = {"cpu": 10}
    forms = ("wide_numbers", "traced")

    rewrites_graph = True
    """False keeps the graph as OpenVINO converts it."""

    def availability(self) -> Availability:
        """Checks that the openvino package can be imported."""
        try:
            openvino = import_openvino()
        except Exception as error:  # a broken install raises anything
            return Availability(False, f"the openvino package can't be imported ({error}); pip install openvino")
        return Availability(True, version=openvino.__version__.split("-")[0])

    def missing_tool(self) -> str:
        """Returns why NNCF can't be used; empty if it can."""
        return int8.missing()

    def compile(self, program: Program, precision: str) -> Artifact:
        """Converts the segment to OpenVINO's intermediate representation, and quantises it for int8."""
        openvino = import_openvino()
        found = program.wide_numbers()
        if found:  # the CPU plug-in computes both in 32 bits, and does not say so
            raise BackendError.make(
                self.name,
                f"segment '{program.name}'",
                expected="numbers that fit into 32 bits",
                got=found,
                remedy="Leave that to the head by naming smaller submodules in segments=, convert it to int32 or "
                "float32 before the segment if its values are small, or use an engine with 64-bit arithmetic.",
                code="dtype-not-in-engine",
            )
        frozen = jit.freeze(program.traced())
        try:
            model = openvino.convert_model(
                frozen,
                example_input=program.examples,
                input=[(_partial_shape(spec), _element_type(spec)) for spec in program.inputs],
            )
        except Exception as error:  # the vendor's frontend raises many types
            raise BackendError.not_compiled(
                self.name, program.name, expected="a module that OpenVINO converts", got=_reason(error)
            ) from error
        if self.rewrites_graph:
            keep_pixels_together(model)
            keep_nan(model)
        versions = {"openvino": openvino.__version__.split("-")[0], "torch": torch.__version__}
        record = {}
        if precision == "int8":
            model, quantization = int8.quantize_model(
                model, program, self.given, self.progress or (lambda share, what: None)
            )
            record = {BLOB: quantization.to_blob()}
            versions |= {"nncf": importlib.metadata.version("nncf"), "int8": quantization.summary}
        if self.rewrites_graph:
            normalise_by_channels(model)  # after NNCF, which would quantise the new operators
        with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
            xml = Path(directory) / "segment.xml"
            openvino.save_model(model, str(xml), compress_to_fp16=precision == "bf16")
            blobs = {
                "xml": blob_from_bytes(xml.read_bytes()),
                "weights": blob_from_bytes(xml.with_suffix(".bin").read_bytes()),
            }
        return Artifact(self.spec(program, precision, versions=versions), {**blobs, **record}, self.weights(blobs))

    def weights(self, blobs: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, int], ...]]:
        """Returns the positions of the constants in the IR's binary, which the xml contains."""
        found = set()
        for attributes in re.findall(r"<data ([^>]*)>", blobs["xml"].numpy().tobytes().decode()):
            offset, size = (re.search(rf'\b{name}="(\d+)"', attributes) for name in ("offset", "size"))
            if offset and size:
                found.add((int(offset[1]), int(size[1])))
        return {"weights": tuple(sorted(found))}

    def without_values(self, artifact: Artifact, outputs: frozenset[int]) -> Artifact:
        """Makes these outputs return only their shapes."""
        xml = artifact.blobs["xml"].numpy().tobytes()
        changed, positions = sizes_only.return_sizes(xml, outputs, artifact.spec.outputs)
        if not positions:
            return artifact
        added = {
            sizes_only.MODEL_FOR_HEAD: blob_from_bytes(changed),
            sizes_only.POSITIONS: blob_from_bytes(" ".join(map(str, positions)).encode()),
        }
        return replace(artifact, blobs={**artifact.blobs, **added})

    def outputs_without_values(self, artifact: Artifact) -> frozenset[int]:
        """Reads the artifact's list of them."""
        listed = artifact.blobs.get(sizes_only.POSITIONS)
        return frozenset() if listed is None else frozenset(map(int, listed.numpy().tobytes().split()))

    def layer_times(
        self, files: Mapping[str, Path], precision: str, inputs: Sequence[Tensor], threads: int
    ) -> Sequence[LayerTime]:
        """Returns the times of OpenVINO's performance counters, for the model that runs under the bundle's own head."""
        from .layers import layer_times

        model = files.get(sizes_only.MODEL_FOR_HEAD, files["xml"])
        return layer_times(model, files["weights"], precision, inputs, threads)

    def whole_graph(self) -> WholeGraph:
        """Returns the way to run a whole detector, converted by OpenVINO without our rewrites, as its users do."""
        from .whole_graph import OpenVINOWholeGraph

        unrewritten = copy.copy(self)
        unrewritten.rewrites_graph = False
        return OpenVINOWholeGraph(unrewritten)


def _partial_shape(spec: TensorSpec) -> Any:
    """Returns the shape of an input for OpenVINO; the ranges stay in the spec and are checked at each call.

    No upper bound is passed: OpenVINO 2026.4 evaluates numbers that depend on a size at both ends of its range, and
    treats a number that is equal at both as a constant. This is wrong for a remainder: 16 % 7 and 128 % 7 are both 2,
    so every image to be padded to a multiple of 7 was padded like the smallest one.
    """
    openvino = import_openvino()
    return openvino.PartialShape(
        [
            openvino.Dimension(low) if low == high else openvino.Dimension()
            for low, high in zip(spec.min, spec.max, strict=True)
        ]
    )


def _element_type(spec: TensorSpec) -> Any:
    names = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "boolean"}
    integers = {"int64": "i64", "int32": "i32", "int8": "i8", "uint8": "u8"}
    return getattr(import_openvino().Type, {**names, **integers}[spec.dtype])


def _reason(error: Exception) -> str:
    """Returns the lines of OpenVINO's summary, which names the operations; the whole text if there is no summary."""
    summary = [line.removeprefix("-- ").strip() for line in str(error).splitlines() if line.startswith("-- ")]
    return "; ".join(summary) or f"{type(error).__name__}: {error}"
