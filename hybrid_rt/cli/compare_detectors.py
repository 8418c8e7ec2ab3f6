"""``hybrid-rt bench --detector``: detectors x engines x ways to run them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from ..backends import registry
from ..backends.selection import DEVICES, choose_variants
from ..bench import tables
from ..bench.cases import RUNTIMES, cases
from ..bench.results import run_all, to_json
from ..bench.run import Result, Subject
from ..common.images import pictures_at
from ..common.progress import Steps
from .detectors import detector_named

MAX_PICTURES = 4
"""Of a folder, for the latency: the rounds take them in turns."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """The arguments of ``hybrid-rt bench`` that go with --detector."""
    group = verb.add_argument_group(
        "detectors", "instead of MODELs: each way to run a detector, in a process of its own, boxes compared with eager"
    )
    group.add_argument(
        "--detector",
        action="append",
        default=[],
        metavar="PACKAGE.MODULE:CALLABLE",
        help="or torchvision:NAME; may be repeated",
    )
    group.add_argument(
        "--engine", help="comma-separated backends, e.g. openvino:bf16,torchscript (default: all that are available)"
    )
    group.add_argument("--device", choices=DEVICES, default="cpu", help="where all of them run (default: cpu)")
    group.add_argument("--precision", default="fp32", help="of engines that do not say theirs (default: fp32)")
    group.add_argument(
        "--runtimes", default=",".join(RUNTIMES), help=f"comma-separated, of {', '.join(RUNTIMES)} (default: all)"
    )
    group.add_argument("--segments", default="auto", help="comma-separated dotted names (default: auto, what pays)")
    group.add_argument("--fixed-sizes", action="store_true", help="compile the hybrids for the pictures' sizes alone")
    group.add_argument("--warm-up", type=int, default=2, help="calls a picture that are not timed (default: 2)")


def run_suite(options: argparse.Namespace) -> int:
    """Runs the benchmark; the exit code is 0 though cases may have failed: the result says which, and why."""
    engines = options.engine.split(",") if options.engine else _available(options.device)
    for variant in engines:
        choose_variants([variant], options.precision, fallback=False, scope="bench", device=options.device)
    pictures = pictures_at(options.pictures)[:MAX_PICTURES]
    subjects = [Subject(_name(text), partial(detector_named, text), pictures) for text in options.detector]
    threads = options.threads or torch.get_num_threads()
    machine, results = run_all(
        subjects,
        cases(engines, options.precision, options.runtimes.split(","), options.device),
        options.output,
        rounds=options.repeat,
        warm_up=options.warm_up,
        threads=threads,
        segments=options.segments if options.segments == "auto" else options.segments.split(","),
        fixed_sizes=options.fixed_sizes,
        device=options.device,
        steps=Steps(None),
    )
    if options.json:
        print(to_json(machine, results, options.repeat), end="")
    else:
        show(results, f"{machine.processor}, {threads} threads, {options.repeat} rounds in turns")
    return 0


def _available(device: str) -> list[str]:
    """The engines that compile for a kind of device; TorchScript runs on any."""
    return [
        info.name
        for info in registry.backends()
        if info.available and (device in registry.backend(info.name).devices or info.name == "torchscript")
    ]


def _name(detector: str) -> str:
    """For tables and files."""
    return re.sub(r"[^\w.-]", "_", detector.rpartition(":")[2] if detector.startswith("torchvision:") else detector)


def show(results: Sequence[Result], title: str) -> None:
    """Prints a table a detector, and under it what differs and what failed."""
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
