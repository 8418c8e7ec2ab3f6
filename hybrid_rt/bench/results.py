"""The whole benchmark: detectors one after the other, and the files that it leaves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..common.atomic_files import written_whole
from ..common.errors import OptionError
from ..common.progress import Steps
from . import tables
from .bundles import check_plot
from .cases import Case
from .run import Machine, Result, Subject, run

SCHEMA_VERSION = 1


def run_all(
    subjects: Sequence[Subject],
    cases: Sequence[Case],
    output: Path | None,
    *,
    rounds: int,
    warm_up: int,
    threads: int,
    segments: str | list[str] = "auto",
    fixed_sizes: bool = False,
    device: str = "cpu",
    note: str = "",
    steps: Steps | None = None,
) -> tuple[Machine, list[Result]]:
    """Runs all cases of all detectors; see :func:`run.run` for the arguments.

    Args:
        subjects: the detectors.
        cases: of each.
        output: a folder, made if need be, for bench.json, bench.md and DETECTOR.png; they are written after each
            detector, so that what was measured is there if a later one ends the process.
        rounds: timed.
        warm_up: not timed.
        threads: for a call.
        segments: of the hybrids.
        fixed_sizes: of the hybrids.
        device: where all run.
        note: a sentence for the page.
        steps: shows progress.

    Returns:
        The machine, and a result a case a detector.

    Raises:
        OptionError: two detectors of one name, no matplotlib for the plots, and what :func:`run.run` refuses.
        BundleError: ``output`` can't be written.
    """
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise OptionError.make("bench", "detectors", expected="each once", got=", ".join(names))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        check_plot(output / f"{names[0]}.png")
    machine = Machine.here(threads, device)
    results: list[Result] = []
    for subject in subjects:
        with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as folder:
            own = run(
                subject,
                cases,
                Path(folder),
                rounds=rounds,
                warm_up=warm_up,
                threads=threads,
                segments=segments,
                fixed_sizes=fixed_sizes,
                device=device,
                steps=steps,
            )
        results += own
        if output is not None:
            _write(output, machine, results, rounds, note)
            with written_whole(output / f"{subject.name}.png") as temporary:
                tables.plot(own, temporary, f"{subject.name} · {machine.processor}, {threads} threads · {machine.date}")
    return machine, results


def to_json(machine: Machine, results: Sequence[Result], rounds: int) -> str:
    """All that is known, as JSON."""
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
        with written_whole(output / name) as temporary:
            temporary.write_text(text)
