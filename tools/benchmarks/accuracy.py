"""Measures the demo detector's mAP on held-out images: eager, hybrids, and the whole detector in one graph.

A hybrid computes boxes, scores and NMS in fp32; a whole graph computes them in its own precision. On a CPU without bf16
instructions OpenVINO emulates the rounding, which is slow but right. The ratios of times are of alternating calls.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]

import hybrid_rt
from hybrid_rt.bench import whole_graph
from hybrid_rt.bench.run import Machine
from models import digits_data, digits_detector


def main() -> None:
    """Converts, evaluates and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="held-out images")
    parser.add_argument("--calibration", type=int, default=20, help="training images that int8 is calibrated on")
    parser.add_argument("--int8-max-error", type=float, default=0.15, help="of an engine's outputs, for int8")
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    detector = digits_detector.load()
    samples = digits_data.make_split("held_out", options.pictures, seed=0)
    images = [digits_detector.to_tensor(sample.image) for sample in samples[:2]]
    table = Table(title=f"digits, {options.pictures} held-out images")
    for heading in ("case", "mAP", "mAP@0.5", "s"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        directory = Path(name)
        training = [digits_detector.to_tensor(s.image) for s in digits_data.make_split("train", options.calibration)]
        limit = {"openvino": {"int8_max_error": options.int8_max_error}}
        hybrids = {}
        for precision in ("fp32", "bf16", "int8"):
            path = directory / f"{precision}.pt"
            quantised = {"calibration_data": [([image],) for image in training], "options": limit}
            given: dict[str, Any] = quantised if precision == "int8" else {}
            made = hybrid_rt.convert(detector, (images[:1],), path, precision=precision, fallback=False, **given)
            print(made.report)
            hybrids[f"hybrid {precision}"] = hybrid_rt.load(path, emulate_precision=True)
        cases = {
            "eager fp32": detector,
            **hybrids,
            **{
                f"whole graph {precision}": _whole(detector, images, precision, directory)
                for precision in ("bf16", "fp32")
            },
            "whole graph int8": _whole(detector, images, "int8", directory, training),
        }
        times = hybrid_rt.benchmark(cases, (images[:1],), repeat=30)
        base = times["hybrid fp32"].median
        for case, latency in times.items():
            print(f"{case}: {latency.median:.1f} ms, {latency.median / base:.2f} of hybrid fp32")
        for case, detect in cases.items():
            start = time.perf_counter()
            found = digits_detector.evaluate(detect, samples)
            table.add_row(case, f"{found['mAP']:.4f}", f"{found['mAP50']:.4f}", f"{time.perf_counter() - start:.0f}")
            results[case] = {"mAP": found["mAP"], "mAP50": found["mAP50"]}
    Console().print(table)
    if options.output:
        machine = asdict(Machine.here(torch.get_num_threads()))
        values = {"machine": machine, "pictures": options.pictures, "results": results}
        options.output.write_text(json.dumps(values, indent=1) + "\n")


def _whole(
    detector: torch.nn.Module,
    images: list[torch.Tensor],
    precision: str,
    directory: Path,
    calibration: Sequence[torch.Tensor] = (),
) -> digits_detector.Detect:
    """Returns the whole detector in one OpenVINO graph. In int8, NNCF quantises whatever it chooses."""
    whole_graph.build("openvino", detector, images, precision, directory / precision, calibration)
    return whole_graph.open_whole("openvino", precision, directory / precision, torch.get_num_threads())


if __name__ == "__main__":
    main()
