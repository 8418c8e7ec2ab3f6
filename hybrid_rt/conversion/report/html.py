"""Renders the report as one HTML page that needs no other file, network access or script."""

from __future__ import annotations

import base64
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ...bundle.call_parts import Part
from ...common.class_names import class_colour, summary_of, text_colour, text_of
from .data import ReportData
from .images import FoundBox, ImageReport
from .terminal import LEAST_SHOWN, images_text, new_size_text, quantization_lines, threads_text

_TEMPLATE = "report.html.jinja"

_LEAST_ERROR = 1e-8
"""Start of the error bars' scale; smaller errors are below float32's resolution."""

_TEXT = 3.0
"""Size of the text on images, in percent of the image's longer side."""

_MOST_CHARACTERS = 40

_PARTS_SHOWN = 10

_LEAST_PART = 0.01
"""Fraction of a call; shorter parts are shown as one."""

_ERRORS_SHOWN = 10
"""Number of the largest errors that are shown; the others are collapsed."""

THRESHOLD_LABELS = {
    "iou": "IoU of two boxes, at least",
    "score": "difference of scores, at most",
    "recall": "fraction of boxes with a partner, at least",
    "relative_error": "relative error, at most",
    "mask_iou": "IoU of two masks, at least",
    "keypoint_distance": "distance of keypoints relative to the box, at most",
    "keypoint_recall": "fraction of keypoints within it, at least",
}
"""A label for each field of ``Thresholds``."""


def report_html(report: ReportData) -> str:
    """Returns the page."""
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
        time_parts=_time_parts(report.measurement.parts if report.measurement else []),
        errors=errors[:_ERRORS_SHOWN],
        more_errors=errors[_ERRORS_SHOWN:],
        images=[_image_entry(image, report) for image in report.pictures],
        threads=threads_text(report.measurement) if report.measurement else "",
        sizes=images_text(report.measurement) if report.measurement else "",
        new_size=new_size_text(report.measurement) if report.measurement else "",
        class_names=summary_of(report.class_names, most=100),
        quantizations=quantization_lines(report),
        thresholds=_thresholds(report),
        total_seconds=sum(report.seconds.values()),
    )


def milliseconds(value: float) -> str:
    """Formats a time, e.g. ``0.61 ms``, ``41.3 ms``, ``1,961 ms``."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def percent(share: float) -> str:
    """Formats a fraction, e.g. ``71.2%``."""
    return f"{share:.1%}"


def megabytes(size: int) -> str:
    """Formats a number of bytes, e.g. ``14.6 MB``."""
    return f"{size / 1e6:.1f} MB"


def scientific(value: float) -> str:
    """Formats a number, e.g. ``2.1e-06``; zero is ``0``."""
    return "0" if value == 0 else f"{value:.1e}"


def breakable(name: str) -> Markup:
    """Returns a dotted name that can wrap after a dot, a plus or an underscore."""
    return Markup(
        "".join(f"{escape(part)}<wbr>" if part in ".+_" else escape(part) for part in re.split("([.+_])", name))
    )


def _thresholds(report: ReportData) -> list[tuple[str, float]]:
    """Returns label and value of each threshold, in the order of the fields; empty: the hybrid was not verified."""
    if report.thresholds is None:
        return []
    return [(THRESHOLD_LABELS[name], value) for name, value in report.thresholds.to_json().items()]


def _latencies(report: ReportData) -> list[dict[str, Any]]:
    """Returns the latencies as bars, in percent of the longest."""
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
        note = f"{new.height}x{new.width}, a size that it has not seen"
        rows.append(
            {"name": "hybrid", "note": note, "kind": "hybrid", "median": new.later, "p95": None, "first": new.first}
        )
    for row in rows:
        row["bars"] = {key: 100 * row[key] / longest for key in ("median", "p95", "first") if row[key] is not None}
    return rows


def _time_parts(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Returns the parts of a call as pieces of one bar, in percent: the longest parts, and the others together."""
    shown = [part for part in parts[:_PARTS_SHOWN] if part.share >= _LEAST_PART]
    others = [part for part in parts if part not in shown]
    rows: list[dict[str, Any]] = [
        {
            "name": part.name,
            "place": part.place,
            "kind": part.kind,
            "calls": part.calls,
            "milliseconds": part.milliseconds,
            "share": part.share,
        }
        for part in shown
    ]
    if others:
        rest = {"name": f"{len(others)} shorter parts", "place": "", "kind": "rest", "calls": None}
        sums = {name: sum(getattr(part, name) for part in others) for name in ("milliseconds", "share")}
        rows.append({**rest, **sums})
    position = 0.0
    for row in rows:
        row["x"], row["width"] = position, 100 * row["share"]
        position += row["width"]
    return rows


