"""Formats the output of tools/gpu_check: the table, the JSON, and the GPU part of docs/hardware.md.

This module imports neither torch nor hybrid_rt, so that it can report a failure to import them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- gpu_check: begin -->", "<!-- gpu_check: end -->"
NOBODY = "No CUDA machine has run it yet."
"""Text of the page until a machine has run it."""

MEASURED, PASSED, BUILT, NOT_RUN = "measured", "passed", "built", "not run"
REFUSED, FAILED, TIMED_OUT = "refused", "failed", "timed out"
""""refused" means that hybrid_rt or an engine reported in its own words that it does not support this here."""

BAD = (REFUSED, FAILED, TIMED_OUT)

ENGINES = {
    "torch": "torch: eager, TorchScript, torch.compile",
    "torchscript": "torchscript: hybrids",
    "aot_inductor": "aot_inductor",
    "tensorrt": "tensorrt, the library that is chosen by itself",
    "tensorrt_rtx": "tensorrt, TensorRT-RTX",
    "tensorrt_full": "tensorrt, TensorRT",
    "operators": "`hybrid_rt::nms`, `hybrid_rt::roi_align`: CUDA kernels",
}
"""Titles of the rows in a device's section, by the engine of a result."""

GOAL = "goal: "
"""Prefix of a row's ``what`` for a ratio that is compared with the project's goal."""

MAX_LINES = 40
_WIDTHS = (46, 9, 100)


@dataclass(frozen=True)
class Row:
    """One attempt.

    Attributes:
        what: What was tried.
        result: One of the words above.
        figure: Figures, or the reason why there are none, verbatim.
        engine: One of :data:`ENGINES`, if the attempt belongs to one.
    """

    what: str
    result: str
    figure: str = ""
    engine: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Row:
        """Creates a row from JSON."""
        return cls(**{name: str(values.get(name, "")) for name in ("what", "result", "figure", "engine")})


@dataclass(frozen=True)
class Goal:
    """Goal of the project for a ratio. It is printed next to the measured value and never asserted.

    Attributes:
        text: Description to show to users.
        least: Minimum of the ratio, if there is one.
        most: Maximum of the ratio, if there is one.
    """

    text: str
    least: float | None = None
    most: float | None = None

    def beside(self, value: float) -> str:
        """Returns the measured ratio, the goal, and whether it was reached."""
        is_reached = (self.least is None or value >= self.least) and (self.most is None or value <= self.most)
        digits = 3 if self.most is not None else 2
        return f"{value:.{digits}f} (goal {self.text}: {'reached' if is_reached else 'missed'})"


GOALS = {
    "op": Goal("<= 1.05", most=1.05),
    "backbone": Goal(">= 4", least=4.0),
    "end to end": Goal(">= 2.5", least=2.5),
    "replay": Goal("<= 1.1", most=1.1),
    "mAP": Goal("<= 0.005", most=0.005),
}


def table(rows: Sequence[Row], limit: int = MAX_LINES) -> str:
    """Returns the table for a terminal, in at most ``limit`` lines. Other rows are counted; failures are kept."""
    shown = list(rows)
    room = limit - 3
    if len(shown) > room:
        bad = [row for row in shown if row.result in BAD][:room]
        good = [row for row in shown if row not in bad][: room - len(bad)]
        shown = [row for row in rows if row in bad or row in good][:room]
    lines = [_line("what", "result", "figure"), " ".join("-" * width for width in _WIDTHS)]
    lines += [_line(row.what, row.result, row.figure) for row in shown]
    if len(shown) < len(rows):
        lines.append(f"... and {len(rows) - len(shown)} more in the JSON")
    return "\n".join(lines)


def _line(*cells: str) -> str:
    texts = [" ".join(cell.split()) for cell in cells]
    cut = [
        text if len(text) <= width else f"{text[: width - 3]}..." for text, width in zip(texts, _WIDTHS, strict=True)
    ]
    return " ".join(text.ljust(width) for text, width in zip(cut, _WIDTHS, strict=True)).rstrip()


