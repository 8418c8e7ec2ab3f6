"""Output of tools/gpu_check: the table, the JSON, and the GPU part of docs/hardware.md.

Pure: it knows neither torch nor hybrid_rt, so that it says what failed where neither can be imported.
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
"""Stands in the page until one has."""

MEASURED, PASSED, BUILT, NOT_RUN = "measured", "passed", "built", "not run"
REFUSED, FAILED, TIMED_OUT = "refused", "failed", "timed out"
"""Refused: hybrid_rt or an engine said in its own words that it does not do this here."""

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
"""The rows of a device's section, by the engine that a result names."""

GOAL = "goal: "
"""Before a row's ``what``: a ratio beside what the project wants."""

MAX_LINES = 40
_WIDTHS = (46, 9, 100)


@dataclass(frozen=True)
class Row:
    """One thing that was tried.

    Attributes:
        what: what it was.
        result: one of the words above.
        figure: figures, or why there are none, word for word.
        engine: one of :data:`ENGINES`, of what belongs to one.
    """

    what: str
    result: str
    figure: str = ""
    engine: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Row:
        """From JSON."""
        return cls(**{name: str(values.get(name, "")) for name in ("what", "result", "figure", "engine")})


@dataclass(frozen=True)
class Goal:
    """Goal of the project for a ratio; printed next to the measured value, never asserted.

    Attributes:
        text: for people.
        least: the ratio shall be at least this, or
        most: at most this.
    """

    text: str
    least: float | None = None
    most: float | None = None

    def beside(self, value: float) -> str:
        """The measured ratio, the goal, and whether it was reached."""
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
    """The table for a terminal, at most ``limit`` lines: what does not fit is counted, the failures stay."""
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
    """Everything: ``data`` is what each case left, by its name."""
    values = {
        "schema_version": 1,
        "date": date,
        "device": dict(device),
        "rows": [asdict(row) for row in rows],
        "cases": dict(data),
    }
    return json.dumps(values, indent=1) + "\n"


def section(results: Mapping[str, Any]) -> str:
    """A device's part of the page, of what :func:`to_json` made."""
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
    """As one cell of a Markdown table: neither lines, nor columns, nor tags of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def page_with(page: str, results: Mapping[str, Any], name: str = "docs/hardware.md") -> str:
    """The page with the device's section in place of its former one; the other devices' stay as they are.

    Raises:
        ValueError: the page has not one pair of markers.
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
    """:func:`page_with` in the file, whole or not at all."""
    changed = page_with(path.read_text(encoding="utf-8"), results, str(path))
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(changed, encoding="utf-8")
    temporary.replace(path)
