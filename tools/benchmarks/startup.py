"""Measures in C++ the memory and time of loading a bundle, by parts, and the first calls with and without warm-up.

Each row comes from a separate process without Python. Resident memory is VmRSS; the peak is VmHWM, which is reset
before load(). "vendor's library" is what remains after a bundle with a single small convolution was loaded and run on
the same engine. "of engine" is relative to the bytes of the variant that runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import hybrid_rt
from hybrid_rt.bundle.archive import read_manifest
from tools.benchmarks.bundle_inputs import inputs_of
from tools.benchmarks.native import run


def main() -> None:
    """Measures the bundles and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="bundles; one without a golden sample gets noise")
    parser.add_argument("--threads", type=int, default=2, help="threads per call (default: 2)")
    parser.add_argument("--repeat", type=int, default=10, help="steady calls (default: 10)")
    options = parser.parse_args()
    table = Table(title=f"MiB and ms, {options.threads} threads")
    for heading in (
        "bundle", "engine", "libtorch", "+ vendor's library", "+ load", "of engine", "peak of load",
        "of engine", "+ calls", "load ms", "warm up", "first call", "steady", "ratio", "of CPU time",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("bundle", "warm up") else "right")
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
        for path in options.bundles:
            small = _small(Path(directory), path)
            for warm_up in (False, True):
                table.add_row(*_row(path, warm_up, _measured(path, small, options, warm_up)))
    Console(width=200).print(table)


def _small(directory: Path, like: Path) -> Path:
    """Returns a bundle of one convolution for the engine that runs a given bundle here."""
    [variant] = {
        (chosen.backend, chosen.precision) for engine in hybrid_rt.check(like) if (chosen := engine.chosen) is not None
    }
    path = directory / f"{variant[0]}-{variant[1]}.pt"
    if not path.exists():
        precision = "fp32" if variant[1] == "int8" else variant[1]
        torch.manual_seed(0)
        hybrid_rt.convert(
            nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), (torch.rand(1, 3, 32, 32),), path, engine=variant[0],
            precision=precision, fallback=False, segments=["0"], measure=False,
        )  # fmt: skip
    return path


def _measured(path: Path, small: Path, options: argparse.Namespace, warm_up: bool) -> dict[str, Any]:
    inputs = [small.with_suffix(f".{name}.inputs") for name in ("bundle", "small")]
    arguments = inputs_of(path)
    torch.save(arguments, inputs[0])
    torch.save(inputs_of(small), inputs[1])
    image = arguments[0][0] if isinstance(arguments[0], (list, tuple)) else arguments[0]
    height, width = image.shape[-2:] if warm_up else (0, 0)
    return run(
        "bench_startup", path, inputs[0], small, inputs[1], height, width, options.threads, options.repeat
    )  # fmt: skip


def _row(path: Path, warm_up: bool, found: dict[str, Any]) -> list[str]:
    sizes = {engine.name: {v.label: v.size for v in engine.variants} for engine in read_manifest(path).engines}
    chosen = {engine.engine: engine.chosen for engine in hybrid_rt.check(path)}
    engine = sum(sizes[name][f"{v.backend}:{v.precision}"] for name, v in chosen.items() if v is not None) / 2**20
    first, steady = found["calls"][0], found["calls"][2:]
    wall, cpu = (statistics.median(call[i] for call in steady) for i in (0, 1))
    return [
        path.stem,
        f"{engine:.0f}",
        f"{found['libtorch']:.0f}",
        f"{found['library'] - found['libtorch']:.0f}",
        f"{found['loaded'] - found['before']:.0f}",
        f"{(found['loaded'] - found['before']) / engine:.2f}",
        f"{found['peak'] - found['before']:.0f}",
        f"{(found['peak'] - found['before']) / engine:.2f}",
        f"{found['run'] - found['before']:.0f}",
        f"{found['load_ms']:.0f}",
        "yes" if warm_up else "no",
        f"{first[0]:.0f}",
        f"{wall:.0f}",
        f"{first[0] / wall:.2f}",
        f"{first[1] / cpu:.2f}",
    ]


if __name__ == "__main__":
    main()
