"""Converts traced segments to ONNX models, with torch's exporter for TorchScript, which accepts traced modules."""

from __future__ import annotations

import itertools
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import CaptureError
from ..common.specs import TensorSpec
from ..torchscript import jit

OPSET = 17
"""Version of ONNX's operators; every runtime since 2022 supports it, and torch's exporter supports at most 20."""


def export_to_onnx(
    traced: torch.jit.ScriptModule,
    examples: tuple[Tensor, ...],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    name: str,
) -> bytes:
    """Returns a traced module of flat tensors as a serialized ONNX model that contains its weights.

    Neither the onnx nor the onnxscript package is needed. The model's inputs and outputs have the order of the specs
    and the names of :func:`value_names`; an input that the segment does not use is left out. A dimension of an input
    is free if its spec has a range; if any is, all dimensions of the outputs are free. No output is the same value as
    an input, a weight or another output.

    Args:
        traced: module that takes ``inputs`` one by one and returns a tuple.
        examples: inputs that it was traced on.
        inputs: specs of its inputs.
        outputs: specs of its outputs.
        name: name of the segment, for messages.

    Raises:
        CaptureError: The exporter fails; the text contains its message.
    """
    input_names, output_names = value_names(inputs, outputs)
    free = {
        key: {d: f"{key}_{d}" for d in range(len(spec.min)) if spec.min[d] != spec.max[d]}
        for key, spec in zip(input_names, inputs, strict=True)
    }
    if any(free.values()):
        free |= {
            key: {d: f"{key}_{d}" for d in range(len(spec.min))}
            for key, spec in zip(output_names, outputs, strict=True)
        }
    try:
        with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's about itself; none of the user's code runs
            model = Path(directory) / "segment.onnx"
            torch.onnx.export(
                jit.freeze(traced),
                examples,
                model,
                dynamo=False,
                opset_version=OPSET,
                input_names=input_names,
                output_names=output_names,
                dynamic_axes={key: dimensions for key, dimensions in free.items() if dimensions},
            )
            return model.read_bytes()
    except Exception as error:  # of many types
        raise CaptureError.make(
            "onnx",
            f"segment '{name}'",
            expected="operations that torch's exporter puts into ONNX",
            got=f"{type(error).__name__}: {error}",
            remedy="Name smaller submodules in segments= to exclude that operation, or use another engine.",
            code="segment-not-captured",
        ) from error


def hoist_constants(model: Any) -> None:
    """Converts an ONNX model's constants to initializers, and removes the notes on where it was exported.

    torch's exporter writes the weights of a frozen module as nodes. Constants that are outputs of the model stay nodes.

    Args:
        model: a ModelProto of the package onnx, which is changed in place.
    """
    graph = model.graph
    returned = {output.name for output in graph.output}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        node.ClearField("doc_string")  # paths of the machine that it was exported on
        values = [
            attribute.t for attribute in node.attribute if node.op_type == "Constant" and attribute.name == "value"
        ]
        if values and node.output[0] not in returned:
            values[0].name = node.output[0]
            graph.initializer.append(values[0])
        else:
            graph.node.append(node)


def value_names(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[list[str], list[str]]:
    """Returns the names of inputs and outputs in the model: ``levels_0`` for ``levels.0``, ``output_0`` for ``0``."""
    input_names = _unique([spec.name for spec in inputs], "input")
    return input_names, _unique([spec.name for spec in outputs], "output", input_names)


def _unique(names: Sequence[str], prefix: str, taken: Sequence[str] = ()) -> list[str]:
    """Returns unique names of letters, digits and underscores, as the exporter requires, none of digits alone."""
    given: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name)
        plain = f"{prefix}_{plain}" if plain.isdigit() else plain
        numbered = (f"{plain}_{i}" for i in itertools.count(2))
        given.append(next(each for each in itertools.chain([plain], numbered) if each not in (*given, *taken)))
    return given
