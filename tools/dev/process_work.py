"""Measures the work of processes, to distinguish a hang from waiting on a busy machine."""

from __future__ import annotations

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def work_of(stat: Path) -> tuple[float, bool, int]:
    """Returns the CPU seconds of a process and its ended children, whether it can run, and its session.

    Args:
        stat: ``/proc/PID/stat``.

    Raises:
        OSError: the process has ended.
    """
    fields = stat.read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / _TICK, fields[0] in "RD", int(fields[3])
