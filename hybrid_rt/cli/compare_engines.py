"""``hybrid-rt compare-engines``: runs detectors in all combinations of engines and runtimes."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..backends import registry
from ..backends.selection import DEVICES, choose_variants
from ..bench import tables
from ..bench.cases import RUNTIMES, cases
from ..bench.results import run_all, to_json
from ..bench.run import Result, Settings, Subject
from ..common.images import images_at
from ..common.progress import Steps
from .detectors import detector_named
from .timing import MAX_IMAGES, add_timing_arguments


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser(
        "compare-engines",
        help="run detectors in every available way, each in its own process, and compare speed and boxes",
    )
    verb.add_argument(
        "detector",
        nargs="+",
        metavar="DETECTOR",
        help="PACKAGE.MODULE:CALLABLE that returns the detector, or torchvision:NAME",
    )
    add_timing_arguments(verb)
    verb.add_argument("--json", action="store_true", help="print JSON instead of tables")
    verb.add_argument("--output", type=Path, help="directory for bench.json, bench.md and one plot per detector")
    add_arguments(verb)
    verb.set_defaults(run=run)


def add_arguments(verb: argparse.ArgumentParser, *, hidden: bool = False) -> None:
    """Adds the arguments that choose the cases.

    Args:
        verb: the parser to add them to.
        hidden: leave them out of the help.
    """

    def add(name: str, help_text: str, **settings: Any) -> None:
        verb.add_argument(name, help=argparse.SUPPRESS if hidden else help_text, **settings)

    add("--engine", "comma-separated backends, e.g. openvino:bf16,torchscript (default: all available)")
    add("--device", "device for all cases (default: cpu)", choices=DEVICES, default="cpu")
    add("--precision", "precision of engines that do not name one (default: fp32)", default="fp32")
    add("--runtimes", f"comma-separated subset of {', '.join(RUNTIMES)} (default: all)", default=",".join(RUNTIMES))
    add("--segments", "comma-separated dotted names of submodules to compile (default: auto)", default="auto")
    add("--fixed-sizes", "compile the hybrids only for the sizes of the images", action="store_true")
    add("--warm-up", "untimed calls per image before the measurement (default: 2)", type=int, default=2)


def run(options: argparse.Namespace) -> int:
    """Runs the comparison. The exit code is 0 even if cases failed; the results list them with the reasons."""
    engines = options.engine.split(",") if options.engine else registry.available_for(options.device)
    for variant in engines:
        choose_variants([variant], options.precision, fallback=False, scope="bench", device=options.device)
    images = images_at(options.images)[:MAX_IMAGES]
    subjects = [Subject(_name(text), partial(detector_named, text), images) for text in options.detector]
    settings = Settings(
        rounds=options.repeat,
        warm_up=options.warm_up,
        threads=options.threads or torch.get_num_threads(),
        segments=options.segments if options.segments == "auto" else options.segments.split(","),
        fixed_sizes=options.fixed_sizes,
        device=options.device,
    )
    chosen = cases(engines, options.precision, options.runtimes.split(","), options.device)
    machine, results = run_all(subjects, chosen, options.output, settings, steps=Steps(None))
    if options.json:
        print(to_json(machine, results, options.repeat), end="")
    else:
        show(results, f"{machine.processor}, {settings.threads} threads, {options.repeat} rounds, alternately")
    return 0


def _name(detector: str) -> str:
    """Returns a detector's name for tables and files."""
    return re.sub(r"[^\w.-]", "_", detector.rpartition(":")[2] if detector.startswith("torchvision:") else detector)


def show(results: Sequence[Result], title: str) -> None:
    """Prints one table per detector, followed by the differences and failures."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for detector in dict.fromkeys(result.detector for result in results):
        own = [result for result in results if result.detector == detector]
        table = Table(title=f"{detector} · {title}")
        for heading in tables.HEADINGS:
            table.add_column(heading, justify="left" if heading == "case" else "right")
        for row in tables.rows(own):
            table.add_row(*row)
        console.print(table)
        for label, texts in (("differs", tables.unequal(own)), ("failed", tables.failures(own))):
            for text in texts:
                console.print(f"{label}: {text}", markup=False, highlight=False, soft_wrap=True)