def to_json(date: str, device: Mapping[str, Any], rows: Sequence[Row], data: Mapping[str, Any]) -> str:
    """Returns all results as JSON. ``data`` contains the data of each case by name."""
    values = {
        "schema_version": 1,
        "date": date,
        "device": dict(device),
        "rows": [asdict(row) for row in rows],
        "cases": dict(data),
    }
    return json.dumps(values, indent=1) + "\n"


def section(results: Mapping[str, Any]) -> str:
    """Returns a device's section of the page from the result of :func:`to_json`."""
    device = results["device"]
    rows = [Row.of(values) for values in results["rows"]]
    facts = ", ".join(f"{name} {device[name]}" for name in device if name not in ("name", "goals") and device[name])
    lines = [f"### {_cell(device['name'])}", "", f"{results['date']}, {_cell(facts)}.", ""]
    lines += ["| engine | state | figures |", "|---|---|---|"]
    for engine, title in ENGINES.items():
        state, figures = _state([row for row in rows if row.engine == engine])
        lines.append(f"| {title} | {state} | {figures} |")
    goals = [row for row in rows if row.what.startswith(GOAL)]
    if goals:
        lines += ["", "| ratio | measured, and the goal |", "|---|---|"]
        lines += [f"| {_cell(row.what.removeprefix(GOAL))} | {_cell(row.figure)} |" for row in goals]
    return "\n".join(lines)


def _state(rows: Sequence[Row]) -> tuple[str, str]:
    """Returns an engine's state and its evidence. Passed tests are named, but are not a measurement."""
    bad = [row for row in rows if row.result in BAD]
    measured = [row for row in rows if row.result == MEASURED]
    passed = [row for row in rows if row.result == PASSED]
    built = [row for row in rows if row.result == BUILT]
    if measured:
        state = MEASURED
    elif passed:
        state = "tests ran, not measured"
    elif built:
        state = "engine built, not run"
    else:
        state = bad[0].result if bad else NOT_RUN
    if bad and state not in BAD:
        state += f"; {len(bad)} failed or refused"
    unrun = [row for row in rows if row.result == NOT_RUN] if state == NOT_RUN else []
    texts = [f"{row.what}: {row.figure}" for row in (*measured, *passed, *built)]
    texts += [f"{row.what}: **{row.result}**: {row.figure}" for row in bad]
    return state, _cell("; ".join([*texts, *(f"{row.what}: {row.figure}" for row in unrun)]))


def _cell(text: str) -> str:
    """Returns a text as one cell of a Markdown table, without line breaks, column separators and tags."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def page_with(page: str, results: Mapping[str, Any], name: str = "docs/hardware.md") -> str:
    """Returns the page with the device's section inserted or replaced. Sections of other devices are kept.

    Raises:
        ValueError: The page does not contain exactly one pair of markers.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(
            f"hybrid_rt[gpu_check]: {name}: expected the lines '{BEGIN}' and '{END}', once each and in this order, got "
            f"{page.count(BEGIN)} and {page.count(END)}. Put them back around its GPU part."
        )
    before, rest = page.split(BEGIN)
    block, after = rest.split(END)
    intro, *found = re.split(r"^(?=### )", block, flags=re.MULTILINE)
    own = section(results)
    heading = own.splitlines()[0]
    sections = [text.strip() for text in found]
    places = [i for i, text in enumerate(sections) if text.splitlines()[0] == heading]
    if places:
        sections[places[0]] = own
    else:
        sections.append(own)
    intro = intro.replace(NOBODY, "").strip()
    return before + BEGIN + "\n\n" + "\n\n".join([intro, *sections] if intro else sections) + "\n\n" + END + after


def rewrite(path: Path, results: Mapping[str, Any]) -> None:
    """Applies :func:`page_with` to a file, atomically."""
    changed = page_with(path.read_text(encoding="utf-8"), results, str(path))
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(changed, encoding="utf-8")
    temporary.replace(path)
