"""Limits of a compiler's process, and whether there is one: environment variables for time and memory."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from ...backends.cache.store import size_from
from ...common.errors import OptionError

SECONDS = "HYBRID_RT_COMPILE_TIMEOUT"
MEMORY = "HYBRID_RT_COMPILE_MEMORY"
ISOLATION = "HYBRID_RT_COMPILE_ISOLATION"

DEFAULT_SECONDS = 1800.0
"""TensorRT may try kernels for many minutes; what takes longer than half an hour is likely to hang."""

_SHARE = 0.9
"""The part of the memory that is free when a compilation starts, which it may take."""


@dataclass(frozen=True)
class Limits:
    """Limits of one compilation.

    Attributes:
        seconds: how long it may last, with the first run of its artifact; 0: for ever.
        memory: bytes that its process may hold; 0: any number.
    """

    seconds: float = DEFAULT_SECONDS
    memory: int = 0


def is_wanted() -> bool:
    """Returns whether compilers run in a process of their own: unless $HYBRID_RT_COMPILE_ISOLATION is 0."""
    return os.environ.get(ISOLATION, "").strip() != "0"


def limits() -> Limits:
    """Returns the limits that hold now; without a wish of the user's, nine tenths of the memory that is free.

    Raises:
        OptionError: an environment variable is not a number of seconds, or not a size.
    """
    return Limits(_seconds(), _memory())


def _seconds() -> float:
    text = os.environ.get(SECONDS, "").strip()
    if not text:
        return DEFAULT_SECONDS
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 <= seconds < float("inf"):
            return seconds
    raise OptionError.make(
        "convert",
        SECONDS,
        expected="a number of seconds",
        got=f"'{text}'",
        remedy="Set 0 for no limit.",
    )


def _memory() -> int:
    text = os.environ.get(MEMORY, "").strip()
    if not text:
        return int(_available() * _SHARE)
    size = size_from(text)
    if size is None:
        raise OptionError.make(
            "convert",
            MEMORY,
            expected="a number of bytes, or one with K, M, G or T, such as 8G",
            got=f"'{text}'",
            remedy="Set 0 for no limit.",
        )
    return size


def _available() -> int:
    """Returns how many bytes are free: of the machine, or of the container's allowance if that is less; 0: unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        cached = [
            line for line in (group / "memory.stat").read_text().splitlines() if line.startswith("inactive_file ")
        ]
        used = int((group / "memory.current").read_text()) - sum(int(line.split()[1]) for line in cached)
        found.append(max(0, most - used))
    return min(found, default=0)
