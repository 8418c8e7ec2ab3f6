"""Where the cache is; apart from it, so that a backend can keep there what it works out for long."""

from __future__ import annotations

import os
from pathlib import Path

from ...common.errors import OptionError


def folder() -> Path:
    """Where the entries are: $HYBRID_RT_CACHE, else hybrid_rt in $XDG_CACHE_HOME, else in ~/.cache.

    Raises:
        OptionError: neither is set, and this user has no home.
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
            expected="a folder, as this user has no home",
            got="none",
            remedy="Name one, or set HYBRID_RT_CACHE_SIZE=0.",
        )
    return home / ".cache" / "hybrid_rt"
