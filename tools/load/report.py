"""Writes the load test's results as Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hybrid_rt.common.atomic_files import atomic_write

OPEN_COLUMNS = (
    *("of the limit", "offered per second", "accepted", "refused", "failed", "per second"),
    *("p50", "p95", "p99", "client", "sent late"),
)
"""Columns for constant rates; see _open_row."""


def markdown(results: dict[str, Any]) -> str:
    """Returns the tables for the result of :func:`main.measure`."""
    sections = (_setting(results), _limits(results), _ladder(results), _overload(results))
    return "\n".join(line for section in sections for line in section) + "\n"


def _setting(results: dict[str, Any]) -> list[str]:
    """Describes the machine and how to read the tables."""
    machine, image = results["machine"], results["picture"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return [
        f"# {results['model']} under load",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, {versions}; "
        f"{machine['date']}. Images of {image['height']}x{image['width']}, JPEGs of {image['bytes']} bytes. "
        "Client and server share the machine, over loopback; `client` is the client's share of it, in cores. "
        "Latencies are those of the accepted requests, in milliseconds, from when each was due. `sent late` is by how "
        "many milliseconds at most the client itself was late: where it is long, latencies are not the server's alone.",
        "",
    ]


def _limits(results: dict[str, Any]) -> list[str]:
    """Returns the table of closed loops."""
    rows = [
        (limit["workers"], limit["threads"], step["concurrency"], step["throughput"], *_latencies(step))
        for limit in results["limits"]
        for step in limit["steps"]
    ]
    ratios = [
        f"{_count(limit['workers'], 'worker')}: {limit['throughput']:.2f} per second"
        + (f", {limit['ratio']:.2f} times the first" if i else "")
        + "."
        for i, limit in enumerate(results["limits"])
    ]
    return [
        "## The limit",
        "",
        f"So many requests are kept under way for {results['options']['limit_seconds']:g} s each (closed loop), the "
        "numbers of workers alternately. The best of them is the limit.",
        "",
        *_table(("workers", "threads of each", "under way", "images per second", "p50", "p95", "p99", "client"), rows),
        "",
        *ratios,
        "",
    ]


def _ladder(results: dict[str, Any]) -> list[str]:
    """Returns the table of open loops without a deadline."""
    return [
        f"## From a light load to more than the limit, {_count(results['limits'][-1]['workers'], 'worker')}",
        "",
        f"Sent at a constant rate, {results['options']['seconds']:g} s each (open loop), without a deadline.",
        "",
        *_table(OPEN_COLUMNS, [_open_row(step) for step in results["ladder"]]),
        "",
    ]


def _overload(results: dict[str, Any]) -> list[str]:
    """Returns the table of the open loop with a deadline, and the server's memory."""
    options, overload = results["options"], results["overload"]
    memory = overload["memory_mib"]
    return [
        f"## {options['overload']:g} times the limit for {options['overload_seconds']:g} s",
        "",
        f"Each request with a deadline of {options['deadline_ms']} ms; then the lightest load from above again.",
        "",
        *_table(OPEN_COLUMNS, [_open_row(overload["load"]), _open_row(overload["after"])]),
        "",
        f"Accepted but here after the deadline, by the client's clock from when it was due: {overload['late']} of "
        f"{overload['load']['accepted']}.",
        "",
        f"Resident memory of the server, MiB: {memory['start']} at the start, {memory['end']} at the end, "
        f"{memory['peak']} at its peak.",
        "",
        *_table(("second", "MiB"), [(f"{sample['second']:.0f}", sample["mib"]) for sample in memory["samples"]]),
    ]


def _latencies(step: dict[str, Any]) -> tuple[str, ...]:
    latency = step["latency_ms"] or {}
    return (
        *(f"{latency[name]:.1f}" if name in latency else "" for name in ("p50", "p95", "p99")),
        f"{step['client_cores']:.2f}",
    )


def _open_row(step: dict[str, Any]) -> tuple[object, ...]:
    return (
        f"{step['share']:.0%}",
        step["offered"],
        step["accepted"],
        _counts(step["refused"]),
        _counts(step["failed"]),
        step["throughput"],
        *_latencies(step),
        f"{step['send_delay_ms']['max']:.0f}",
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} x {key}" for key, count in counts.items()) or "0"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    def text(cell: object) -> str:
        return f"{cell:.2f}" if isinstance(cell, float) else str(cell)

    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(text(cell) for cell in row)} |" for row in rows),
    ]


def plot(results: dict[str, Any], path: Path) -> None:
    """Plots throughput and latencies against the offered load, one above the other.

    Raises:
        BundleError: The file can't be written.
    """
    from matplotlib.figure import Figure

    limit, deadline = results["limits"][-1], results["options"]["deadline_ms"]
    ladder, overload = results["ladder"], results["overload"]["load"]
    most = max(step["offered"] for step in (*ladder, overload))
    best = max(limit["throughput"], *(step["throughput"] for step in (*ladder, overload)))
    figure = Figure(figsize=(7.5, 7), dpi=120, layout="constrained")
    throughput, latency = figure.subplots(2, 1, sharex=True)
    throughput.plot([0, most], [0, most], color="#93a4ba", linestyle=":", label="all that is offered")
    throughput.axhline(limit["throughput"], color="#5b6b80", linestyle="--", linewidth=1, label="limit (closed loop)")
    _draw(throughput, ladder, overload, lambda step: step["throughput"], "#0b7a75", "accepted")
    throughput.set_ylabel("images per second")
    throughput.set_ylim(bottom=0, top=1.25 * best)
    for name, color in (("p50", "#0b7a75"), ("p95", "#a8640a"), ("p99", "#b3261e")):
        _draw(latency, ladder, overload, _percentile(name), color, name)
    latency.plot([overload["offered"]], [deadline], color="#1b2430", marker="_", markersize=22, linestyle="none",
                 label=f"deadline there, {deadline} ms")  # fmt: skip
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter("{x:g}")
    latency.set_ylabel("milliseconds from when it was due")
    latency.set_xlabel("images offered per second; hollow: overload with a deadline")
    for axes in (throughput, latency):
        axes.axvline(limit["throughput"], color="#5b6b80", linestyle="--", linewidth=1)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    title = f"{results['model']}, {_count(limit['workers'], 'worker')} of {_count(limit['threads'], 'thread')}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def _percentile(name: str) -> Callable[[dict[str, Any]], float | None]:
    """Returns a function that reads a percentile of a load, or None if no request was accepted."""
    return lambda step: (step["latency_ms"] or {}).get(name)


def _draw(
    axes: Any,
    ladder: Sequence[dict[str, Any]],
    overload: dict[str, Any],
    value: Callable[[dict[str, Any]], float | None],
    color: str,
    label: str,
) -> None:
    """Plots a line for the ladder, and a point for the overload. Loads without accepted requests have no point."""
    points = [(step["offered"], y) for step in ladder if (y := value(step)) is not None]
    axes.plot([x for x, _ in points], [y for _, y in points], color=color, marker="o", label=label)
    if value(overload) is not None:
        axes.plot([overload["offered"]], [value(overload)], color=color, marker="o", fillstyle="none", linestyle="none")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
