"""Progress while a conversion runs: a spinner or a bar on a terminal, a line a step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

_BAR_WIDTH = 20


class Steps:
    """Shows which step runs, and keeps how long each took."""

    def __init__(self, show: bool | None, console: Console | None = None) -> None:
        """``show``: None means: if stderr is a terminal. ``console``: None means: on stderr."""
        self._show = sys.stderr.isatty() if show is None else show
        self._console = console or Console(stderr=True)
        self.seconds: dict[str, float] = {}

    def show(self, what: RenderableType) -> None:
        """Something to read between two steps."""
        if self._show:
            self._console.print(what)

    @contextmanager
    def step(self, name: str, *, total: int = 0, done: int = 0) -> Iterator[Callable[[], None]]:
        """One step.

        Args:
            name: what it does.
            total: how many parts the work has, for a bar; 0: not known.
            done: how many of them earlier steps did.

        Yields:
            A function to call after each part.
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
                yield lambda: progress.advance(task)
        else:
            yield lambda: None
        self.seconds[name] = time.perf_counter() - start
        if self._show:
            self._console.print("[green]done[/green] ", end="")
            line = f"{name} ({self.seconds[name]:.1f} s)"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
