"""Formats the report as text for a terminal."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...bundle.signing import SignatureChange
from ...capture.segments import ENGINE_SPEEDUP, Share, predicted_gain
from ...common.class_names import summary_of
from ...verification.text import summary
from .data import ReportData
from .measurement import Measurement

LEAST_SHOWN = 0.005
"""Smallest fraction of the detector's work that is shown."""

_USUAL_WIDTH = 100


def shares_table(shares: Sequence[Share], precision: str) -> Table:
    """Returns each submodule's share of the counted work, with the predicted speed-up."""
    speedup = ENGINE_SPEEDUP[precision]
    gain = predicted_gain(shares, speedup)
    limit = predicted_gain(shares, float("inf"))
    table = Table(
        caption=f"predicted end to end: {gain:.2f} times faster, if engines run these {speedup:g} times faster in "
        f"{precision}; {limit:.1f} times at the most"
    )
    for heading in ("submodule", "ms", "share", ""):
        table.add_column(heading, justify="right" if heading in ("ms", "share") else "left")
    for share in shares:
        if not share.chosen and share.share < LEAST_SHOWN:
            continue
        table.add_row(
            share.name,
            f"{share.milliseconds:.1f}",
            f"{share.share:.1%}",
            "segment" if share.chosen else f"stays in TorchScript: {share.reason}",
        )
    return table


def report_text(report: ReportData, width: int | None = None) -> str:
    """Returns the report as tables and sentences, ``width`` columns wide; None: the terminal's width."""
    written = io.StringIO()
    console = Console(width=width or shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns, file=written)

    def write(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    write(f"{report.detector} -> {report.path} ({report.file_size / 1e6:.1f} MB)")
    console.print(_engines_table(report))
    for line in quantization_lines(report):
        write(line)
    for trial in report.precisions:
        write(f"precision {trial.line}")
    write(head_text(report))
    if report.state:
        write(f"as at conversion before each call: {', '.join(report.state)}")
    for given_up in report.given_up:
        write(f"given up: {given_up.summary}")
    if report.measurement is not None:
        console.print(_latency_table(report.measurement))
        write(measured_text(report.measurement, report.predicted_gain))
        write(new_size_text(report.measurement))
    else:
        write(f"predicted: {report.predicted_gain:.2f} times as fast as eager; not measured: {report.not_measured}")
    for line in report.latency_contract.lines if report.latency_contract is not None else []:
        write(line)
    for line in summary(report.verification):
        write(line)
    if report.golden:
        write(f"golden sample: {report.golden}")
    for line in SignatureChange(tuple(report.signed_with), tuple(report.signatures_dropped)).notes:
        write(line)
    if report.class_names:
        write(f"class names: {summary_of(report.class_names)}")
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def head_text(report: ReportData) -> str:
    """Returns the chosen head's mode, with one line per mode that was tried before."""
    lines = [f"head: {report.head}", *(f"  not {mode}: {reason}" for mode, reason in report.head_refused.items())]
    return "\n".join(lines)


def quantization_lines(report: ReportData) -> list[str]:
    """Returns one line per int8 engine, with its error and the layers that stay in fp32."""
    return [
        f"{variant.backend} in int8, {engine.name}: {variant.quantization.summary}"
        for engine in report.engines
        for variant in engine.variants
        if variant.quantization is not None
    ]


def _engines_table(report: ReportData) -> Table:
    table = Table()
    for heading in ("engine", "share", "backend", "precision", "MB", "cache"):
        table.add_column(heading, justify="right" if heading in ("share", "MB") else "left", overflow="fold")
    for engine in report.engines:
        for i, variant in enumerate(engine.variants):
            name, share = (engine.name, f"{engine.share:.1%}") if i == 0 else ("", "")
            size, cached = f"{variant.size / 1e6:.1f}", "hit" if variant.cached else "miss"
            table.add_row(Text(name), share, variant.backend, variant.precision, size, cached)
    return table


def _latency_table(measurement: Measurement) -> Table:
    table = Table()
    for heading in ("ms a call", "median", "p95", "first call"):
        table.add_column(heading, justify="left" if heading == "ms a call" else "right")
    for name, latency in measurement.latencies.items():
        table.add_row(name, *(f"{value:.1f}" for value in (latency.median, latency.p95, latency.first)))
    return table


def measured_text(measurement: Measurement, predicted: float) -> str:
    """Returns two lines: the speed-up, and the conditions of the measurement."""
    rounds = measurement.latencies["hybrid"].count
    return (
        f"measured: {measurement.gain:.2f} times as fast as eager (predicted {predicted:.2f})\n"
        f"  {rounds} {'round' if rounds == 1 else 'rounds'}, alternately, {threads_text(measurement)}, "
        f"{images_text(measurement)}; loaded in {measurement.load:.0f} ms"
    )


def threads_text(measurement: Measurement) -> str:
    """Returns the number of threads as text, e.g. ``2 threads``."""
    return f"{measurement.threads} {'thread' if measurement.threads == 1 else 'threads'}"


def images_text(measurement: Measurement) -> str:
    """Returns the image sizes (height x width) as text, e.g. ``images of 320x320``."""
    sizes = dict.fromkeys(f"{height}x{width}" for height, width in measurement.pictures)
    return f"images of {', '.join(sizes)}" if sizes else "inputs that are not images"


def new_size_text(measurement: Measurement) -> str:
    """Returns one line with the time of a call at a new size, or the reason why none was measured."""
    new = measurement.new_size
    if new is None:
        return f"an image size not seen before: not measured, {measurement.no_new_size}"
    return (
        f"an image size not seen before ({new.height}x{new.width}): {new.first:.0f} ms, "
        f"the next call {new.later:.0f} ms"
    )
