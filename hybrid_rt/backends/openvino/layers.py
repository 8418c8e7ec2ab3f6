"""Reads OpenVINO's performance counters of one call, and counts the operations of its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base import LayerTime
from .vendor import import_openvino

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_WARM_UP = 3


def layer_times(xml: Path, weights: Path, precision: str, inputs: Sequence[Tensor], threads: int) -> list[LayerTime]:
    """Runs a model on the CPU as the run half does, with counters.

    Args:
        xml: the model.
        weights: its weights.
        precision: precision of the artifact.
        inputs: inputs of one call.
        threads: number of threads per call.

    Returns:
        The layers that ran, in their order.
    """
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(str(xml), str(weights))
    model.reshape({i: openvino.PartialShape(list(tensor.shape)) for i, tensor in enumerate(inputs)})
    operations = {node.get_friendly_name(): _operations(node) for node in model.get_ordered_ops()}
    settings = {
        "PERF_COUNT": "YES",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    values = [tensor.contiguous().numpy() for tensor in inputs]
    for _ in range(_WARM_UP + 1):
        request.infer(values)
    return [
        LayerTime(
            entry.node_name,
            f"{entry.node_type} {entry.exec_type}",
            entry.real_time.total_seconds() * 1e3,
            operations.get(entry.node_name, 0),
        )
        for entry in request.profiling_info
        if entry.real_time.total_seconds() > 0
    ]


def _operations(node: Any) -> int:
    """Returns the multiplications plus additions of a layer with known shapes; 0 for other kinds."""
    kind = node.get_type_name()
    if kind not in ("Convolution", "GroupConvolution", "MatMul"):
        return 0
    made, weights = node.output(0).get_partial_shape(), node.input(1).get_partial_shape()
    if made.is_dynamic or weights.is_dynamic:
        return 0
    if kind == "MatMul":
        given = node.input(0).get_partial_shape().to_shape()
        inner = given[-2] if node.get_attributes().get("transpose_a") else given[-1]
        return int(2 * math.prod(made.to_shape()) * inner)
    per_output = math.prod(list(weights.to_shape())[2 if kind == "GroupConvolution" else 1 :])
    return int(2 * math.prod(made.to_shape()) * per_output)
