"""Profiles one call with ONNX Runtime's own profiler, and counts the operations of its nodes."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base import LayerTime

_WARM_UP = 3

_WEIGHTS = {"Conv": 1, "FusedConv": 1, "QLinearConv": 3, "MatMul": 1, "FusedMatMul": 1, "Gemm": 1, "QLinearMatMul": 3}
"""Kinds of nodes whose operations are counted, with the index of the weights among their inputs."""

_CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv")


def layer_times(model: Path, inputs: Sequence[Tensor], threads: int) -> list[LayerTime] | None:
    """Runs a model on the CPU with ONNX Runtime's profiler.

    Args:
        model: the ONNX file; its weights are beside it.
        inputs: inputs of one call.
        threads: number of threads per call.

    Returns:
        The nodes that ran in the last call, in their order; None: the onnxruntime package is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = f"{directory}/profile"
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        values = {
            known.name: tensor.contiguous().numpy() for known, tensor in zip(session.get_inputs(), inputs, strict=True)
        }
        for _ in range(_WARM_UP + 1):
            session.run(None, values)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _layers(events, _weights_of(model))


def _weights_of(model: Path) -> list[list[int]]:
    """Returns the shapes of the convolutions' weights in the file."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    used = [node.input[_WEIGHTS[node.op_type]] for node in graph.node if node.op_type in _CONVOLUTIONS]
    return [shapes[name] for name in used if name in shapes]


def _unpadded(padded: Sequence[int], known: Sequence[Sequence[int]]) -> Sequence[int]:
    """Returns the shape of weights without the channels that ONNX Runtime adds to fill its vectors.

    This is the nearest shape in the file with the same kernel and at most as many channels.
    """
    fitting = [
        shape
        for shape in known
        if list(shape[2:]) == list(padded[2:]) and shape[0] <= padded[0] and shape[1] <= padded[1]
    ]
    return max(fitting, key=lambda shape: shape[0] + shape[1], default=padded)


def _layers(events: Sequence[Mapping[str, Any]], weights: Sequence[Sequence[int]]) -> list[LayerTime]:
    """Returns the nodes of the last call in a profile; ``weights``: see :func:`_weights_of`."""
    last = max((event for event in events if event.get("name") == "model_run"), key=lambda event: event["ts"])
    end = last["ts"] + last["dur"]
    nodes = [
        event
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith("_kernel_time")
        and last["ts"] <= event["ts"] <= end
        and event["dur"] > 0
    ]
    return [
        LayerTime(
            event["name"].removesuffix("_kernel_time"),
            event["args"].get("op_name", ""),
            event["dur"] / 1e3,
            _operations(event["args"], weights),
        )
        for event in sorted(nodes, key=lambda event: event["ts"])
    ]


def _operations(arguments: Mapping[str, Any], known: Sequence[Sequence[int]]) -> int:
    """Returns a node's multiplications plus additions; 0 for other kinds. ``known``: see :func:`_weights_of`."""
    kind = arguments.get("op_name", "")
    given = [_shape(entry) for entry in arguments.get("input_type_shape", [])]
    made = [_shape(entry) for entry in arguments.get("output_type_shape", [])]
    place = _WEIGHTS.get(kind, -1)
    if not 0 <= place < len(given) or not made:
        return 0
    weights = given[place]
    if kind in _CONVOLUTIONS:
        positions = math.prod(made[0]) // max(1, made[0][1])
        return 2 * positions * math.prod(_unpadded(weights, known))
    return 2 * math.prod(made[0]) * math.prod(weights) // made[0][-1] if made[0] and len(weights) == 2 else 0


def _shape(entry: Mapping[str, Sequence[int]]) -> list[int]:
    """Returns the shape in an entry {type: shape} of the profile."""
    return [int(side) for shape in entry.values() for side in shape]
