"""Calibration of engines in a saved bundle: its own head, which needs no Python code, says what goes into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...backends import registry
from ...backends.selection import Wanted
from ...capture.calibration import record_engine_inputs
from ...capture.program import Program
from ...common.specs import PRECISIONS, UNBOUNDED
from ..assemble.engine_module import prepare
from .saved_engines import SavedEngine


def calibrated(
    program: Program,
    saved: SavedEngine,
    head: torch.jit.ScriptModule,
    engines: Sequence[SavedEngine],
    samples: Sequence[tuple[Any, ...]],
    wanted: Sequence[Wanted],
) -> Program:
    """Returns a program with what goes into its engine on calibration samples, if a variant needs that.

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
    return replace(program, calibration=tuple(inside))
