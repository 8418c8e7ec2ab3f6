"""Shows the progress of a conversion: a spinner or a bar on a terminal, one line per step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

_BAR_WIDTH = 20


class Advance:
    """Moves a step's bar: call it after each part of the work, or call :meth:`part` within a part."""

    def __init__(self, progress: Progress | None = None, task: int = 0, name: str = "", done: int = 0) -> None:
        """``progress``: None shows nothing. ``done``: number of parts that earlier steps did."""
        self._progress, self._task, self._name, self._done = progress, TaskID(task), name, done

    def __call__(self) -> None:
        """Marks a part as done."""
        self._done += 1
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done, description=self._name)

    def part(self, share: float, what: str) -> None:
        """Shows that the running part is done to the fraction ``share``, 0..1, and currently does ``what``."""
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done + share, description=f"{self._name}: {what}")


class Steps:
    """Shows which step runs, and records the duration of each."""

    def __init__(self, show: bool | None, console: Console | None = None) -> None:
        """``show``: None shows the steps if stderr is a terminal. ``console``: None writes to stderr."""
        self._show = sys.stderr.isatty() if show is None else show
        self._console = console or Console(stderr=True)
        self.seconds: dict[str, float] = {}

    def show(self, what: RenderableType) -> None:
        """Prints something between two steps."""
        if self._show:
            self._console.print(what)

    @contextmanager
    def step(self, name: str, *, total: int = 0, done: int = 0) -> Iterator[Advance]:
        """Shows and times the block as one step.

        Args:
            name: description of the step.
            total: number of parts of the work, for a bar; 0: unknown.
            done: number of parts that earlier steps did.

        Yields:
            The object that moves the bar.
        """
        start = time.perf_counter()
        if self._show and self._console.is_terminal:
            whole = Column(no_wrap=True, min_width=_BAR_WIDTH)
            name_column = Column(
                no_wrap=True, overflow="ellipsis", max_width=max(10, self._console.width - 2 * _BAR_WIDTH)
            )
            columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False, table_column=name_column)]
            if total:
                columns += [
                    BarColumn(bar_width=_BAR_WIDTH, table_column=whole),
                    TextColumn("{task.completed:.0f} of {task.total:.0f}", table_column=Column(no_wrap=True)),
                ]
            with Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True) as progress:
                task = progress.add_task(name, total=total or None, completed=done)
                yield Advance(progress, task, name, done)
        else:
            yield Advance()
        self.seconds[name] = time.perf_counter() - start
        if self._show:
            self._console.print("[green]done[/green] ", end="")
            line = f"{name} ({self.seconds[name]:.1f} s)"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
