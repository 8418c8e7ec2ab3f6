"""Finds the C++ programs that are installed with the package."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .errors import BackendError


def find_program(name: str) -> str | None:
    """Returns a program's path: in the package, beside this interpreter, or on PATH; None if it is not installed."""
    # A wheel from tools/wheel has the programs in the package, and scripts that start them beside the interpreter.
    packaged = Path(__file__).parents[1] / "bin" / name
    for path in (packaged, Path(sys.executable).parent / name):
        if path.exists():
            return str(path)
    return shutil.which(name)


def program(name: str, scope: str) -> str:
    """Returns a program's path.

    Raises:
        BackendError: The program is not installed.
    """
    found = find_program(name)
    if found is None:
        raise BackendError.make(
            "cli",
            scope,
            expected=f"the program {name}",
            got="none",
            remedy="Install hybrid_rt with its C++ programs (HYBRID_RT_BUILD_APPS=ON, the default).",
        )
    return found
