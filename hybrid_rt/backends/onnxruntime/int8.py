"""Quantises the exported model to int8 with ONNX Runtime's own tool, except for layers that would lose too much.

NNCF is not used, because ONNX Runtime's tool is part of the package that runs the model, fits that package's fusions,
preserves the graph's free dimensions, and requires nothing else to be installed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...common.errors import BackendError
from ..quantization.names import module_names
from ..quantization.record import Quantization
from ..quantization.search import Comparison, SearchResult, quantize

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
    return quantize(OnnxQuantizer(model, names, program), ("onnxruntime", program.name), options, "fp32", progress)


class OnnxQuantizer:
    """A segment that ONNX Runtime quantises, see :class:`hybrid_rt.backends.quantization.search.Quantizer`."""

    def __init__(self, model: Any, names: Sequence[str], program: Program) -> None:
        """Quantises all layers; see :func:`quantize_model` for the arguments.

        Raises:
            BackendError: There are no samples, or no layer can be quantised.
        """
        self._model, self._names, self._segment = _named(model), names, program.name
        self.samples = [
            {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True) if name in _inputs(model)}
            for inputs in program.calibration
        ]
        if not self.samples:
            raise self._refused(
                "calibration samples within the segment's sizes",
                "none: the samples did not call it, or with other sizes",
            )
        outputs = [spec.name for spec in program.outputs]
        self.layers, self.edges, branches = layers_of(self._model)
        self.branches = dict(zip(outputs, branches, strict=True))
        convolutions, products = (
            [node.name for node in self._model.graph.node if node.op_type in kinds]
            for kinds in (_WEIGHTED[:2], _WEIGHTED[2:])
        )
        self.shown = module_names(program, convolutions, products)
        if not convolutions and not products:
            raise self._refused("a layer that int8 computes, such as a convolution", "none")
        self._comparison = Comparison(self._model, outputs, self.samples, _opened)

    @functools.cached_property
    def _everywhere(self) -> Any:
        return self._with({})

    def quantize(self, kept: Collection[str]) -> Any:
        """Returns the model with all layers in int8 but ``kept``."""
        return self._with({"nodes_to_exclude": sorted(kept)}) if kept else self._everywhere

    def alone(self, layer: str) -> Any:
        """Returns the model with only one layer in int8, calibrated on the samples of the comparison."""
        return self._with({"nodes_to_quantize": [layer]}, self._comparison.samples)

    def errors(self, model: Any) -> dict[str, float]:
        """Returns the largest relative error of each output on the samples of the comparison."""
        return self._comparison.errors(model)

    def times(self, found: SearchResult) -> dict[str, float]:
        """Returns the median milliseconds of one call of the found model and of the original one."""
        return self._comparison.times(found)

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
            with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory, quiet():
                path = Path(directory) / "quantized.onnx"
                quantize_static(
                    onnx.ModelProto.FromString(self._model.SerializeToString()),
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
            raise self._refused("a model that ONNX Runtime quantises", f"{type(error).__name__}: {error}") from error

    def _refused(self, expected: str, got: str) -> BackendError:
        return BackendError.make(
            "onnxruntime",
            f"segment '{self._segment}' in int8",
            expected=expected,
            got=got,
            remedy="Exclude that layer from the segment (segments=), or use fp32.",
            code="operator-not-in-engine",
        )


def _opened(model: Any) -> Callable[[Mapping[str, Any]], list[torch.Tensor]]:
    session = _session(model)
    return lambda sample: [torch.from_numpy(value) for value in session.run(None, dict(sample))]


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


def layers_of(model: Any) -> tuple[list[str], frozenset[str], list[frozenset[str]]]:
    """Returns the layers that can be quantised, in the order in which they run.

    Returns:
        The layers; the first and last ones among them; and, per output, those that lead only to that output.
    """
    layers: list[str] = []
    before: dict[str, frozenset[str]] = {}
    first: set[str] = set()
    inner: set[str] = set()
    for node in model.graph.node:
        above = frozenset[str]().union(*(before.get(name, frozenset()) for name in node.input))
        if node.op_type in _QUANTIZED:
            layers.append(node.name)
            inner |= above
            if not above:
                first.add(node.name)
            above |= {node.name}
        before |= dict.fromkeys(node.output, above)
    reached = [before.get(value.name, frozenset()) for value in model.graph.output]
    branches = [
        found - frozenset[str]().union(*(other for j, other in enumerate(reached) if j != i))
        for i, found in enumerate(reached)
    ]
    return layers, frozenset(first | (set(layers) - inner)), branches


def _session(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences ONNX Runtime, which recommends steps that torch's exporter has already done."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