def _errors(report: ReportData) -> list[dict[str, Any]]:
    """Returns the largest error of each output and variant, as a bar on a logarithmic scale up to the limit.

    The largest error comes first.
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
    """Returns 0 for an error that float32 can't distinguish from zero, up to 100 for one at or above the limit."""
    if not error > _LEAST_ERROR:
        return 0.0
    if not error < allowed or allowed <= _LEAST_ERROR:
        return 100.0
    return 100 * math.log(error / _LEAST_ERROR) / math.log(allowed / _LEAST_ERROR)


def _image_entry(image: ImageReport, report: ReportData) -> dict[str, Any]:
    matches = report.verification.pictures if report.verification else []
    size = (image.width, image.height)
    unit = max(image.height, image.width) / 100  # what is drawn looks alike on images of any size
    return {
        "data": base64.b64encode(image.jpeg).decode("ascii"),
        "image": image,
        "match": matches[image.index] if image.index < len(matches) else None,
        "sides": [
            ("eager", _drawn(image.expected, size, unit, report.class_names)),
            ("hybrid", _drawn(image.found, size, unit, report.class_names)),
        ],
        "line": f"{unit * 0.5:.2f}",
        "dash": f"{unit * 1.6:.2f} {unit * 0.8:.2f}",
        "text": f"{unit * _TEXT:.2f}",
        "not_drawn": ", ".join(f"{count} {name}" for name, count in image.not_drawn.items()),
    }


def _drawn(boxes: list[FoundBox], size: tuple[int, int], unit: float, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the worst box first, so that the best are drawn over the others."""
    drawn = []
    for found in reversed(boxes):
        left, top, right, bottom = found.box
        colour = class_colour(found.label)
        drawn.append(
            {
                "x": f"{left:.1f}",
                "y": f"{top:.1f}",
                "width": f"{max(0.0, right - left):.1f}",
                "height": f"{max(0.0, bottom - top):.1f}",
                "colour": _css(colour),
                "ink": _css(text_colour(colour)),
                "caption": _caption(text_of(found.label, names), f"{found.score:.2f}", (left, top), size, unit),
                "matched": found.matched,
                "opacity": f"{min(1.0, 0.25 + 0.75 * found.score):.2f}" if found.matched else "1",
                "named": found.score >= 0.5 or not found.matched,
            }
        )
    return drawn


def _caption(name: str, score: str, corner: tuple[float, float], size: tuple[int, int], unit: float) -> dict[str, str]:
    """Returns the text and its background, within the image: above the box, or inside it if there is no room above."""
    text_size, padding = unit * _TEXT, unit * 0.6
    widest = (size[0] - 2 * padding) / text_size
    text = _fitted(name, f" {score}", widest)
    length = _ems(text) * text_size
    width, height = length + 2 * padding, text_size * 1.3
    x = max(0.0, min(corner[0], size[0] - width))
    above = corner[1] - height
    y = max(0.0, min(above if above >= 0 else corner[1], size[1] - height))
    return {
        "text": text,
        "x": f"{x:.1f}",
        "y": f"{y:.1f}",
        "width": f"{width:.1f}",
        "height": f"{height:.1f}",
        "text_x": f"{x + padding:.1f}",
        "text_y": f"{y + text_size:.1f}",
        "length": f"{length:.1f}",
    }


def _fitted(name: str, behind: str, widest: float) -> str:
    """Returns the name, truncated if it is too long, with the text behind it; ``widest`` is in em."""
    if len(name) <= _MOST_CHARACTERS and _ems(name + behind) <= widest:
        return name + behind
    name = name[:_MOST_CHARACTERS]
    while name and _ems(f"{name}…{behind}") > widest:
        name = name[:-1]
    return f"{name}…{behind}"


def _ems(text: str) -> float:
    """Estimates the width of a text in a sans-serif font, in em, because the page has no script to measure it."""

    def width(character: str) -> float:
        if unicodedata.combining(character):
            return 0.0
        if unicodedata.east_asian_width(character) in "WF":
            return 1.0
        if character in "iljftI.,:;'!| ":
            return 0.32
        return 0.86 if character in "mwMW" else 0.7 if character.isupper() else 0.6

    return sum(map(width, text))


def _css(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
