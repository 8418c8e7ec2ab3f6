"""Quantises the exported model to int8 with ONNX Runtime's own tool, except for layers that would lose too much.

NNCF is not used, because ONNX Runtime's tool is part of the package that runs the model, fits that package's fusions,
preserves the graph's free dimensions, and requires nothing else to be installed.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...common.silenced import silenced
from ..quantization.engine_quantizer import EngineQuantizer, quantize
from ..quantization.layers import Layers, Node
from ..quantization.names import module_names
from ..quantization.record import Quantization

if TYPE_CHECKING:
    from ...capture.program import Program

_QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "MaxPool")
"""Operators to quantise; addition and pooling are included so that values between convolutions stay in int8."""

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def missing() -> str:
    """Returns why ONNX Runtime can't quantise; empty if it can."""
    try:
        import onnxruntime.quantization  # noqa: F401
    except Exception as error:  # a broken install raises anything
        return f"int8 needs the onnxruntime package, which can't be imported ({error}); pip install onnxruntime"
    return ""


def quantize_model(
    model: Any,
    names: Sequence[str],
    program: Program,
    options: Mapping[str, float],
    progress: Callable[[float, str], None],
) -> tuple[Any, Quantization]:
    """Returns the model in int8, with the record of its quantisation.

    Args:
        model: a ModelProto with its weights as initializers.
        names: names of its inputs, in the segment's order.
        program: the segment, with the calibration samples.
        options: see :mod:`..quantization.options`.
        progress: receives the progress of the search.

    Raises:
        BackendError: No layer can be quantised, the tool refuses one, or too much would have to stay in fp32.
    """
    return quantize(OnnxQuantizer(model, names, program), options, progress)


class OnnxQuantizer(EngineQuantizer):
    """A segment that ONNX Runtime quantises."""

    backend = "onnxruntime"
    instead = "fp32"

    def __init__(self, model: Any, names: Sequence[str], program: Program) -> None:
        """Finds the layers; see :func:`quantize_model` for the arguments.

        Raises:
            BackendError: There are no samples, or no layer can be quantised.
        """
        samples = [
            {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True) if name in _inputs(model)}
            for inputs in program.calibration
        ]
        super().__init__(program, _named(model), samples)
        found = Layers.of(_nodes(self.model), dict(zip(self.outputs, _results(self.model), strict=True)))
        self.layers, self.edges, self.branches = found.names, found.edges, found.branches
        convolutions, products = (
            [node.name for node in self.model.graph.node if node.op_type in kinds]
            for kinds in (_WEIGHTED[:2], _WEIGHTED[2:])
        )
        self.shown = module_names(program, convolutions, products)
        if not convolutions and not products:
            raise self.refused("a layer that int8 computes, such as a convolution", "none")

    def opened(self, model: Any) -> Callable[[Mapping[str, Any]], list[torch.Tensor]]:
        """Opens a session."""
        session = _session(model)
        return lambda sample: [torch.from_numpy(value) for value in session.run(None, dict(sample))]

    def without(self, kept: Collection[str]) -> Any:
        """Returns the model with all layers in int8 but ``kept``."""
        return self._with({"nodes_to_exclude": sorted(kept)} if kept else {})

    def alone(self, layer: str) -> Any:
        """Returns the model with only one layer in int8, calibrated on the compared samples."""
        return self._with({"nodes_to_quantize": [layer]}, self.compared)

    def _with(self, nodes: Mapping[str, Sequence[str]], samples: Sequence[Mapping[str, Any]] | None = None) -> Any:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.remaining = iter(given)

            def get_next(self) -> Mapping[str, Any] | None:
                return next(self.remaining, None)

        given = self.samples if samples is None else samples
        try:
            with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory, _quiet():
                path = Path(directory) / "quantized.onnx"
                quantize_static(
                    onnx.ModelProto.FromString(self.model.SerializeToString()),
                    path,
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    # Without VNNI, the sum of two 8-bit products overflows its 16 bits. A bundle may run on any CPU,
                    # and 7-bit weights are right on all of them.
                    reduce_range=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    op_types_to_quantize=list(_QUANTIZED),
                    extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
                    **nodes,
                )
                return onnx.load(path)
        except Exception as error:  # it raises many types
            raise self.refused("a model that ONNX Runtime quantises", f"{type(error).__name__}: {error}") from error


def _inputs(model: Any) -> set[str]:
    return {value.name for value in model.graph.input}


def _named(model: Any) -> Any:
    """Returns a copy in which each node has a unique name, by which the tool identifies it."""
    import onnx

    named = onnx.ModelProto.FromString(model.SerializeToString())
    seen: set[str] = set()
    for i, node in enumerate(named.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{i}"
        seen.add(node.name)
    return named


def _nodes(model: Any) -> list[Node]:
    return [Node(node.name, node.op_type in _QUANTIZED, node.input, node.output) for node in model.graph.node]


def _results(model: Any) -> list[str]:
    return [value.name for value in model.graph.output]


def _session(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences ONNX Runtime, which recommends steps that torch's exporter has already done."""
    with silenced(""), contextlib.redirect_stdout(io.StringIO()):
        yield
