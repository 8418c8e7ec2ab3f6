"""Ratios of hybrids to whole graphs, from results of several runs."""

from __future__ import annotations

from typing import Any

from tools.benchmarks.ratios import markdown, ratios_of


def result(detector: str, runtime: str, engine: str, precision: str, median: float | None) -> dict[str, Any]:
    return {
        "detector": detector,
        "case": {"runtime": runtime, "engine": engine, "precision": precision},
        "latency": None if median is None else {"median": median},
    }


def run(hybrid: float, whole: float | None, detector: str = "demo") -> dict[str, Any]:
    return {
        "results": [
            result(detector, "torchscript-cpp", "", "fp32", 60.0),
            result(detector, "hybrid-cpp", "openvino", "fp32", hybrid),
            result(detector, "hybrid-cpp", "onnxruntime", "fp32", 1.0),
            result(detector, "whole", "openvino", "fp32", whole),
            result(detector, "whole", "openvino", "bf16", 1.0),
        ]
    }


def test_times_of_different_runs_are_never_compared() -> None:
    """The second run is slower in all cases. Across runs, the ratios would be 0.6 and 2.6."""
    ratios = ratios_of([run(10.0, 12.0), run(20.0, 26.0)], "openvino")
    assert ratios["demo", "whole", "fp32"] == [1.2, 1.3]
    assert ratios["demo", "torchscript-cpp", "fp32"] == [6.0, 3.0]
    assert ("demo", "whole", "bf16") not in ratios


def test_a_table_shows_medians_ranges_and_geometric_means() -> None:
    ratios = ratios_of([run(10.0, 12.0), run(10.0, 11.0), run(10.0, 30.0), run(10.0, 48.0, "other")], "openvino")
    assert markdown(ratios).splitlines() == [
        "| detector | whole graph, fp32 | frozen TorchScript, fp32 |",
        "| --- | ---: | ---: |",
        "| demo | 1.20 (1.10 to 3.00) | 6.00 (6.00 to 6.00) |",
        "| other | 4.80 | 6.00 |",
        "| geometric mean | 2.40 | 6.00 |",
    ]


def test_a_case_that_failed_has_no_ratio() -> None:
    ratios = ratios_of([run(10.0, None)], "openvino")
    assert ("demo", "whole", "fp32") not in ratios
    assert "whole graph" not in markdown(ratios)
