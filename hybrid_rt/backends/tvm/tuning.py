"""Schedules of loops for TVM: one for all convolutions, or the fastest measured one for each."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.atomic_files import atomic_write
from ...common.errors import HybridRTError, OptionError
from ..cache.directory import cache_directory

TUNING_SECONDS = "HYBRID_RT_TVM_TUNING_SECONDS"

TUNING_DIRECTORY = "tvm_tuning"
"""Directory of the cache that stores measurements."""


def tuning_seconds() -> float:
    """Returns the time budget for tuning one segment, in seconds; 0 selects the default schedule.

    Raises:
        OptionError: $HYBRID_RT_TVM_TUNING_SECONDS is not a number of seconds.
    """
    text = os.environ.get(TUNING_SECONDS) or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise OptionError.make(
            "tvm", TUNING_SECONDS, expected="a number of seconds", got=f"'{text}'", remedy="Set 0 to turn tuning off."
        )
    return seconds


@dataclass(frozen=True)
class Choice:
    """Arrangement of a convolution's loops.

    Attributes:
        channels: Number of output channels that are computed together, unrolled.
        kernel: Number of innermost loops of the sum that are unrolled.
    """

    channels: int = 4
    kernel: int = 1


CHOICES = (
    Choice(),
    Choice(8),
    Choice(2),
    Choice(4, 2),
    Choice(1),
    Choice(8, 0),
    Choice(4, 0),
    Choice(8, 2),
    Choice(16),
)
"""Arrangements that the tuning tries. The first is the default."""


STRIPS = (128, 64, 32, 16)
"""Number of columns of a matrix product that are computed together: the first entry that divides the total."""


def apply_schedules(module: Any, choices: Mapping[str, Choice]) -> Any:
    """Returns the module with :func:`_schedule` applied to each function, where that is possible."""
    import tvm
    from tvm.tirx import PrimFunc

    functions = {
        variable: _arranged(function, choices.get(variable.name_hint, CHOICES[0]))
        if isinstance(function, PrimFunc)
        else function
        for variable, function in module.functions_items()
    }
    result = tvm.IRModule(functions)
    return result.with_attrs(module.attrs) if module.attrs else result


def _arranged(function: Any, choice: Choice) -> Any:
    import tvm
    from tvm.s_tir.schedule import Schedule, ScheduleError

    schedule = Schedule(tvm.IRModule({"main": function}))
    try:
        _schedule(schedule, choice)
    except ScheduleError:
        return function  # slower, but just as correct
    return schedule.mod["main"]


def _schedule(schedule: Any, choice: Choice) -> None:
    """Orders the loops of a function so that a compiler can vectorise them.

    TVM's own order of a convolution has the sum innermost, which is neither vectorised nor kept in registers. Here a
    row of the output is innermost, and some channels and a row of the kernel are unrolled in it, so that each loaded
    pixel serves several products. Loops are split only if the factor divides their extent, so sizes may be free.
    """
    from tvm.tirx import IntImm, IterVar

    def sums(block: Any) -> bool:
        return any(axis.iter_type == IterVar.CommReduce for axis in schedule.get(block).iter_vars)

    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root):
        users = schedule.get_consumers(block)
        if users and not any(map(sums, [block, *users])):
            schedule.compute_inline(block)
    for block in schedule.get_child_blocks(root):
        loops = schedule.get_loops(block)
        axes = schedule.get(block).iter_vars
        if len(loops) != len(axes):
            continue
        pairs = list(zip(loops, axes, strict=True))
        outer = [loop for loop, axis in pairs if axis.iter_type == IterVar.DataPar]
        summed = [loop for loop, axis in pairs if axis.iter_type == IterVar.CommReduce]
        if len(outer) + len(summed) != len(loops):
            continue
        if not summed and len(outer) > 2:
            schedule.parallel(schedule.fuse(*outer[:2]))
        if not summed or len(outer) < 2:
            continue
        last = next(axis.var for _, axis in reversed(pairs) if axis.iter_type == IterVar.DataPar)
        if not _is_a_row(schedule.get(block), last):
            continue
        if len(outer) == 2:
            if len(summed) == 1:
                _schedule_product(schedule, block, *outer, *summed)
            continue
        batch, channel, *middle, row = outer
        unrolled = []
        extent = schedule.get(channel).extent
        if choice.channels > 1 and isinstance(extent, IntImm) and extent.value % choice.channels == 0:
            channel, few = schedule.split(channel, [None, choice.channels])
            unrolled.append(few)
        for _ in range(choice.kernel):
            extent = schedule.get(summed[-1]).extent if summed else None
            if isinstance(extent, IntImm) and extent.value <= 7:
                unrolled.append(summed.pop())
        schedule.reorder(batch, channel, *middle, *summed, row, *unrolled)
        for loop in unrolled:
            schedule.unroll(loop)
        schedule.parallel(schedule.fuse(batch, channel))
        schedule.decompose_reduction(block, [*summed, row][0])


def _schedule_product(schedule: Any, block: Any, row: Any, column: Any, summed: Any) -> None:
    """Orders the loops of a matrix product [rows, sum] x [sum, columns], such as a linear layer's.

    TVM's own order steps down a column of the weights and touches a cache line per number. Here a strip of columns
    stays in registers while the sum runs, and all rows are finished before the next strip of weights is fetched.
    """
    from tvm.tirx import IntImm

    extent = schedule.get(column).extent
    strip = next((w for w in STRIPS if isinstance(extent, IntImm) and extent.value % w == 0), None)
    if strip is None:
        schedule.reorder(row, summed, column)
        schedule.parallel(row)
    else:
        outside, column = schedule.split(column, [None, strip])
        schedule.reorder(outside, row, summed, column)
        schedule.parallel(schedule.fuse(outside, row))
        schedule.vectorize(column)
    schedule.decompose_reduction(block, summed)


def _is_a_row(block: Any, variable: Any) -> bool:
    """Returns true if a step of the variable is a step in the last dimension of every value that is read or written."""
    from tvm.tirx.analysis import undefined_vars

    return not any(
        used.same_as(variable)
        for access in [*block.reads, *block.writes]
        for extent in access.region[:-1]
        for used in undefined_vars(extent.min)
    )


def tune(module: Any, target: Any, cpu_flags: Collection[str], seconds: float) -> dict[str, Choice]:
    """Returns the fastest measured choice for each function of fixed sizes, within a time budget.

    The slowest functions are measured first. Measurements are kept in the cache's directory for later conversions, by
    ``target`` and ``cpu_flags``.

    Args:
        module: TVM's module.
        target: TVM's target.
        cpu_flags: Flags of this machine's CPU.
        seconds: Time budget.

    Returns:
        Choices by the name of the function.
    """
    from tvm.tirx import PrimFunc

    known = _Measured(target, cpu_flags)
    functions = {
        variable.name_hint: function
        for variable, function in module.functions_items()
        if isinstance(function, PrimFunc) and "conv" in variable.name_hint and _shapes(function) is not None
    }
    end = time.monotonic() + seconds
    for choice in CHOICES:
        # Slowest first, by the best time so far.
        names = sorted(functions, key=lambda name: -min(known.seconds(functions[name]).values(), default=math.inf))
        for name in names:
            if choice not in known.seconds(functions[name]) and time.monotonic() < end:
                known.measure(functions[name], choice)
    known.save()
    best = {}
    for name, function in functions.items():
        times = known.seconds(function)
        if CHOICES[0] in times:
            best[name] = min(times, key=lambda choice: times[choice])
    return best


def _shapes(function: Any) -> list[tuple[list[int], str]] | None:
    """Returns the shapes and dtypes of a function's arguments; None if a size is free."""
    from tvm.tirx import IntImm

    found = []
    for parameter in function.params:
        shape = getattr(parameter, "shape", None)
        if shape is None or not all(isinstance(size, (int, IntImm)) for size in shape):
            return None
        found.append(([int(size) for size in shape], str(parameter.dtype)))
    return found


