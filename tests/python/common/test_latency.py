"""Tests of the arithmetic of measurements, without assertions on real times."""

from __future__ import annotations

import gc
from functools import partial

import pytest
import torch

from hybrid_rt import Latency, OptionError, benchmark
from hybrid_rt.common.latency import percentile


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 5.0), (90, 9.0), (91, 10.0), (95, 10.0), (100, 10.0), (1, 1.0), (0, 1.0)]
)
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], percent) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    assert [percentile([3.0], percent) for percent in (0, 50, 99, 100)] == [3.0] * 4


def test_percentile_does_not_reorder_the_values() -> None:
    values = [3.0, 1.0, 2.0]
    percentile(values, 50)
    assert values == [3.0, 1.0, 2.0]


def test_latency_of_timed_calls() -> None:
    latency = Latency.of([float(i) for i in range(100, 0, -1)], first=500.0)
    assert latency == Latency(median=50.0, p95=95.0, p99=99.0, first=500.0, count=100)


def test_benchmark_alternates_and_times_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    calls: list[str] = []
    # Times of the calls: the first, two warm-up calls, three timed ones.
    milliseconds = {"a": iter([40.0, 9.0, 9.0, 1.0, 3.0, 2.0]), "b": iter([70.0, 9.0, 9.0, 6.0, 5.0, 4.0])}

    def call(name: str, x: int) -> None:
        nonlocal clock
        clock += next(milliseconds[name]) / 1e3
        calls.append(f"{name}{x}")

    monkeypatch.setattr("hybrid_rt.common.latency.time.perf_counter", lambda: clock)
    latencies = benchmark({"a": partial(call, "a"), "b": partial(call, "b")}, (7,), repeat=3, warm_up=2)
    assert calls == ["a7"] * 3 + ["b7"] * 3 + ["a7", "b7"] * 3
    measured = {
        name: (latency.first, latency.median, latency.p99, latency.count) for name, latency in latencies.items()
    }
    assert measured == {
        "a": (pytest.approx(40.0), pytest.approx(2.0), pytest.approx(3.0), 3),
        "b": (pytest.approx(70.0), pytest.approx(5.0), pytest.approx(6.0), 3),
    }


def test_benchmark_runs_without_gradients() -> None:
    modes = []
    benchmark({"a": lambda: modes.append(torch.is_inference_mode_enabled())}, (), repeat=1, warm_up=0)
    assert modes == [True, True]


def test_benchmark_keeps_the_collector_out_of_the_times() -> None:
    was_on = []
    benchmark({"a": lambda: was_on.append(gc.isenabled())}, (), repeat=1, warm_up=0)
    assert was_on == [False, False]
    assert gc.isenabled()
    gc.disable()
    try:
        benchmark({"a": lambda: None}, (), repeat=1, warm_up=0)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_benchmark_lets_errors_through() -> None:
    def fail() -> None:
        raise ValueError("of the case")

    with pytest.raises(ValueError, match="of the case"):
        benchmark({"a": fail}, ())
    assert gc.isenabled()


def test_benchmark_refuses_counts_that_measure_nothing() -> None:
    with pytest.raises(OptionError) as caught:
        benchmark({"a": lambda: None}, (), repeat=0)
    assert str(caught.value) == "hybrid_rt[benchmark]: repeat: expected at least 1, got 0."
    with pytest.raises(OptionError, match="warm_up: expected at least 0, got -1"):
        benchmark({"a": lambda: None}, (), warm_up=-1)
