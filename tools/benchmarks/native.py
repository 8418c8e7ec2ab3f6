"""The C++ programs of the build folder, for the benchmarks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Of each vendor: the variable that names its library, its package, and the library within it.
_LIBRARIES = (
    ("HYBRID_RT_OPENVINO_LIBRARY", "openvino", "libs/libopenvino_c.so*"),
    ("HYBRID_RT_ONNXRUNTIME_LIBRARY", "onnxruntime", "capi/libonnxruntime.so*"),
    ("HYBRID_RT_TVM_LIBRARY", "tvm", "lib/libtvm_runtime.so"),
)


def _libraries() -> dict[str, str]:
    """The build folder's library does not lie beside the vendors' packages as the installed one does."""
    named = {}
    for variable, package, pattern in _LIBRARIES:
        spec = importlib.util.find_spec(package)
        folders = (spec and spec.submodule_search_locations) or ()
        for path in sorted(path for folder in folders for path in Path(folder).glob(pattern)):
            named[variable] = str(path)
    return named


def program(name: str) -> Path:
    """The program; ends the process with advice if it was not built."""
    found = sorted((ROOT / "build").glob(f"cp*/bin/{name}"))
    if not found:
        sys.exit(f"tools: expected build/cp*/bin/{name}, got none. Run tools/setup --tests first.")
    return found[-1]


def run(name: str, *arguments: object) -> dict[str, Any]:
    """Runs the program and reads the JSON that it prints; ends the process with its message if it fails."""
    command = [str(part) for part in (program(name), *arguments)]
    environment = {**_libraries(), **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result