class _Measured:
    """Measured seconds per function and choice, stored on disk. If the directory can't be used, nothing is kept."""

    def __init__(self, target: Any, cpu_flags: Collection[str]) -> None:
        self.target = target
        self.times: dict[str, dict[str, float]] = {}
        version = importlib.metadata.version("apache-tvm")
        machine = hashlib.sha256(f"{version} {target} {platform.processor()} {sorted(cpu_flags)}".encode())
        self.path: Path | None = None
        with contextlib.suppress(OSError, OptionError, ValueError):
            self.path = cache_directory() / TUNING_DIRECTORY / f"{machine.hexdigest()}.json"
            times = json.loads(self.path.read_text())
            self.times = {key: dict(each) for key, each in times.items()}

    @staticmethod
    def key(function: Any) -> str:
        """Returns the key of a function: the digest of its code."""
        return hashlib.sha256(function.script().encode()).hexdigest()

    def seconds(self, function: Any) -> dict[Choice, float]:
        """Returns the measured seconds of a function by choice."""
        times = self.times.get(self.key(function), {})
        return {choice: times[repr(choice)] for choice in CHOICES if repr(choice) in times}

    def measure(self, function: Any, choice: Choice) -> None:
        """Compiles and runs a function on this machine, in this process."""
        import numpy as np
        import tvm

        arguments = [tvm.runtime.tensor(np.ones(shape, dtype)) for shape, dtype in _shapes(function) or []]
        arranged = _arranged(function, choice).with_attr("global_symbol", "main")
        run = tvm.compile(tvm.IRModule({"main": arranged}), target=self.target)["main"]
        took = math.inf
        for _ in range(4):
            start = time.perf_counter()
            run(*arguments)
            took = min(took, time.perf_counter() - start)
        self.times.setdefault(self.key(function), {})[repr(choice)] = took

    def save(self) -> None:
        if self.path is None:
            return
        with contextlib.suppress(OSError, HybridRTError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as temporary:
                temporary.write_text(json.dumps(self.times))
