"""Reports what works on this machine's GPU, and how fast: tests, engines built here, measurements. Nothing is asserted.

Each case runs in a separate process with a time limit, so a crash or a hang costs only its row. Cases that measure run
alone, after the others, which run concurrently. Written after each case: all results in out/gpu_check.json, and the
device's section in docs/hardware.md. At the end, the table is printed to stdout. Exit code 0 if there is a CUDA device,
whatever failed on it; 1 if there is none, and then the page is left unchanged. tools/gpu_check builds first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tools.gpu import cases as gpu_check_cases
from tools.gpu import report, runner
from tools.gpu.report import FAILED, MEASURED, NOT_RUN, Row

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "build" / "gpu_check"

REHEARSAL_SLOWDOWN = 4.0
"""Factor of the time limits on a CPU: two cores convert a large detector in minutes."""

_LIBRARIES = (
    ("HYBRID_RT_TENSORRT_LIBRARY", "tensorrt_libs", "libnvinfer.so*"),
    ("HYBRID_RT_TENSORRT_RTX_LIBRARY", "tensorrt_rtx_libs", "libtensorrt_rtx.so*"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, writes their results and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.5, help="for all, the build included (default: 9.5)")
    parser.add_argument("--spent", type=float, default=0.0, metavar="SECONDS", help="of these, by what came before")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORDS", help="cases whose name has one of these")
    parser.add_argument("--without", nargs="+", default=[], metavar="WORDS", help="leaves out cases with one of these")
    together = min(5, max(1, (os.cpu_count() or 1) // 3))
    help_text = f"cases that measure nothing, at a time (default: one per three cores, at most 5; here {together})"
    parser.add_argument("--side-by-side", type=int, default=together, metavar="N", help=help_text)
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: run the cases on the CPU")
    parser.add_argument(
        "--earlier", type=Path, nargs="+", default=[], help="gpu_check.json of earlier calls, to add to"
    )
    parser.add_argument("--steps", type=Path, help="what tools/gpu_check did before")
    parser.add_argument("--output", type=Path, default=ROOT / "out", help="for gpu_check.json (default: out/)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "hardware.md", help="gets the device's section")
    parser.add_argument("--no-page", action="store_true", help="leave the page as it is")
    parser.add_argument("--no-run", action="store_true", help="run nothing: write the page of --earlier")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error("--minutes: expected more than 0")
    if options.side_by_side < 1:
        parser.error("--side-by-side: expected at least 1")
    if not options.no_page:
        # Checked before the long work, because without its markers the page could not be written afterwards.
        try:
            report.page_with(options.page.read_text(encoding="utf-8"), _NOTHING, str(options.page))
        except (OSError, ValueError) as error:
            parser.error(str(error))
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.rehearse:
        os.environ[runner.DEVICE_VARIABLE] = "cpu"
    _set_environment()
    results = _Results(options.output / "gpu_check.json", None if options.no_page else options.page)
    try:
        for earlier in options.earlier:
            results.add_earlier(json.loads(earlier.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"--earlier: expected files that this tool wrote, got {type(error).__name__}: {error}")
    if options.steps:
        results.add(runner.build_rows(options.steps))
    if not options.no_run:
        _run(options, results)
    results.write()
    print(report.table(results.all_rows()))
    return 0 if results.device else 1


class _Results:
    """Results so far, written to disk after each case, so that they survive the loss of the machine."""

    def __init__(self, path: Path, page: Path | None) -> None:
        self._path, self._page = path, page
        self._date = time.strftime("%Y-%m-%d")
        self._rows: list[Row] = []
        self._data: dict[str, dict[str, Any]] = {}
        self.device: dict[str, Any] = {}

    def add_earlier(self, results: Mapping[str, Any]) -> None:
        self._date, self.device = results["date"], dict(results["device"])
        self._data.update(results["cases"])
        self._rows += [row for row in map(Row.of, results["rows"]) if not row.what.startswith(report.GOAL)]

    def add(self, rows: Sequence[Row], case: str = "", data: dict[str, Any] | None = None) -> None:
        """Adds a case's rows, replacing those of the same names from an earlier call."""
        names = {row.what for row in rows}
        # A failed case has a row with the case's own name, which a later success does not have.
        self._rows = [row for row in self._rows if row.what not in names and row.what != case] + list(rows)
        if case and data is not None:
            self._data[case] = data
            self.device = data.get("device") or self.device
            self.write()

    def all_rows(self) -> list[Row]:
        goals = [_goal(goal) for values in self._data.values() for goal in values.get("goals", [])]
        return self._rows + goals

    def write(self) -> None:
        text = report.to_json(self._date, self.device, self.all_rows(), self._data)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._path)
        if self.device and self._page is not None:
            report.rewrite(self._page, json.loads(text))


_NOTHING: Mapping[str, Any] = {"date": "", "device": {"name": ""}, "rows": []}


def _set_environment() -> None:
    """Sets the cases' environment: this tool's own cache, and vendors' libraries that are not next to hybrid_rt."""
    os.environ.setdefault("HYBRID_RT_CACHE", str(DIRECTORY / "cache"))
    for variable, package, pattern in _LIBRARIES:
        spec = importlib.util.find_spec(package)
        directories = (spec and spec.submodule_search_locations) or ()
        libraries = sorted(path for directory in directories for path in Path(directory).glob(pattern))
        if libraries:
            os.environ.setdefault(variable, str(libraries[0]))


def _run(options: argparse.Namespace, results: _Results) -> None:
    """Runs all cases until the time is spent. Without a device, runs only the first one, which gives the reason."""
    deadline = time.monotonic() + options.minutes * 60 - options.spent
    lock = threading.Lock()

    def run(name: str) -> runner.Outcome:
        case, _ = gpu_check_cases.CASES[name]
        if options.rehearse:
            case = replace(case, seconds=case.seconds * REHEARSAL_SLOWDOWN)
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "tools.gpu.cases", name]
        threads = max(1, (os.cpu_count() or 1) // options.side_by_side)
        outcome = runner.run(case, command, DIRECTORY, deadline - time.monotonic(), threads)
        with lock:
            results.add(outcome.rows, name, outcome.data)
            for row in outcome.rows:
                text = " ".join(row.figure.split())[:200]
                print(f"  {row.what}: {row.result}: {text}", file=sys.stderr, flush=True)
        return outcome

    wanted = [
        name
        for name in gpu_check_cases.CASES
        if (not options.only or any(word in name for word in options.only))
        and not any(word in name for word in options.without)
    ]
    first = run("facts")
    if "device" not in first.data and not options.rehearse:
        failure = first.rows[-1].figure if first.rows else "it left no reason"
        reason = first.data.get("no_device") or failure
        cases = [gpu_check_cases.CASES[name][0] for name in wanted if name != "facts"]
        results.add([Row("device", NOT_RUN, reason), *(Row(case.name, NOT_RUN, reason, case.engine) for case in cases)])
        return
    cases_of = {name: gpu_check_cases.CASES[name][0] for name in wanted if name != "facts"}
    with ThreadPoolExecutor(options.side_by_side) as pool:
        list(pool.map(run, [name for name, case in cases_of.items() if not case.is_timed]))
    for name, case in cases_of.items():
        if case.is_timed:
            run(name)


def _goal(values: Mapping[str, Any]) -> Row:
    try:
        return Row(f"{report.GOAL}{values['what']}", MEASURED, report.GOALS[values["goal"]].beside(values["value"]))
    except (KeyError, TypeError) as error:
        return Row("goal", FAILED, f"{type(error).__name__}: {error} of {values}")


if __name__ == "__main__":
    sys.exit(main())
