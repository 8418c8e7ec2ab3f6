"""What a conversion did, for a terminal and as JSON; progress while it runs."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from .segments import Share, predicted_gain
from .verify import Verification


class Steps:
    """Shows which step runs (a spinner on a terminal, a line a step elsewhere) and keeps how long each took."""

    def __init__(self, show: bool | None) -> None:
        """``show``: None means: if stderr is a terminal."""
        self._show = sys.stderr.isatty() if show is None else show
        self._console = Console(stderr=True)
        self.seconds: dict[str, float] = {}

    def show(self, what: RenderableType) -> None:
        """Something to read between two steps."""
        if self._show:
            self._console.print(what)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step."""
        start = time.perf_counter()
        if self._show:
            with self._console.status(f"{name} ..."):
                yield
        else:
            yield
        self.seconds[name] = time.perf_counter() - start
        if self._show:
            self._console.print(f"[green]done[/green] {name} [dim]({self.seconds[name]:.1f} s)[/dim]", highlight=False)


_LEAST_SHOWN = 0.005
"""Of the detector's time."""


def shares_table(shares: Sequence[Share], gain: float, speedup: float, precision: str) -> Table:
    """What takes the time, and what engines can gain."""
    limit = predicted_gain(shares, float("inf"))
    table = Table(
        caption=f"predicted end to end: {gain:.2f} times faster, if engines run these {speedup:g} times faster in "
        f"{precision}; {limit:.1f} times at the most"
    )
    for heading in ("submodule", "ms", "share", ""):
        table.add_column(heading, justify="right" if heading in ("ms", "share") else "left")
    for share in shares:
        if not share.chosen and share.share < _LEAST_SHOWN:
            continue
        table.add_row(
            share.name,
            f"{share.milliseconds:.1f}",
            f"{share.share:.1%}",
            "segment" if share.chosen else f"stays in TorchScript: {share.reason}",
        )
    return table


@dataclass(frozen=True)
class VariantReport:
    """One artifact: its size in bytes is that of its blobs; ``cached``: it was not compiled now but found on disk."""

    backend: str
    precision: str
    size: int
    cached: bool


@dataclass(frozen=True)
class SegmentReport:
    """One segment: its inputs with their ranges, and its variants in the file's order."""

    name: str
    inputs: list[str]
    variants: list[VariantReport]


@dataclass
class ConversionReport:
    """What convert() did."""

    detector: str
    path: str
    segments: list[SegmentReport]
    head_operators: list[str]
    verification: Verification | None
    shares: list[Share] = field(default_factory=list)
    predicted_gain: float = 1.0
    golden: str = ""
    file_size: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """A table for a terminal."""
        table = Table()
        for heading in ("segment", "engine", "precision", "MB", "cache"):
            table.add_column(heading, justify="right" if heading == "MB" else "left")
        for segment in self.segments:
            for i, variant in enumerate(segment.variants):
                name = segment.name if i == 0 else ""
                size, cached = f"{variant.size / 1e6:.1f}", "hit" if variant.cached else "miss"
                table.add_row(name, variant.backend, variant.precision, size, cached)
        written = io.StringIO()
        Console(width=100, file=written).print(table)
        text = f"{self.detector} -> {self.path} ({self.file_size / 1e6:.1f} MB)\n{written.getvalue()}"
        text += verification_text(self.verification)
        return f"{text}\ngolden sample: {self.golden}" if self.golden else text


def verification_text(verification: Verification | None) -> str:
    """What was compared, in a few lines."""
    if verification is None:
        return "not verified"
    text = ""
    if verification.pictures or verification.tensors:
        worst = max(verification.tensors, key=lambda error: error.relative_error, default=None)
        text = "verified"
        if verification.pictures:
            matched = sum(match.matched for match in verification.pictures)
            expected = sum(match.expected for match in verification.pictures)
            text += f": {matched} of {expected} boxes found again"
        if worst is not None:
            text += f"; greatest relative error {worst.relative_error:.2g} in {worst.segment}, output {worst.output}"
    if verification.dataset is not None:
        text += ("\n" if text else "") + str(verification.dataset)
    for reason in verification.not_run:
        text += f"\nnot compared: {reason}"
    return text
