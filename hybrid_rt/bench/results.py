"""Runs the whole benchmark, one detector after the other, and writes its files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from ..common.atomic_files import atomic_write
from ..common.errors import OptionError
from ..common.progress import Steps
from . import tables
from .bundles import check_plot
from .cases import Case
from .run import Machine, Result, Settings, Subject, run

SCHEMA_VERSION = 1


def run_all(
    subjects: Sequence[Subject],
    cases: Sequence[Case],
    output: Path | None,
    settings: Settings,
    *,
    note: str = "",
    steps: Steps | None = None,
    files: Path | None = None,
) -> tuple[Machine, list[Result]]:
    """Runs all cases of all detectors.

    Args:
        subjects: the detectors.
        cases: the cases of each.
        output: directory for bench.json, bench.md and DETECTOR.png, created if necessary. The files are written after
            each detector, so that results are kept if a later detector ends the process.
        settings: settings for preparing and timing cases.
        note: a sentence for the page.
        steps: shows progress.
        files: directory for the files that the cases run. They are kept, and reused by later runs with the same
            settings. None: a temporary directory.

    Returns:
        The machine, and one result per detector and case.

    Raises:
        OptionError: Two detectors have the same name, matplotlib is missing, or :func:`run.run` refuses an option.
        BundleError: ``output`` can't be written.
    """
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise OptionError.make("bench", "detectors", expected="each once", got=", ".join(names))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        check_plot(output / f"{names[0]}.png")
    machine = Machine.here(settings.threads, settings.device)
    results: list[Result] = []
    for subject in subjects:
        with ExitStack() as stack:
            if files is None:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hybrid_rt_")))
            else:
                directory = files / subject.name
                directory.mkdir(parents=True, exist_ok=True)
            own = run(subject, cases, directory, settings, steps=steps)
        results += own
        if output is not None:
            _write(output, machine, results, settings.rounds, note)
            _plot(output, machine, own)
    return machine, results


def to_json(machine: Machine, results: Sequence[Result], rounds: int) -> str:
    """Returns the machine and all results as JSON."""
    values = {
        "schema_version": SCHEMA_VERSION,
        "machine": asdict(machine),
        "rounds": rounds,
        "results": [result.to_json() for result in results],
    }
    return json.dumps(values, indent=1) + "\n"


def _write(output: Path, machine: Machine, results: Sequence[Result], rounds: int, note: str) -> None:
    for name, text in (
        ("bench.json", to_json(machine, results, rounds)),
        ("bench.md", tables.markdown(machine, results, rounds=rounds, note=note)),
    ):
        with atomic_write(output / name) as temporary:
            temporary.write_text(text)


def _plot(output: Path, machine: Machine, results: Sequence[Result]) -> None:
    """Draws the results of one detector."""
    detector = results[0].detector
    title = f"{detector} · {machine.processor}, {machine.threads} threads · {machine.date}"
    with atomic_write(output / f"{detector}.png") as temporary:
        tables.plot(results, temporary, title)
