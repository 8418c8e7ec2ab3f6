"""Keeps a compiler's process between two conversions for a while, because starting one takes seconds."""

from __future__ import annotations

import atexit
import os
import sys
import threading

from .process import CompilerProcess

REST_SECONDS = 30.0
"""Longest time that an idle process is kept; it holds some hundred megabytes."""


class WarmProcess:
    """Holds at most one idle process. Its methods may be called from several threads."""

    def __init__(self) -> None:
        """Creates it without a process."""
        self._lock = threading.Lock()
        self._process: CompilerProcess | None = None
        self._made_for: object = None
        self._timer: threading.Timer | None = None

    def put(self, process: CompilerProcess) -> None:
        """Keeps a process that is ready, and ends the previous one."""
        before = self._taken()
        with self._lock:
            self._process, self._made_for = process, _surroundings()
            self._timer = threading.Timer(REST_SECONDS, self.end)
            self._timer.daemon = True
            self._timer.start()
        if before is not None:
            before.close()

    def take(self) -> CompilerProcess | None:
        """Returns the idle process if a new one would be equal to it; None: start a new one."""
        with self._lock:
            fits = self._made_for == _surroundings()
        process = self._taken()
        if process is None or (fits and not process.has_ended):
            return process
        process.close()
        return None

    def end(self) -> None:
        """Ends the idle process, if there is one."""
        process = self._taken()
        if process is not None:
            process.close()

    def _taken(self) -> CompilerProcess | None:
        with self._lock:
            process, self._process = self._process, None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        # After a fork, the process belongs to the parent, so this one must not end it.
        return process if process is not None and process.owner == os.getpid() else None


def _surroundings() -> object:
    """Returns everything that a new process would inherit, and the thread, because a process ends with its thread."""
    return threading.get_ident(), dict(os.environ), tuple(sys.path), os.getcwd()


warm = WarmProcess()
atexit.register(warm.end)
