"""Says what works on this machine's GPU, and how fast: tests, engines built here, measurements; nothing is asserted.

Each case runs in a process of its own with a time limit: a crash or a hang costs its row. Written: the table on
stdout, everything in out/gpu_check.json, the device's section in docs/hardware.md. Exit code 0 if there is a CUDA
device, whatever failed on it; 1 if there is none: then the page is left as it is. tools/gpu_check builds first.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.gpu import cases as gpu_check_cases
from tools.gpu import report, runner
from tools.gpu.report import FAILED, MEASURED, NOT_RUN, Row

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu_check"

_LIBRARIES = (
    ("HYBRID_RT_TENSORRT_LIBRARY", "tensorrt_libs", "libnvinfer.so*"),
    ("HYBRID_RT_TENSORRT_RTX_LIBRARY", "tensorrt_rtx_libs", "libtensorrt_rtx.so*"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, writes what they found, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all cases; the build is not counted")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORDS", help="cases whose name has one of these")
    parser.add_argument("--steps", type=Path, help="what tools/gpu_check did before")
    parser.add_argument("--output", type=Path, default=ROOT / "out", help="for gpu_check.json (default: out/)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "hardware.md", help="gets the device's section")
    parser.add_argument("--no-page", action="store_true", help="leave the page as it is")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error("--minutes: expected more than 0")
    if not options.no_page:
        # Before the long work: without its markers the page could not be written after it.
        try:
            report.page_with(options.page.read_text(encoding="utf-8"), _NOTHING, str(options.page))
        except (OSError, ValueError) as error:
            parser.error(str(error))
    FOLDER.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    _set_environment()
    rows = runner.build_rows(options.steps) if options.steps else []
    found, data = _run(options.only, options.minutes * 60)
    rows += found
    device = data.get("facts", {}).get("device", {})
    rows += [_goal(goal) for values in data.values() for goal in values.get("goals", [])]
    date = time.strftime("%Y-%m-%d")
    text = report.to_json(date, device, rows, data)
    (options.output / "gpu_check.json").write_text(text, encoding="utf-8")
    if device and not options.no_page:
        report.rewrite(options.page, {"date": date, "device": device, "rows": [vars(row) for row in rows]})
    print(report.table(rows))
    return 0 if device else 1


_NOTHING: Mapping[str, Any] = {"date": "", "device": {"name": ""}, "rows": []}


def _set_environment() -> None:
    """For the cases: a cache of this tool's, and vendors' libraries that do not lie beside hybrid_rt."""
    os.environ.setdefault("HYBRID_RT_CACHE", str(FOLDER / "cache"))
    for variable, package, pattern in _LIBRARIES:
        spec = importlib.util.find_spec(package)
        folders = (spec and spec.submodule_search_locations) or ()
        libraries = sorted(path for folder in folders for path in Path(folder).glob(pattern))
        if libraries:
            os.environ.setdefault(variable, str(libraries[0]))


def _run(only: Sequence[str], seconds: float) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """All cases, until the time is spent. Without a device only the first one, which says why."""
    deadline = time.monotonic() + seconds
    rows: list[Row] = []
    data: dict[str, dict[str, Any]] = {}
    reason = ""
    for name, (case, _) in gpu_check_cases.CASES.items():
        is_first = name == "facts"
        if not is_first and only and not any(word in name for word in only):
            continue
        if reason:
            rows.append(Row(name, NOT_RUN, reason, case.engine))
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "tools.gpu.cases", name]
        outcome = runner.run(case, command, FOLDER, deadline - time.monotonic())
        data[name] = outcome.data
        if is_first and "device" not in outcome.data:
            failure = outcome.rows[-1].figure if outcome.rows else "it left no reason"
            reason = outcome.data.get("no_device") or failure
            rows.append(Row("device", NOT_RUN, reason))
            continue
        rows += outcome.rows
        for row in outcome.rows:
            print(f"  {row.what}: {row.result}: {' '.join(row.figure.split())[:200]}", file=sys.stderr, flush=True)
    return rows, data


def _goal(values: Mapping[str, Any]) -> Row:
    try:
        return Row(f"{report.GOAL}{values['what']}", MEASURED, report.GOALS[values["goal"]].beside(values["value"]))
    except (KeyError, TypeError) as error:
        return Row("goal", FAILED, f"{type(error).__name__}: {error} of {values}")


if __name__ == "__main__":
    sys.exit(main())
