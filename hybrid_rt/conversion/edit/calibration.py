"""Calibration of engines in a saved bundle: its own head, which needs no Python code, says what goes into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...backends import registry
from ...backends.selection import Wanted
from ...capture.calibration import record_engine_inputs
from ...capture.program import FlatCall, Program
from ...capture.second_size import second_shapes, tile_to_shape
from ...common.specs import PRECISIONS, UNBOUNDED
from ..assemble.engine_module import prepare
from .saved_engines import SavedEngine

_COMPARED = 4
"""Calibration samples on which variants are compared with the stored segment."""


def calibrated(
    program: Program,
    saved: SavedEngine,
    head: torch.jit.ScriptModule,
    engines: Sequence[SavedEngine],
    samples: Sequence[tuple[Any, ...]],
    wanted: Sequence[Wanted],
) -> Program:
    """Returns a program with what goes into its engine on calibration samples, if a variant needs that.

    Some of the samples are its calls too, to compare variants on.

    Args:
        program: the engine's segments, or others in their place.
        saved: the engine.
        head: the bundle's module.
        engines: all engines in it. They run as they were captured where the file has that variant.
        samples: arguments of the detector.
        wanted: the variants that are compiled.

    Raises:
        OptionError: a sample that the bundle does not take.
        BackendError: an engine of which no variant runs here.
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
    """Returns calls to compare variants on, at two sizes if they may vary.

    The noise that they are compared on otherwise is cut off by ranges that were calibrated on images.
    """
    inputs = list(inside[:: -(-len(inside) // _COMPARED)])
    shapes = {tuple(tuple(tensor.shape) for tensor in tensors) for tensors in inputs}
    if len(shapes) == 1:
        ranges = [list(zip(spec.min, spec.max, strict=True)) for spec in program.inputs]
        other = second_shapes([tensor.shape for tensor in inputs[0]], ranges)
        inputs += [tuple(map(tile_to_shape, inputs[0], other))] if other else []
    calls = [FlatCall(tensors, program.run(tensors)) for tensors in inputs]
    return tuple(sorted(calls, key=lambda call: sum(tensor.numel() for tensor in call.inputs)))
