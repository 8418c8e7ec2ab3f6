"""``hybrid-rt bench``: times bundles, or backbones under one bundle's head, side by side."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..bench.bundles import BundleBenchmark, check_plot, compare, plot
from ..common.atomic_files import atomic_write, check_writable
from ..common.errors import OptionError
from ..common.images import images_at
from ..conversion.edit.swap import swap_backbone
from ..verification.coco import CocoDataset
from . import compare_engines
from .detectors import built
from .timing import MAX_IMAGES, add_timing_arguments


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("bench", help="time several .pt files, or backbones under one head, side by side")
    verb.add_argument("models", type=Path, nargs="*", metavar="MODEL", help="path of a .pt")
    verb.add_argument(
        "--backbone",
        action="append",
        default=[],
        metavar="PACKAGE.MODULE:CALLABLE",
        help="add a row with this backbone under the first MODEL's head; may be repeated",
    )
    add_timing_arguments(verb)
    verb.add_argument("--coco", type=Path, help="annotations of the images in COCO format, for the mAP")
    verb.add_argument("--coco-limit", type=int, help="use only the first N annotated images")
    verb.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    verb.add_argument("--output", type=Path, help="also write the rows to this JSON file")
    verb.add_argument("--plot", type=Path, help="draw latency against mAP: .png, .svg or .pdf")
    # compare-engines was `bench --detector` once, and is still called so by scripts.
    verb.add_argument("--detector", action="append", default=[], help=argparse.SUPPRESS)
    compare_engines.add_arguments(verb, hidden=True)
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if bool(options.models) == bool(options.detector):
        got = "both" if options.models else "none"
        raise OptionError.make("cli", "bench", expected="MODELs, or --detector", got=got)
    return _compare_engines(options) if options.detector else _bench(options)


def _compare_engines(options: argparse.Namespace) -> int:
    for_models = {"--backbone": options.backbone, "--coco": options.coco, "--plot": options.plot}
    if given := [name for name, value in for_models.items() if value]:
        raise OptionError.make(
            "cli", "bench --detector", expected="no options that apply to MODELs only", got=", ".join(given)
        )
    print("hybrid-rt: notice: bench --detector is now: hybrid-rt compare-engines DETECTOR ...", file=sys.stderr)
    return compare_engines.run(options)


def _bench(options: argparse.Namespace) -> int:
    if options.plot is not None:
        check_plot(options.plot)
    if options.output is not None:
        check_writable(options.output)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = _measure(options)
    listed = json.dumps([row.to_json() for row in rows], indent=1)
    if options.output is not None:
        with atomic_write(options.output) as temporary:
            temporary.write_text(listed + "\n")
    if options.plot is not None:
        plot(rows, options.plot)
    if options.json:
        print(listed)
    else:
        _print(rows)
    return 0


def _measure(options: argparse.Namespace) -> list[BundleBenchmark]:
    """Times the bundles, and temporary ones with the given backbones."""
    images = images_at(options.images)
    dataset = None
    if options.coco is not None:
        dataset = CocoDataset(options.coco, options.images, options.coco_limit)
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
        bundles = dict(zip(_names(options.models), options.models, strict=True))
        for i, text in enumerate(options.backbone):
            path = Path(directory) / f"{i}.pt"
            swap_backbone(options.models[0], built(text, "backbone"), path)
            bundles[text] = path
        return compare(bundles, images[:MAX_IMAGES], dataset=dataset, repeat=options.repeat, threads=options.threads)


def _names(models: Sequence[Path]) -> list[str]:
    """Returns the files' names, or their paths if names are equal."""
    names = [model.stem for model in models]
    names = [name if names.count(name) == 1 else str(model) for name, model in zip(names, models, strict=True)]
    for name in names:
        if names.count(name) > 1:
            raise OptionError.make("cli", "bench", expected="each MODEL once", got=f"{name} twice")
    return names


def _print(rows: Sequence[BundleBenchmark]) -> None:
    table = Table(caption=f"{rows[0].latency.count} rounds, alternately")
    for heading in ("bundle", "median ms", "p95 ms", "first ms", "mAP", "mAP@0.5", "MB", "engines"):
        table.add_column(heading, justify="left" if heading in ("bundle", "engines") else "right")
    for row in rows:
        latency, accuracy = row.latency, row.accuracy
        table.add_row(
            row.name,
            f"{latency.median:.1f}",
            f"{latency.p95:.1f}",
            f"{latency.first:.1f}",
            f"{accuracy.mAP:.4f}" if accuracy else "-",
            f"{accuracy.mAP50:.4f}" if accuracy else "-",
            f"{row.size / 1e6:.1f}",
            "\n".join(f"{engine}: {text}" for engine, text in row.engines.items()),
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
