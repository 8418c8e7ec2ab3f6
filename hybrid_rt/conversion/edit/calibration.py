"""Records the inputs of a saved bundle's engines on calibration samples, by running the bundle's own head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...backends import registry
from ...backends.selection import VariantRequest
from ...capture.calibration import record_engine_inputs
from ...capture.derived_shapes import second_shapes, tile_to_shape
from ...capture.program import FlatCall, Program
from ...common.specs import PRECISIONS, UNBOUNDED
from ..assemble.engine_module import prepare
from .saved_engines import SavedEngine

_COMPARED = 4
"""Number of calibration samples on which variants are compared with the stored segment."""


def calibrated(
    program: Program,
    saved: SavedEngine,
    head: torch.jit.ScriptModule,
    engines: Sequence[SavedEngine],
    samples: Sequence[tuple[Any, ...]],
    wanted: Sequence[VariantRequest],
) -> Program:
    """Adds to a program the inputs of its engine on calibration samples, if a variant needs them.

    Some of the samples also become calls on which the variants are compared.

    Args:
        program: the engine's segments, or their replacements.
        saved: the engine.
        head: the bundle's module.
        engines: all engines of the bundle. Each runs in TorchScript and fp32 if the file has that variant.
        samples: arguments of the detector.
        wanted: the variants to compile.

    Raises:
        OptionError: The bundle does not accept a sample.
        BackendError: No variant of an engine runs here.
    """
    if not any(PRECISIONS[variant.precision].needs_calibration for variant in wanted):
        return program
    last = registry.fallback().name
    for engine in engines:
        kept = any(variant.backend == last for variant in engine.variants)
        prepare(engine.engine, last if kept else "", emulate_precision=True)
    found = record_engine_inputs(head, [saved.stored.segments], samples)[saved.stored.segments]
    inside = [
        inputs
        for inputs in found
        if all(
            low <= size and (high == UNBOUNDED or size <= high)
            for tensor, spec in zip(inputs, program.inputs, strict=True)
            for size, low, high in zip(tensor.shape, spec.min, spec.max, strict=True)
        )
    ]
    calls = _calls(program, inside) if inside else program.calls
    return replace(program, calibration=tuple(inside), calls=calls)


def _calls(program: Program, inside: Sequence[tuple[torch.Tensor, ...]]) -> tuple[FlatCall, ...]:
    """Returns calls to compare variants on, at two sizes if sizes may vary.

    Noise, on which variants are compared without calibration, would be clipped by ranges that fit images.
    """
    inputs = list(inside[:: -(-len(inside) // _COMPARED)])
    shapes = {tuple(tuple(tensor.shape) for tensor in tensors) for tensors in inputs}
    if len(shapes) == 1:
        ranges = [list(zip(spec.min, spec.max, strict=True)) for spec in program.inputs]
        other = second_shapes([tensor.shape for tensor in inputs[0]], ranges)
        inputs += [tuple(map(tile_to_shape, inputs[0], other))] if other else []
    calls = [FlatCall(tensors, program.run(tensors)) for tensors in inputs]
    return tuple(sorted(calls, key=lambda call: sum(tensor.numel() for tensor in call.inputs)))
