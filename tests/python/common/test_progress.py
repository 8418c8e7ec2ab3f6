"""Tests of the progress display during a conversion."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hybrid_rt.common.progress import Steps


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None, legacy_windows=False)


def written(steps_console: Console) -> str:
    assert isinstance(steps_console.file, io.StringIO)
    return steps_console.file.getvalue()


def test_without_a_terminal_each_step_is_a_plain_line() -> None:
    to = console(terminal=False)
    steps = Steps(True, to)
    with steps.step("compile [a] with b", total=4, done=1) as advance:
        advance()
    with steps.step("save"):
        steps.show("between")
    lines = written(to).splitlines()
    assert [line.split(" (")[0] for line in lines] == ["done compile [a] with b", "between", "done save"]
    assert "\x1b" not in written(to)
    assert list(steps.seconds) == ["compile [a] with b", "save"]


def test_on_a_terminal_a_counted_step_has_a_bar() -> None:
    to = console(terminal=True)
    with Steps(True, to).step("compile [a]", total=4, done=1) as advance:
        advance()
        advance()
    assert "1 of 4" in written(to)
    assert "3 of 4" in written(to)
    assert "compile [a]" in written(to)


def test_on_a_terminal_a_step_of_unknown_length_has_no_bar() -> None:
    to = console(terminal=True)
    with Steps(True, to).step("verify") as advance:
        advance()
    assert "verify" in written(to)
    assert " of " not in written(to)


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_steps_write_nothing_and_keep_the_time(terminal: bool) -> None:
    to = console(terminal=terminal)
    steps = Steps(False, to)
    with steps.step("verify", total=2) as advance:
        advance()
    steps.show("a table")
    assert written(to) == ""
    assert steps.seconds["verify"] >= 0


def test_a_failed_step_is_not_done() -> None:
    to = console(terminal=False)
    with pytest.raises(ValueError, match="of the step"), Steps(True, to).step("verify"):
        raise ValueError("of the step")
    assert "done" not in written(to)
