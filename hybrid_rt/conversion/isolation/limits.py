"""Reads the environment variables that limit a compiler's process, or disable it."""

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
"""TensorRT may try kernels for many minutes; a compiler that takes more than half an hour probably hangs."""

_SHARE = 0.9
"""Fraction of the memory that is free at the start of a compilation that the compilation may use."""


@dataclass(frozen=True)
class Limits:
    """Limits of one compilation.

    Attributes:
        seconds: longest duration, including the first run of the artifact; 0: no limit.
        memory: largest memory of its process in bytes; 0: no limit.
    """

    seconds: float = DEFAULT_SECONDS
    memory: int = 0


def is_wanted() -> bool:
    """Returns false if $HYBRID_RT_COMPILE_ISOLATION is 0, so that compilers run in this process."""
    return os.environ.get(ISOLATION, "").strip() != "0"


def limits() -> Limits:
    """Returns the user's limits, or by default half an hour and nine tenths of the free memory.

    Raises:
        OptionError: An environment variable is not a number of seconds, or not a size.
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
    """Returns the free memory of the machine, or of the container if that is less, in bytes; 0 if unknown."""
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
