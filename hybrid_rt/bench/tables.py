"""Formats the results as Markdown and as plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cases import Case
from .run import Machine, Result

HEADINGS = (
    "case",
    "median ms",
    "p95",
    "p99",
    "speed-up",
    "first call ms",
    "load ms",
    "peak MB",
    "file MB",
    "eager's boxes",
)

_COLORS = {
    "eager": "#8a8f98",
    "compile": "#b0a18f",
    "torchscript": "#5b8db8",
    "hybrid": "#d1603d",
    "whole": "#6a994e",
}


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """One row per result that has figures, under :data:`HEADINGS`."""
    eager = next((result.latency for result in results if result.case == Case("eager")), None)
    found: list[tuple[str, ...]] = []
    for result in results:
        latency = result.latency
        if result.failure or latency is None:
            continue
        found.append(
            (
                result.case.name,
                f"{latency.median:.1f}",
                f"{latency.p95:.1f}",
                f"{latency.p99:.1f}",
                f"{eager.median / latency.median:.2f}" if eager else "-",
                f"{latency.first:.0f}",
                f"{result.load_ms:.0f}",
                f"{result.peak_bytes / 1e6:.0f}",
                f"{result.file_bytes / 1e6:.1f}",
                _boxes(result),
            )
        )
    return found


def failures(results: Sequence[Result]) -> list[str]:
    """Returns one line per case without figures."""
    return [f"{result.case.name}: {result.failure}" for result in results if result.failure]


def unequal(results: Sequence[Result]) -> list[str]:
    """Returns one line per case whose boxes differ from eager's, or that could not be compared."""
    return [
        f"{result.case.name}: {'; '.join(result.differences) or f'not compared: {result.not_compared}'}"
        for result in results
        if result.differences or result.not_compared
    ]


def _boxes(result: Result) -> str:
    if result.not_compared:
        return "not compared"
    expected = sum(match.expected for match in result.boxes)
    matched = sum(match.matched for match in result.boxes)
    cut = sum(match.expected_at_cut for match in result.boxes)
    text = f"{matched} of {expected}" + (f" ({cut} at the cut)" if cut else "")
    return f"{text}: differs" if result.differences else text


def markdown(machine: Machine, results: Sequence[Result], *, rounds: int, note: str = "") -> str:
    """Returns a page: the machine, one table per detector, and the differences and failures with their reasons."""
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    gpu = f"{machine.gpu}; " if machine.gpu else ""
    lines = [
        f"{gpu}{machine.cpu}, {machine.cores} cores, {machine.threads} threads a call; {machine.system}; "
        f"Python {machine.python}, {packages}; {machine.date}.",
        "",
        f"Each case in its own process, called alternately, {rounds} timed rounds. TorchScript is frozen. Peak: of "
        "the process's resident memory, interpreter, libraries and loading included. Load: without imports. Speed-up: "
        "eager's median divided by the case's.",
    ]
    if note:
        lines += ["", note]
    for detector in dict.fromkeys(result.detector for result in results):
        own = [result for result in results if result.detector == detector]
        lines += ["", f"## {detector}", "", _row(HEADINGS), _row(("---", *["---:"] * (len(HEADINGS) - 1)))]
        lines += [_row(row) for row in rows(own)]
        for title, texts in (("Results that differ from eager's", unequal(own)), ("Failed", failures(own))):
            if texts:
                lines += ["", f"{title}:", "", *(f"- {_escaped(text)}" for text in texts)]
        engines = {f"{result.case.engine} {result.case.precision}": result.engines for result in own if result.engines}
        if engines:
            lines += ["", "Engines:", ""]
            lines += [
                f"- {name}: " + "; ".join(f"{key}: {text}" for key, text in engine.items())
                for name, engine in engines.items()
            ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """Escapes "<" and "|", which Markdown would treat as HTML and as the start of the next cell."""
    return text.replace("|", r"\|").replace("<", r"\<")


def plot(results: Sequence[Result], path: Path, title: str) -> None:
    """Draws latency and peak memory of one detector, one bar per case.

    Args:
        results: the results of one detector; those that failed are left out.
        path: path of a .png, .svg or .pdf.
        title: title of the plot.

    Raises:
        OSError: The file can't be written.
    """
    from matplotlib.figure import Figure

    shown = [(result, result.latency) for result in results if result.latency is not None]
    figure = Figure(figsize=(10, 1.4 + 0.34 * len(shown)), dpi=120, layout="constrained")
    times, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    names = [result.case.name + (" (differs)" if result.differences else "") for result, _ in shown]
    colors = [_COLORS[result.case.kind] for result, _ in shown]
    whiskers: Any = [[0.0] * len(shown), [latency.p95 - latency.median for _, latency in shown]]
    bars = times.barh(names, [latency.median for _, latency in shown], xerr=whiskers, color=colors, capsize=2)
    times.bar_label(bars, [f"{latency.median:.0f}" for _, latency in shown], padding=3, fontsize=8)
    times.invert_yaxis()
    times.margins(x=0.12)
    times.set_xlabel(f"milliseconds per image (median of {shown[0][1].count}, whisker to p95)")
    memory.barh(names, [result.peak_bytes / 1e6 for result, _ in shown], color=colors)
    memory.set_xlabel("peak resident memory, MB")
    for axes in (times, memory):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)
