"""Measures the figures in README.md, stores the results, and writes them into the page.

Each measurement is a separate tool. Its results are stored in the repository, in docs/measured/NAME.json, and the
README's table is generated from these files alone. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

KEPT = ROOT / "docs" / "measured"
README = ROOT / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MAX_ROWS = 6


@dataclass(frozen=True)
class Measurement:
    """A tool that measures.

    Attributes:
        module: Module of the tool.
        arguments: Its arguments; ``--output`` is added.
        written: File that it writes into the directory ``--output``; empty if ``--output`` is a file.
    """

    module: str
    arguments: Sequence[str] = ()
    written: str = ""


MEASUREMENTS: Mapping[str, Measurement] = {
    "detectors": Measurement(
        "tools.benchmarks.detectors",
        (
            *("--detectors", "fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"),
            *("--engines", "openvino", "openvino:bf16", "--runtimes", "torchscript-cpp", "hybrid-cpp"),
            *("--rounds", "10"),
        ),
        "bench.json",
    ),
    "accuracy": Measurement("tools.benchmarks.accuracy"),
    "service": Measurement(
        "tools.load.main", ("--workers", "2", "--shares", "70", "--overload-seconds", "10"), "load.json"
    ),
    "overhead": Measurement("tools.benchmarks.op"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, unless only the page is requested, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(MEASUREMENTS), choices=list(MEASUREMENTS))
    parser.add_argument("--render", action="store_true", help="write README.md from the kept results, measure nothing")
    options = parser.parse_args(arguments)
    for name in () if options.render else options.only:
        measure(name)
    README.write_text(with_block(README.read_text(), table(kept())))
    print(f"written: {README.relative_to(ROOT)}")


def measure(name: str) -> None:
    """Runs a tool and stores the file that it writes."""
    measurement = MEASUREMENTS[name]
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
        output = Path(directory) if measurement.written else Path(directory) / f"{name}.json"
        command = [sys.executable, "-m", measurement.module, *measurement.arguments, "--output", str(output)]
        subprocess.run(command, cwd=ROOT, check=True)
        KEPT.mkdir(exist_ok=True)
        shutil.copyfile(output / measurement.written if measurement.written else output, KEPT / f"{name}.json")


def kept() -> dict[str, dict[str, Any]]:
    """Returns the stored results by the names of their measurements."""
    paths = [KEPT / f"{name}.json" for name in MEASUREMENTS]
    return {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}


def table(results: Mapping[str, dict[str, Any]]) -> str:
    """Returns the README's table. A measurement without results has no row."""
    makers = {"detectors": _detectors, "accuracy": _accuracy, "service": _service, "overhead": _overhead}
    rows = [
        [case, result, f"[{machine}]({(KEPT / name).relative_to(ROOT)}.json)"]
        for name, found in results.items()
        for case, result, machine in makers[name](found)
    ]
    if len(rows) > MAX_ROWS:
        raise ValueError(f"tools: expected at most {MAX_ROWS} rows, got {len(rows)}")
    return "\n".join(["| Case | Result | Machine |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def with_block(page: str, text: str) -> str:
    """Returns the page with the text inserted between the two marks.

    Raises:
        ValueError: The page does not contain each mark exactly once.
    """
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", page)
    if parts[1::2] != [BEGIN, END]:
        raise ValueError(f"tools: README.md: expected {BEGIN} and {END} once, got {parts[1::2]}")
    return f"{parts[0]}{BEGIN}\n{text}\n{END}{parts[4]}"


def _machine(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    cpu = re.sub(r"\(R\)|\(TM\)| CPU| Processor|(?: \d+-Core)|@.*", "", machine["cpu"])
    return f"{' '.join(cpu.split())}, {machine['cores']} cores, {machine['date']}"


def _ratio(slow: float, fast: float) -> str:
    """Returns the ratio, rounded down."""
    return f"{math.floor(100 * slow / fast) / 100:.2f}"


def _detectors(results: Mapping[str, Any]) -> list[list[str]]:
    """Returns rows that compare hybrids and frozen TorchScript in C++, in fp32 unless a row says otherwise."""
    medians: dict[tuple[str, str, str], float] = {}
    for result in results["results"]:
        case, latency = result["case"], result["latency"]
        emulated = any("has no bf16" in text or "emulated" in text for text in result["engines"].values())
        if latency is not None and not (case["precision"] == "bf16" and emulated):
            medians[result["detector"], case["runtime"], case["precision"]] = latency["median"]
    rows = []
    for title, names, precision in (
        ("Faster R-CNN R50-FPN, fp32", ("fasterrcnn_resnet50_fpn",), "fp32"),
        ("Faster R-CNN R50-FPN, bf16", ("fasterrcnn_resnet50_fpn",), "bf16"),
        ("RetinaNet and FCOS R50-FPN, fp32", ("retinanet_resnet50_fpn", "fcos_resnet50_fpn"), "fp32"),
    ):
        pairs = [
            (medians.get((name, "torchscript-cpp", "fp32")), medians.get((name, "hybrid-cpp", precision)))
            for name in names
        ]
        known = [(slow, fast) for slow, fast in pairs if slow is not None and fast is not None]
        if len(known) < len(pairs):
            continue
        times = ", ".join(f"{fast:.0f} instead of {slow:.0f} ms" for slow, fast in known)
        ratios = " and ".join(_ratio(slow, fast) for slow, fast in known)
        rows.append([f"{title}, C++", f"{ratios} times as fast as frozen TorchScript ({times})", _machine(results)])
    return rows


def _accuracy(results: Mapping[str, Any]) -> list[list[str]]:
    found = {case: f"{values['mAP']:.4f}" for case, values in results["results"].items()}
    text = f"hybrid {found['hybrid bf16']} in bf16 and {found['hybrid int8']} in int8, whole graph "
    text += f"{found['whole graph bf16']} and {found['whole graph int8']}, eager in fp32 {found['eager fp32']}"
    return [[f"mAP of the demo detector, {results['pictures']} images", text, _machine(results)]]


def _service(results: Mapping[str, Any]) -> list[list[str]]:
    limit, (step, *_) = results["limits"][-1], results["ladder"]
    text = f"{limit['throughput']:.1f} images per second; p99 {step['latency_ms']['p99']:.1f} ms at "
    text += f"{step['share']:.0%} of it"
    return [[f"`hybrid-rt-serve`, SSDLite, {limit['workers']} workers", text, _machine(results)]]


def _overhead(results: Mapping[str, Any]) -> list[list[str]]:
    text = f"{results['noop_us']:.1f} us per call"
    return [["No-op engine called from C++", text, _machine(results)]]


if __name__ == "__main__":
    main()
