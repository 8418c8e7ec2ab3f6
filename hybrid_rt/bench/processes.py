"""Starts the processes of the benchmark, sends them requests, and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .protocol import shortened


class ProcessFailed(Exception):
    """A process reported a failure, ended, or did not answer in time; the text gives the reason."""


class Process:
    """A process that answers in lines of JSON."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] = {}) -> None:
        """Starts the process.

        Args:
            command: program and arguments.
            log: file for its stderr, whose last line explains a crash.
            environment: variables to set in addition to this process's own.
        """
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **environment},
            )
        self._unread = b""

    def ask(self, line: str, timeout: float) -> dict[str, Any]:
        """Sends a line and reads the answer, see :meth:`read`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: reading says why
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        return self.read(timeout)

    def read(self, timeout: float) -> dict[str, Any]:
        """Returns the next answer.

        Raises:
            ProcessFailed: The answer is {"error"}, or the process ended or did not answer within ``timeout`` seconds.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self._process.kill()
                self.close()
                raise ProcessFailed(f"no answer within {timeout:.0f} s")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise ProcessFailed(self._how_it_ended())
            self._unread += part
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ProcessFailed(shortened(answer["error"]))
        return answer

    def close(self) -> None:
        """Ends the process, by force if it does not end by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        said = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if code == -9:
            how += " (the kernel does that when memory runs out)"
        return shortened(f"{how}: {said[0]}" if said else how)
