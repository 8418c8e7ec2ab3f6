"""A compiler's process between two conversions: it waits a while for the next one, as its start takes seconds."""

from __future__ import annotations

import atexit
import os
import sys
import threading

from .process import CompilerProcess

REST_SECONDS = 30.0
"""How long a process that has nothing to do is kept: it holds some hundred megabytes."""


class WarmProcess:
    """At most one process that waits; calls may come from several threads."""

    def __init__(self) -> None:
        """Nothing waits yet."""
        self._lock = threading.Lock()
        self._process: CompilerProcess | None = None
        self._made_for: object = None
        self._timer: threading.Timer | None = None

    def put(self, process: CompilerProcess) -> None:
        """Keeps a process that is ready; the one before it ends."""
        before = self._taken()
        with self._lock:
            self._process, self._made_for = process, _surroundings()
            self._timer = threading.Timer(REST_SECONDS, self.end)
            self._timer.daemon = True
            self._timer.start()
        if before is not None:
            before.close()

    def take(self) -> CompilerProcess | None:
        """Returns the process that waits, if it is what a new one would be; None: a new one has to be started."""
        with self._lock:
            fits = self._made_for == _surroundings()
        process = self._taken()
        if process is None or (fits and not process.has_ended):
            return process
        process.close()
        return None

    def end(self) -> None:
        """Ends the process that waits, if there is one."""
        process = self._taken()
        if process is not None:
            process.close()

    def _taken(self) -> CompilerProcess | None:
        with self._lock:
            process, self._process = self._process, None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        # After a fork it is the parent's, which this process must not end.
        return process if process is not None and process.owner == os.getpid() else None


def _surroundings() -> object:
    """Returns the environment that a process inherits when it starts; it ends with the thread that started it."""
    return threading.get_ident(), dict(os.environ), tuple(sys.path), os.getcwd()


warm = WarmProcess()
atexit.register(warm.end)
