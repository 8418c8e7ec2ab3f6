"""Locates the cache, in a separate module so that backends can store their own long-lived results there."""

from __future__ import annotations

import os
from pathlib import Path

from ...common.errors import OptionError


def cache_directory() -> Path:
    """Returns the directory of the entries: $HYBRID_RT_CACHE, or hybrid_rt in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        OptionError: Neither variable is set, and this user has no home directory.
    """
    if named := os.environ.get("HYBRID_RT_CACHE"):
        return Path(os.path.expanduser(named)).absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():  # its specification says to ignore others
        return xdg / "hybrid_rt"
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():
        raise OptionError.make(
            "cache",
            "HYBRID_RT_CACHE",
            expected="a directory, since this user has no home directory",
            got="none",
            remedy="Set HYBRID_RT_CACHE to a directory, or set HYBRID_RT_CACHE_SIZE=0.",
        )
    return home / ".cache" / "hybrid_rt"
