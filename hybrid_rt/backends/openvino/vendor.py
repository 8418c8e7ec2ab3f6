"""Imports OpenVINO and NNCF without their telemetry.

Both packages report each import and conversion to their makers, unless the user has opted out. For each report,
``openvino_telemetry`` forks the process from a thread: twelve times per conversion of two segments, which takes longer
than a small segment's compilation, and may hang in a process with threads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Returns the openvino package.

    Raises:
        Exception: Whatever a broken installation raises.
    """
    with _without_telemetry("openvino"):
        import openvino
    return openvino


def import_nncf() -> Any:
    """Returns the nncf package.

    Raises:
        Exception: Whatever a broken installation raises.
    """
    with _without_telemetry("nncf"):
        import nncf
    return nncf


@contextmanager
def _without_telemetry(package: str) -> Iterator[None]:
    """Makes a package that is imported within the block take its own stand-in for the telemetry.

    If this process has imported the package or its telemetry before, that stays as the user has it.
    """
    if package in sys.modules or _TELEMETRY in sys.modules:
        yield
        return
    modules: dict[str, Any] = sys.modules
    modules[_TELEMETRY] = None  # an import of it raises ModuleNotFoundError
    try:
        yield
    finally:
        del modules[_TELEMETRY]
