"""pyproject.toml as data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest depends on it


def read_pyproject(root: Path) -> dict[str, Any]:
    """Reads the pyproject.toml of a checkout."""
    return tomllib.loads((root / "pyproject.toml").read_text())
