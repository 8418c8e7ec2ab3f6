"""The report as one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from .data import ReportData
from .images import FoundBox, PictureReport
from .terminal import LEAST_SHOWN, new_size_text, pictures_text, threads_text

_TEMPLATE = "report.html.jinja"

_LEAST_ERROR = 1e-8
"""Where the bars of errors begin: below it nothing is left of float32."""

_ERRORS_SHOWN = 10
"""The worst ones; the others are folded away."""


def report_html(report: ReportData) -> str:
    """The page."""
    errors = _errors(report)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., Any]] = {
        "milliseconds": milliseconds,
        "percent": percent,
        "megabytes": megabytes,
        "scientific": scientific,
        "breakable": breakable,
    }
    environment.filters |= filters
    return environment.get_template(_TEMPLATE).render(
        report=report,
        shares=[share for share in report.shares if share.chosen or share.share >= LEAST_SHOWN],
        rest=max(0.0, 1 - sum(share.share for share in report.shares)),
        latencies=_latencies(report),
        errors=errors[:_ERRORS_SHOWN],
        more_errors=errors[_ERRORS_SHOWN:],
        pictures=[_picture(picture, report) for picture in report.pictures],
        threads=threads_text(report.measurement) if report.measurement else "",
        sizes=pictures_text(report.measurement) if report.measurement else "",
        new_size=new_size_text(report.measurement) if report.measurement else "",
        total_seconds=sum(report.seconds.values()),
    )


def milliseconds(value: float) -> str:
    """``0.61 ms``, ``41.3 ms``, ``1,961 ms``."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def percent(share: float) -> str:
    """``71.2%``."""
    return f"{share:.1%}"


def megabytes(size: int) -> str:
    """``14.6 MB``."""
    return f"{size / 1e6:.1f} MB"


def scientific(value: float) -> str:
    """``2.1e-06``; zero as ``0``."""
    return "0" if value == 0 else f"{value:.1e}"


def breakable(name: str) -> Markup:
    """A dotted name that may go on in the next line after a dot, a plus or an underscore."""
    return Markup(
        "".join(f"{escape(part)}<wbr>" if part in ".+_" else escape(part) for part in re.split("([.+_])", name))
    )


def _latencies(report: ReportData) -> list[dict[str, Any]]:
    """Bars in percent of the longest."""
    if report.measurement is None:
        return []
    latencies = report.measurement.latencies
    new = report.measurement.new_size
    longest = max(max(latency.p95, latency.first) for latency in latencies.values())
    longest = max(longest, new.first if new is not None else 0.0, 1e-9)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "note": "",
            "kind": name,
            "median": latency.median,
            "p95": latency.p95,
            "first": latency.first,
        }
        for name, latency in latencies.items()
    ]
    if new is not None:
        note = f"{new.height}x{new.width}, a size that it had not seen"
        rows.append(
            {"name": "hybrid", "note": note, "kind": "hybrid", "median": new.later, "p95": None, "first": new.first}
        )
    for row in rows:
        row["bars"] = {key: 100 * row[key] / longest for key in ("median", "p95", "first") if row[key] is not None}
    return rows


def _errors(report: ReportData) -> list[dict[str, Any]]:
    """The worst call of each output on each variant, as a bar on a logarithmic scale up to what is allowed.

    The worst output comes first.
    """
    if report.verification is None:
        return []
    worst: dict[tuple[str, str, str], Any] = {}
    calls: dict[tuple[str, str, str], int] = {}
    for error in report.verification.tensors:
        key = (error.engine, error.output, error.backend)
        calls[key] = calls.get(key, 0) + 1
        if key not in worst or not error.relative_error <= worst[key].relative_error:
            worst[key] = error
    allowed = report.thresholds.relative_error if report.thresholds else 1.0
    greatest = max((error.relative_error for error in worst.values()), default=0.0)
    return [
        {
            "error": error,
            "calls": calls[key],
            "bar": _on_log_scale(error.relative_error, allowed),
            "worst": error.relative_error == greatest and len(worst) > 1,
            "failed": not error.relative_error <= allowed,
        }
        for key, error in sorted(worst.items(), key=lambda item: -_or_infinite(item[1].relative_error))
    ]


def _or_infinite(error: float) -> float:
    return error if error == error else math.inf


def _on_log_scale(error: float, allowed: float) -> float:
    """0 at what float32 can't tell from nothing, 100 at what is allowed."""
    if not error > _LEAST_ERROR:
        return 0.0
    if not error < allowed or allowed <= _LEAST_ERROR:
        return 100.0
    return 100 * math.log(error / _LEAST_ERROR) / math.log(allowed / _LEAST_ERROR)


def _picture(picture: PictureReport, report: ReportData) -> dict[str, Any]:
    matches = report.verification.pictures if report.verification else []
    unit = max(picture.height, picture.width) / 100  # what is drawn looks alike on pictures of any size
    return {
        "data": base64.b64encode(picture.jpeg).decode("ascii"),
        "picture": picture,
        "match": matches[picture.index] if picture.index < len(matches) else None,
        "sides": [("eager", _drawn(picture.expected, unit)), ("hybrid", _drawn(picture.found, unit))],
        "line": f"{unit * 0.5:.2f}",
        "text": f"{unit * 3:.2f}",
        "not_drawn": ", ".join(f"{count} {name}" for name, count in picture.not_drawn.items()),
    }


def _drawn(boxes: list[FoundBox], unit: float) -> list[dict[str, Any]]:
    """The worst first, so that the best are drawn over them; a label that would be outside goes into the box."""
    drawn = []
    for found in reversed(boxes):
        left, top, right, bottom = found.box
        drawn.append(
            {
                "x": f"{left:.1f}",
                "y": f"{top:.1f}",
                "width": f"{max(0.0, right - left):.1f}",
                "height": f"{max(0.0, bottom - top):.1f}",
                "text_y": f"{top - unit * 0.8 if top > unit * 4 else top + unit * 3.2:.1f}",
                "label": f"{found.label}",
                "score": f"{found.score:.2f}",
                "matched": found.matched,
                "opacity": f"{min(1.0, 0.25 + 0.75 * found.score):.2f}" if found.matched else "1",
                "named": found.score >= 0.5 or not found.matched,
            }
        )
    return drawn
