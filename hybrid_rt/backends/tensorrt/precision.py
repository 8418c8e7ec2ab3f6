"""Lowers the precision of ONNX models: TensorRT computes in the types of the model."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_KEPT = {"Resize": (1, 2)}
"""Inputs that stay in float32, by operator: they hold sizes and factors, not values."""

_QUANTIZED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


def lower_precision(model: Any, precision: str) -> Any:
    """Returns a model that computes in float16 or bfloat16 instead of float32, with unchanged inputs and outputs.

    Args:
        model: A model of the onnx package that includes its weights. It is not modified.
        precision: "fp16" or "bf16".
    """
    from onnx import ModelProto, TensorProto, helper

    target = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    changed = ModelProto.FromString(model.SerializeToString())
    graph = changed.graph
    kept = {name for node in graph.node for i in _KEPT.get(node.op_type, ()) for name in node.input[i : i + 1] if name}
    for tensor in graph.initializer:
        if tensor.name not in kept:
            _cast(tensor, target, dtype)
    nodes = list(graph.node)
    del graph.node[:]
    inside: dict[str, str] = {}
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            inside[value.name] = f"{value.name}_lowered"
            graph.node.append(helper.make_node("Cast", [value.name], [inside[value.name]], to=target))
    returned = [value.name for value in graph.output if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    inside |= {name: f"{name}_lowered" for name in returned}
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = inside.get(name, name)
        for i, name in enumerate(node.output):
            node.output[i] = inside.get(name, name)
        for attribute in node.attribute:
            if attribute.name == "value" and not kept.intersection(node.output):
                _cast(attribute.t, target, dtype)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = target
        graph.node.append(node)
    for name in returned:
        graph.node.append(helper.make_node("Cast", [inside[name]], [name], to=TensorProto.FLOAT))
    del graph.value_info[:]
    return changed


def _cast(tensor: Any, target: int, dtype: torch.dtype) -> None:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type != TensorProto.FLOAT:
        return
    values = torch.from_numpy(numpy_helper.to_array(tensor).copy()).to(dtype).contiguous()
    name, shape = tensor.name, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, target
    tensor.dims.extend(shape)
    tensor.raw_data = values.flatten().view(torch.uint8).numpy().tobytes()


def quantize(model: Any, names: Sequence[str], calibration: Sequence[Sequence[Tensor]]) -> Any:
    """Returns a model that computes its convolutions and matrix products in int8.

    ONNX Runtime runs the model on the calibration inputs, records the range of each value, and inserts pairs of
    quantise and dequantise operations, which TensorRT calls explicit quantisation. Scales are symmetric, weights have
    one scale per channel, and biases stay in float32.

    Args:
        model: A model of the onnx package with its weights as initializers. It is not modified.
        names: Names of the calibrated inputs, in order.
        calibration: Calibration samples, each a sequence of input tensors in the order of ``names``.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    used = {value.name for value in model.graph.input}

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.remaining = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            inputs = next(self.remaining, None)
            if inputs is None:
                return None
            return {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True) if name in used}

    with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory, _quiet():
        path = Path(directory) / "quantized.onnx"
        quantize_static(
            model,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=_QUANTIZED,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": True,
            },
        )
        return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses ONNX Runtime's advice to run a pre-processing that torch's exporter has done already."""

    def is_news(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    logger = logging.getLogger()
    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)
