"""The C++ programs of the build folder, for the benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openvino
import torch

ROOT = Path(__file__).resolve().parents[1]


def program(name: str) -> Path:
    """The program; ends the process with advice if it was not built."""
    found = sorted((ROOT / "build").glob(f"cp*/bin/{name}"))
    if not found:
        sys.exit(f"tools: expected build/cp*/bin/{name}, got none. Run tools/setup --tests first.")
    return found[-1]


def run(name: str, *arguments: object) -> dict[str, Any]:
    """Runs the program and reads the JSON that it prints; ends the process with its message if it fails."""
    # The build folder's library does not lie beside the openvino package as the installed one does.
    (library,) = (Path(openvino.__file__).parent / "libs").glob("libopenvino_c.so*")
    command = [str(part) for part in (program(name), *arguments)]
    environment = {
        "HYBRID_RT_OPENVINO_LIBRARY": str(library),
        "LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib"),  # torchvision's library needs all of libtorch
        **os.environ,
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result
