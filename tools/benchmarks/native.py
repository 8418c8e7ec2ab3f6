"""Runs C++ programs from the build directory for the benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hybrid_rt.backends import registry

ROOT = Path(__file__).resolve().parents[2]


def program(name: str) -> Path:
    """Returns the path of a program. Exits with advice if it was not built."""
    found = sorted((ROOT / "build").glob(f"cp*/bin/{name}"))
    if not found:
        sys.exit(f"tools: expected build/cp*/bin/{name}, got none. Run tools/setup --tests first.")
    return found[-1]


def run(name: str, *arguments: object) -> dict[str, Any]:
    """Runs a program and returns the JSON that it prints. Exits with its message if it fails."""
    command = [str(part) for part in (program(name), *arguments)]
    # The library in the build directory is not next to the vendors' packages, unlike the installed one.
    libraries = {variable: str(path) for variable, path in registry.vendor_libraries().items()}
    environment = {**libraries, **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result
