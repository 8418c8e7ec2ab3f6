"""Measures which detectors of first_try_detectors.py convert at the first try, with defaults, and writes a table.

Each is converted in a separate process with a time limit, loaded, and compared with the detector at sizes that the
conversion did not see, and in C++ on the golden sample. If a detector has no transform that limits its sizes, the
default bundle accepts only the example's size, and a second conversion passes shapes=.

    python -m tools.benchmarks.first_try --output out/first_try
    python -m tools.benchmarks.first_try --detectors "RT-DETR (transformers)" CRNN
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]

import hybrid_rt
from hybrid_rt.common.executables import find_program
from tools.benchmarks.first_try_detectors import DETECTORS, DetectorCase

LIMIT_S = 300

HEADINGS = ("detector", "first try", "head", "segments", "coverage", "unseen sizes", "C++", "speed", "first line")


@dataclass
class Result:
    """Result for one detector.

    Attributes:
        detector: Name of the detector.
        first_try: True if convert() with defaults returned a bundle.
        head: Method with which the head was captured.
        segments: Names of the engines.
        coverage: Fraction of the work in engines, 0..1.
        unseen_sizes: "equal", or a description of the difference.
        in_cpp: The same for the golden sample in C++.
        speed: Speed-up of the hybrid over eager; None if it was not measured.
        error: First line of the error.
        seconds: Duration of the first conversion.
    """

    detector: str
    first_try: bool = False
    head: str = ""
    segments: list[str] = field(default_factory=list)
    coverage: float = 0.0
    unseen_sizes: str = ""
    in_cpp: str = ""
    speed: float | None = None
    error: str = ""
    seconds: float = 0.0


def first_line(text: str, longest: int = 300) -> str:
    """Returns the first line that is not blank, shortened to a maximum length."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= longest else f"{line[:longest]} ..."


def convert_one(name: str, case: DetectorCase, directory: Path) -> Result:
    """Converts one detector in this process, and compares it."""
    result = Result(name)
    path = directory / "first.pt"
    start = time.perf_counter()
    detector = case.build()
    example = case.arguments(case.example)
    start = time.perf_counter()
    try:
        report = hybrid_rt.convert(detector, example, path, progress=False).report
    except Exception as error:  # a raw error is what this test looks for
        result.error = first_line(f"{type(error).__name__}: {error}")
        result.seconds = round(time.perf_counter() - start, 1)
        return result
    result.seconds = round(time.perf_counter() - start, 1)
    result.first_try = True
    result.head = report.head
    result.segments = [engine.name for engine in report.engines]
    result.coverage = round(min(1.0, sum(engine.share for engine in report.engines)), 3)
    result.speed = round(report.measurement.gain, 2) if report.measurement else None
    result.in_cpp = in_cpp(path)
    result.unseen_sizes = unseen_sizes(detector, case, path, directory, result)
    return result


def unseen_sizes(detector: torch.nn.Module, case: DetectorCase, path: Path, directory: Path, result: Result) -> str:
    """Compares the default bundle, or one with shapes= if the default accepts only the example's size."""
    inputs = [case.arguments(size, seed) for seed, size in enumerate(case.others, 1)]
    if case.shapes is None:
        return compared(detector, path, inputs)
    same_size = [case.arguments(case.example, seed) for seed in (1, 2)]
    difference = compared(detector, path, same_size)
    if difference != "equal":
        return f"at the example's size: {difference}"
    path = directory / "second.pt"
    try:
        hybrid_rt.convert(
            detector, case.arguments(case.example), path, shapes=case.shapes, progress=False, measure=False
        )
    except Exception as error:
        result.error = first_line(f"with shapes=: {type(error).__name__}: {error}")
        return "refused with shapes="
    return compared(detector, path, inputs) + ", with shapes="


def compared(detector: torch.nn.Module, path: Path, inputs: Sequence[tuple[Any, ...]]) -> str:
    """Returns "equal", or how the bundle differs from the detector."""
    try:
        found = hybrid_rt.verify(detector, path, inputs)
    except Exception as error:
        return first_line(str(error).strip().splitlines()[-1], 160)
    if found.failures:
        return first_line(found.failures[0], 160)
    return "equal" if not found.not_run else f"equal but for noise: {first_line(found.not_run[0], 80)}"


