"""Imports OpenVINO and NNCF without their telemetry.

Both packages report each import and conversion to their makers, unless the user has opted out. For each report,
``openvino_telemetry`` forks the process from a thread: twelve times per conversion of two segments, which takes longer
than a small segment's compilation, and may hang in a process with threads.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Returns the openvino package.

    Raises:
        Exception: Whatever a broken installation raises.
    """
    return _without_telemetry("openvino")


def import_nncf() -> Any:
    """Returns the nncf package.

    Raises:
        Exception: Whatever a broken installation raises.
    """
    return _without_telemetry("nncf")


def _without_telemetry(package: str) -> Any:
    """Imports a package that takes its own stand-in if ``openvino_telemetry`` is missing.

    If this process has imported the package or its telemetry before, that stays as the user has it.
    """
    if package in sys.modules or _TELEMETRY in sys.modules:
        return importlib.import_module(package)
    modules: dict[str, Any] = sys.modules
    modules[_TELEMETRY] = None  # an import of it raises ModuleNotFoundError
    try:
        return importlib.import_module(package)
    finally:
        del modules[_TELEMETRY]
