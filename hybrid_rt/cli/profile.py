"""``hybrid-rt profile``: shows where a bundle spends its time."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..bench.profile import Profile, profile
from ..bundle.call_parts import ENGINE
from .timing import add_call_arguments, image_arguments

_SHOWN = 12


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("profile", help="show where a .pt spends its time: engines, operators, layers")
    add_call_arguments(verb, "run", "threads per call (default: as torch)")
    verb.add_argument("--repeat", type=int, default=10, help="profiled calls (default: 10)")
    verb.add_argument("--trace", type=Path, help="write a Chrome trace for chrome://tracing or Perfetto")
    verb.add_argument("--layers", type=int, default=_SHOWN, help=f"layers to show per engine (default: {_SHOWN})")
    verb.add_argument("--json", action="store_true", help="print JSON, with all layers")
    verb.set_defaults(run=_profile)


def _profile(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    inputs = image_arguments(options.image)
    decoded = 0.0 if inputs is None else (time.perf_counter() - start) * 1e3
    found = profile(
        options.model,
        inputs,
        backend=options.backend,
        threads=options.threads,
        repeat=options.repeat,
        trace=options.trace,
    )
    if options.json:
        print(json.dumps({**found.to_json(), "decode_ms": decoded}, indent=1))
    else:
        _show(found, decoded, options.layers)
    return 0


def _show(found: Profile, decoded: float, layers: int) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    shapes = ", ".join("x".join(map(str, shape)) for shape in found.inputs)
    title = f"{found.path} · {shapes} · {found.threads} threads"
    table = Table("part", "calls", "ms", "share", title=title)
    for part in found.parts:
        if part.share >= 0.001 or part.kind == ENGINE:
            name = f"{part.kind} {part.name}" if part.kind == ENGINE else part.name
            place = f" {part.place}" if part.place else ""
            if part.copied_inputs:
                place += f" (copied {part.copied_inputs:g} inputs: views at addresses that it does not take)"
            table.add_row(name + place, f"{part.calls:g}", f"{part.milliseconds:.2f}", f"{part.share:.1%}")
    console.print(table)
    for engine in found.engines:
        reached = "" if engine.tflops is None else f", {engine.tflops:.3f} TFLOP/s"
        heading = f"{engine.engine} · {engine.backend} {engine.precision}{reached}"
        if not engine.layers:
            console.print(f"{heading}: no layers, since {engine.reason}", markup=False, soft_wrap=True)
            continue
        longest = sorted(engine.layers, key=lambda layer: -layer.milliseconds)
        inner = Table("layer", "kind", "ms", "TFLOP/s", title=heading)
        for layer in longest[:layers]:
            rate = f"{layer.operations / layer.milliseconds / 1e9:.3f}" if layer.operations else ""
            inner.add_row(layer.name, layer.kind, f"{layer.milliseconds:.3f}", rate)
        rest = longest[layers:]
        if rest:
            inner.add_row(f"{len(rest)} more", "", f"{sum(layer.milliseconds for layer in rest):.3f}", "")
        console.print(inner)
    limits = found.limits
    lines = [
        f"median {found.latency.median:.2f} ms without the profiler, {found.profiled_ms:.2f} ms with it",
        f"this machine, in the same run: matrix product {_rates(limits.tflops)}; 3x3 convolution "
        f"{_rates(limits.convolution_tflops)}; copy {limits.copy_gb_per_s:.1f} GB/s",
    ]
    if decoded:
        lines.insert(0, f"decoding the image: {decoded:.2f} ms")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _rates(tflops: Mapping[str, float]) -> str:
    return ", ".join(f"{rate:.3f} TFLOP/s in {name}" for name, rate in tflops.items())