def in_cpp(path: Path) -> str:
    """Runs the golden sample in a C++ program."""
    program = find_program("hybrid-rt-detect")
    if program is None:
        return "no program"
    done = subprocess.run([program, path, "--verify", "--json"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return "equal"
    log = done.stderr.strip() or done.stdout
    golden = hybrid_rt.inspect(path).get("golden") or {}
    return f"no sample: {golden['absent']}" if "absent" in golden else f"exit {done.returncode}: {first_line(log, 160)}"


def run_child(name: str, limit: float, directory: Path) -> Result:
    """Converts one detector in a separate process."""
    target = directory / "result.json"
    command = [sys.executable, "-W", "ignore", "-m", "tools.benchmarks.first_try", "--one", name, str(directory)]
    with (directory / "log").open("w") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return Result(name, error=f"no result after {limit:.0f} s", seconds=limit)
    if target.exists():
        return Result(**json.loads(target.read_text()))
    lines = [line for line in (directory / "log").read_text().splitlines() if line.strip()]
    return Result(name, error=f"exit {code}: {first_line(lines[-1] if lines else 'nothing on stderr')}")


def markdown(results: Sequence[Result], *, with_speed: bool) -> str:
    """Returns the table, without speeds if other work was running at the same time."""
    headings = [heading for heading in HEADINGS if with_speed or heading != "speed"]
    rows = [headings, ["---"] * len(headings)]
    for result in results:
        cells = {
            "detector": result.detector,
            "first try": "yes" if result.first_try else "no",
            "head": result.head or "-",
            "segments": str(len(result.segments)) if result.first_try else "-",
            "coverage": f"{result.coverage:.0%}" if result.first_try else "-",
            "unseen sizes": result.unseen_sizes or "-",
            "C++": result.in_cpp or "-",
            "speed": f"{result.speed:.2f}" if result.speed else "-",
            "first line": result.error or "-",
        }
        rows.append([cells[heading].replace("|", "\\|") for heading in headings])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def record(result: Result, directory: Path, *, with_speed: bool) -> None:
    """Writes a row into the table and the JSON of a directory. The rows of other detectors are kept."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "first_try.json"
    rows = {row["detector"]: Result(**row) for row in (json.loads(path.read_text()) if path.exists() else [])}
    rows[result.detector] = result
    order = list(DETECTORS)
    results = sorted(rows.values(), key=lambda row: order.index(row.detector) if row.detector in order else len(order))
    (directory / "first_try.md").write_text(markdown(results, with_speed=with_speed))
    path.write_text(json.dumps([asdict(each) for each in results], indent=1))


def chosen(words: Sequence[str]) -> list[str]:
    """Returns the detectors whose names contain a word, or all. Skips those whose package is not installed."""
    names = [name for name in DETECTORS if not words or any(word.lower() in name.lower() for word in words)]
    return [name for name in names if not (package := DETECTORS[name].package) or importlib.util.find_spec(package)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts the detectors one after another. Writes table and JSON after each, so that a run may be interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", default=[], metavar="WORD", help="whose names hold one of these")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help=f"seconds for each (default: {LIMIT_S})")
    parser.add_argument("--speed", action="store_true", help="show the speed over eager: on a quiet machine only")
    parser.add_argument("--output", type=Path, help="directory for first_try.md and first_try.json")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        return _one(options.one[0], Path(options.one[1]))
    names = chosen(options.detectors)
    if not names:
        parser.error(f"--detectors: expected a part of one of {', '.join(DETECTORS)}")
    results = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
            results.append(run_child(name, options.limit, Path(directory)))
        print(f"{results[-1].seconds:6.1f} s  {markdown(results[-1:], with_speed=True).splitlines()[-1]}", flush=True)
        if options.output:
            record(results[-1], options.output, with_speed=options.speed)
    converted = sum(result.first_try for result in results)
    print(f"{converted} of {len(results)} at the first try")
    return 0


def _one(name: str, directory: Path) -> int:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        result = convert_one(name, DETECTORS[name], directory)
    except Exception as error:
        traceback.print_exc()
        result = Result(name, error=first_line(f"outside of the conversion: {type(error).__name__}: {error}"))
    (directory / "result.json").write_text(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
