"""Analyses the graph of an OpenVINO model before and after NNCF: which layers are quantised, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from ..quantization.layers import Layers, Node

_WEIGHTED = {
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
}

_PASSED = {"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "ReduceMax", "Relu", "StridedSlice", "Pad"}
"""Operators that keep the range, so that NNCF may move a quantisation up the graph past them."""

_MOST_STEPS = 8


def layers_of(quantized: Any, outputs: Sequence[str]) -> Layers:
    """Returns the layers that NNCF quantised.

    Args:
        quantized: NNCF's result; layers keep their names.
        outputs: the names of the model's outputs, in order.
    """
    nodes = [
        Node(name, _is_quantized(op), [source.get_friendly_name() for source in _sources(op)], [name])
        for op in quantized.get_ordered_ops()
        for name in [op.get_friendly_name()]
    ]
    results = [result.get_friendly_name() for result in quantized.get_results()]
    return Layers.of(nodes, dict(zip(outputs, results, strict=True)))


def weighted_layers(model: Any) -> list[str]:
    """Returns the names of convolutions and matrix products in the order of the graph."""
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in _WEIGHTED]


def in_order(model: Any) -> tuple[list[str], list[str]]:
    """Returns the names of convolutions and of matrix products in the order of torch's operations.

    OpenVINO numbers operations of the same kind and name in that order: ".../Convolution", ".../Convolution_1". For
    names with a scope, and across kinds, the order is that of the graph, if it has no branches.
    """
    convolutions: list[tuple[str, str]] = []
    products: list[tuple[str, str]] = []
    for op in model.get_ordered_ops():
        kind, name = op.get_type_name(), op.get_friendly_name()
        if kind in _WEIGHTED:
            (products if kind == "MatMul" else convolutions).append((kind, name))
    found = []
    for layers in (convolutions, products):
        if len({re.sub(r"_\d+$", "", name) for _, name in layers}) <= 1:
            layers.sort(key=lambda entry: int((re.search(r"_(\d+)$", entry[1]) or ["", "0"])[1]))
            found.append([name for _, name in layers])
        else:
            found.append([])  # their order is not told by their names
    return found[0], found[1]


def scoped_names(layers: Sequence[str], segment: str) -> dict[str, str]:
    """Returns the submodule of each layer by the layer's name, which contains it if the segment is the only one.

    A layer without weights is named after the submodule that calls it, and its own kind.
    """
    found = {}
    for name in layers:
        scope, _, operation = name.partition("/")
        if scope.startswith("__module."):
            kind = operation.rpartition("/")[2]
            is_weighted = re.sub(r"_\d+$", "", kind) in _WEIGHTED
            found[name] = segment + scope.removeprefix("__module.module") + ("" if is_weighted else f", {kind}")
    return found


def _sources(op: Any) -> list[Any]:
    return [op.input_value(i).get_node() for i in range(op.get_input_size())]


def _is_quantized(op: Any) -> bool:
    kind = op.get_type_name()
    if kind in ("FakeQuantize", "Result"):
        return False
    sources = [source.get_type_name() for source in _sources(op)]
    if kind in _WEIGHTED:
        return "FakeQuantize" in sources or _weights(op) is not None
    return "FakeQuantize" in sources and kind not in _PASSED


def _named(model: Any, name: str) -> Any:
    return next(op for op in model.get_ordered_ops() if op.get_friendly_name() == name)


def _weights(layer: Any) -> Any:
    """Returns the node that converts a layer's integer weights to floats; None if its weights are not integers."""
    if layer.get_input_size() < 2:
        return None
    node = layer.input_value(1).get_node()
    return node if node.get_type_name() == "Multiply" and _value(node) is not None else None


def _value(node: Any) -> Any:
    """Returns the value of a node that depends only on constants; None for any other node."""
    kind = node.get_type_name()
    if kind == "Constant":
        return node.get_data().astype(numpy.float32)
    values = [_value(source) for source in _sources(node)]
    if any(value is None for value in values):
        return None
    if kind == "Convert":
        return values[0]
    if kind == "Subtract":
        return values[0] - values[1]
    if kind == "Multiply":
        return values[0] * values[1]
    return None


def real_weights(quantized: Any, name: str) -> Any:
    """Returns the weights that a layer's integers represent, as an array; None if its weights are not integers."""
    found = _weights(_named(quantized, name))
    return None if found is None else _value(found)


def ranges_before(quantized: Any, name: str) -> dict[int, Any]:
    """Returns the quantisation node in front of each of a layer's inputs, by the input's index."""
    layer = _named(quantized, name)
    found = {}
    for i in range(layer.get_input_size()):
        node = layer.input_value(i).get_node()
        for _ in range(_MOST_STEPS):
            if node.get_type_name() not in _PASSED:
                break
            node = node.input_value(0).get_node()
        if node.get_type_name() == "FakeQuantize":
            found[i] = node
    return found


def clone_with(model: Any, name: str, ranges: Mapping[int, Any], weights: Any) -> Any:
    """Returns a copy of a model in which one layer is quantised as in another model.

    Args:
        model: the model in fp32; it is not changed.
        name: name of the layer.
        ranges: see :func:`ranges_before`.
        weights: see :func:`real_weights`.
    """
    from openvino import opset13 as opset

    clone = model.clone()
    layer = _named(clone, name)
    for i, node in ranges.items():
        limits = [opset.constant(_value(source)) for source in _sources(node)[1:]]
        levels = node.get_attributes()["levels"]
        layer.input(i).replace_source_output(opset.fake_quantize(layer.input_value(i), *limits, levels).output(0))
    if weights is not None:
        shape = layer.input_value(1).get_node().get_output_shape(0)
        layer.input(1).replace_source_output(opset.constant(weights.reshape(shape)).output(0))
    return clone
