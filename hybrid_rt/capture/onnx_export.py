"""Traced segments as ONNX models, by torch's exporter for TorchScript: it takes what is traced already."""

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
"""Of the operators; every runtime since 2022 has it, and torch's exporter for TorchScript knows none above 20."""


def export_to_onnx(
    traced: torch.jit.ScriptModule,
    examples: tuple[Tensor, ...],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    name: str,
) -> bytes:
    """A traced module of flat tensors as a serialized ONNX model with its weights in it.

    Neither the onnx nor the onnxscript package is needed. The model's inputs and outputs stand in the order of the
    specs and bear their :func:`value_names`; an input that the segment does not look at is left out. A dimension of an
    input that has a range is free; if there is any, so are all of the outputs. No output is an input, a weight or
    another output itself.

    Args:
        traced: takes ``inputs`` one by one, returns a tuple.
        examples: what it was traced on.
        inputs: of the module.
        outputs: of the module.
        name: the segment's, for messages.

    Raises:
        CaptureError: the exporter fails, with its message.
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
        with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as folder, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's about itself; none of the user's code runs
            model = Path(folder) / "segment.onnx"
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
    """Makes initializers of an ONNX model's constants, and forgets where the model was exported.

    torch's exporter leaves the weights of a frozen module as nodes. Those that the model returns as they are stay.

    Args:
        model: of the onnx package; it is changed.
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
    """Returns the model's names of inputs and outputs: ``levels.0`` is ``levels_0``, ``0`` is ``output_0``."""
    input_names = _unique([spec.name for spec in inputs], "input")
    return input_names, _unique([spec.name for spec in outputs], "output", input_names)


def _unique(names: Sequence[str], prefix: str, taken: Sequence[str] = ()) -> list[str]:
    """As the exporter allows them: one name per value, of letters and digits, and not of digits alone."""
    given: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name)
        plain = f"{prefix}_{plain}" if plain.isdigit() else plain
        numbered = (f"{plain}_{i}" for i in itertools.count(2))
        given.append(next(each for each in itertools.chain([plain], numbered) if each not in (*given, *taken)))
    return given
