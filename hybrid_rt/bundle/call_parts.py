"""Splits a bundle's call into engines, the head's operators and the interpreter, with torch's profiler."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.atomic_files import atomic_write

ENGINE, OPERATOR, OTHER = "engine", "operator", "other"

_ENGINE_EVENT = "hybrid_rt engine "
"""Prefix of the event that ScriptEngine::run() records, before the engine's name."""

_COPY_EVENT = "hybrid_rt copied input"
"""Name of the event that an engine records when it copies an input whose address its vendor does not support."""

_CALL = "hybrid_rt profile call"


@dataclass(frozen=True)
class Part:
    """One part of a call: an engine, the head's operators of one name at one place, or the interpreter.

    Attributes:
        name: name of the engine or operator.
        kind: "engine", "operator", or "other" for the interpreter and the profiler.
        place: "before NAME" or "after NAME", where NAME is the engine next to it in time; empty for engines and others.
        calls: number of calls per call of the bundle.
        milliseconds: time per call of the bundle, including what it calls.
        share: fraction of the profiled call, 0..1.
        copied_inputs: number of inputs per call of the bundle that an engine copied, because the address of a view was
            not one that its vendor takes.
    """

    name: str
    kind: str
    place: str
    calls: float
    milliseconds: float
    share: float
    copied_inputs: float = 0.0


@dataclass(frozen=True)
class Step:
    """An outermost operator or engine of one call.

    Attributes:
        name: name of the engine or operator.
        kind: "engine" or "operator".
        milliseconds: duration, including everything that it calls.
        shapes: shapes of an engine's inputs.
        copied_inputs: number of inputs that the engine copied because of their addresses.
    """

    name: str
    kind: str
    milliseconds: float
    shapes: list[list[int]]
    copied_inputs: int = 0


@dataclass(frozen=True)
class ProfiledCalls:
    """Calls under torch's profiler.

    Attributes:
        milliseconds: duration of one call.
        parts: the parts of a call, the longest first; their times add up to ``milliseconds``.
        steps: steps of the first call, in the order in which they ran.
    """

    milliseconds: float
    parts: list[Part]
    steps: list[Step]


def profiled_calls(
    call: Callable[..., Any],
    inputs: tuple[Any, ...],
    repeat: int,
    trace: str | os.PathLike[str] | None = None,
) -> ProfiledCalls:
    """Runs a loaded bundle under torch's profiler.

    Args:
        call: the loaded bundle, which has run before.
        inputs: its arguments.
        repeat: number of calls, at least 1.
        trace: file for a Chrome trace of the calls; None: write none.

    Raises:
        BundleError: The trace can't be written.
    """
    with _silent_kineto(), torch.inference_mode(), torch.profiler.profile(record_shapes=True) as profiler:
        for _ in range(repeat):
            with torch.profiler.record_function(_CALL):
                call(*inputs)
    calls = [event for event in profiler.events() if event.name == _CALL]
    if trace is not None:
        with atomic_write(Path(trace)) as temporary:
            profiler.export_chrome_trace(str(temporary))
    total = sum(event.cpu_time_total for event in calls) / repeat / 1e3
    found = [list(_steps(event)) for event in calls]
    return ProfiledCalls(total, _parts(found, total), found[0])


@contextmanager
def _silent_kineto() -> Iterator[None]:
    """Discards stderr, because torch's profiler reports there that it starts and that there is no GPU."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _steps(event: Any) -> Iterator[Step]:
    """Yields the outermost operators and engines below an event, in the order in which they ran."""
    for child in sorted(event.cpu_children, key=lambda child: child.time_range.start):
        if child.name.startswith(_ENGINE_EVENT):
            name = child.name.removeprefix(_ENGINE_EVENT)
            yield Step(name, ENGINE, child.cpu_time_total / 1e3, child.input_shapes, _copies_in(child))
        elif "::" in child.name and child.name != "hybrid_rt::run_engine":
            yield Step(child.name, OPERATOR, child.cpu_time_total / 1e3, [])
        else:  # a method of the head
            yield from _steps(child)


def _copies_in(event: Any) -> int:
    """Counts the copied inputs below an engine's event."""
    return sum((child.name == _COPY_EVENT) + _copies_in(child) for child in event.cpu_children)


def _parts(found: Sequence[Sequence[Step]], total: float) -> list[Part]:
    """Adds up the steps of all calls by name, kind and place."""
    sums: dict[tuple[str, str, str], tuple[int, float, int]] = {}
    for steps in found:
        for step, place in zip(steps, _places(steps), strict=True):
            key = (step.name, step.kind, place)
            count, milliseconds, copies = sums.get(key, (0, 0.0, 0))
            sums[key] = (count + 1, milliseconds + step.milliseconds, copies + step.copied_inputs)
    calls = len(found)
    parts = [
        Part(*key, count / calls, milliseconds / calls, milliseconds / calls / total, copies / calls)
        for key, (count, milliseconds, copies) in sums.items()
    ]
    rest = max(0.0, total - sum(part.milliseconds for part in parts))
    parts.append(Part("the interpreter and the profiler", OTHER, "", 1, rest, rest / total))
    return sorted(parts, key=lambda part: -part.milliseconds)


def _places(steps: Sequence[Step]) -> list[str]:
    """Returns the position of each step among the engines."""
    engines = [i for i, step in enumerate(steps) if step.kind == ENGINE]
    places = []
    for i, step in enumerate(steps):
        before = [k for k in engines if k < i]
        if step.kind == ENGINE or not engines:
            places.append("")
        else:
            places.append(f"after {steps[before[-1]].name}" if before else f"before {steps[engines[0]].name}")
    return places
