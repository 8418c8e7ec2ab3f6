"""Measures latencies side by side: cases run alternately, so that background load affects all of them equally."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .errors import OptionError
from .tensor_tree import map_tensors


@dataclass(frozen=True)
class Latency:
    """Latency of one call, in milliseconds.

    Attributes:
        median: median of the timed calls.
        p95: 95th percentile, by nearest rank.
        p99: 99th percentile, by nearest rank.
        first: the very first call, which is not one of the timed calls.
        count: number of timed calls.
    """

    median: float
    p95: float
    p99: float
    first: float
    count: int

    @classmethod
    def of(cls, milliseconds: list[float], first: float) -> Latency:
        """Returns the percentiles of the timed calls.

        Args:
            milliseconds: the timed calls.
            first: the very first call.
        """
        return cls(
            percentile(milliseconds, 50),
            percentile(milliseconds, 95),
            percentile(milliseconds, 99),
            first,
            len(milliseconds),
        )


def percentile(values: list[float], percent: float) -> float:
    """Returns the nearest-rank percentile: the smallest value that ``percent`` % of the values do not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def benchmark(
    cases: Mapping[str, Callable[..., Any]], inputs: tuple[Any, ...], *, repeat: int = 20, warm_up: int = 2
) -> dict[str, Latency]:
    """Times callables on the same inputs, interleaved: one call of each, ``repeat`` times.

    Python's garbage collector is off meanwhile, as in timeit: with torch imported, it may add 200 ms to one call.

    Args:
        cases: detectors, loaded bundles or other callables, by name.
        inputs: positional arguments.
        repeat: timed rounds, at least 1.
        warm_up: further calls of each, before the timed ones and after the first.

    Returns:
        The latency of each case, in milliseconds.

    Raises:
        OptionError: repeat is below 1, or warm_up below 0.

    Examples:
        >>> module = hybrid_rt.load("detector.pt")
        >>> latency = hybrid_rt.benchmark({"eager": detector, "hybrid": module}, ([image],), repeat=5)
        >>> latency["hybrid"].count
        5
    """
    for name, value, least in (("repeat", repeat, 1), ("warm_up", warm_up, 0)):
        if value < least:
            raise OptionError.make("benchmark", name, expected=f"at least {least}", got=str(value))
    first = {}
    with torch.inference_mode(), _no_collector():
        for name, call in cases.items():
            first[name] = _timed(call, inputs)
            for _ in range(warm_up):
                _timed(call, inputs)
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(repeat):
            for name, call in cases.items():
                times[name].append(_timed(call, inputs))
    return {name: Latency.of(times[name], first[name]) for name in cases}


def times_of(call: Callable[..., Any], inputs: tuple[Any, ...], *, repeat: int, warm_up: int) -> list[float]:
    """Returns the milliseconds of each of ``repeat`` calls, after ``warm_up`` calls that are not counted."""
    with torch.inference_mode(), _no_collector():
        for _ in range(warm_up):
            _timed(call, inputs)
        return [_timed(call, inputs) for _ in range(repeat)]


@contextmanager
def _no_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _timed(call: Callable[..., Any], inputs: tuple[Any, ...]) -> float:
    inputs = map_tensors(inputs, lambda tensor: tensor)  # own lists and dicts: a detector may add entries to them
    start = time.perf_counter()
    call(*inputs)
    return (time.perf_counter() - start) * 1e3
