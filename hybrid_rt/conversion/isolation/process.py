"""The parent's side of a compiler's process: starts it, sends requests, watches its limits, ends it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .limits import Limits

_START = Path(__file__).with_name("start.py")

_START_SECONDS = 120.0
"""Longest time for the process to import torch, on a machine under load."""

_LOOK_SECONDS = 0.05
"""Interval at which its memory is measured. A process can allocate some 50 MB more in that time."""

_CLOSE_SECONDS = 5.0

_LAST_WORDS = 300
"""Maximum number of characters that an error quotes from its last output."""


class CantStart(Exception):
    """The process can't be started; the text gives the reason."""


class Ended(Exception):
    """The process ended before it answered, by itself or because it exceeded a limit; the text gives the reason."""


class CompilerProcess:
    """A process that compiles. It belongs to the thread that made it, and does not outlive it."""

    def __init__(self) -> None:
        """Starts the process without waiting until it is ready.

        Raises:
            CantStart: No Python interpreter is known, or the system can't start the process.
        """
        if not sys.executable:
            raise CantStart("no Python interpreter is known")
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it is closed with the process
        self._read = 0
        command = [sys.executable, str(_START), str(theirs.fileno()), str(os.getpid()), *sys.path]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the parent, which ends it with all that it has started
                )
        except OSError as error:
            ours.close()
            self._log.close()
            raise CantStart(str(error)) from error
        self._connection: Connection = Connection(ours.detach())
        self.owner = os.getpid()
        self._is_ready = False

    @property
    def pid(self) -> int:
        """Returns the process's id."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Returns true if the process has answered before."""
        return self._is_ready

    @property
    def has_ended(self) -> bool:
        """Returns true if the process has ended."""
        return self._process.poll() is not None

    def is_ready_now(self) -> bool:
        """Returns true if the process accepts requests, without waiting for it.

        Raises:
            CantStart: see :meth:`wait_until_ready`.
        """
        if not self._is_ready and self._connection.poll(0):
            self.wait_until_ready()
        return self._is_ready

    def wait_until_ready(self) -> None:
        """Waits until the process accepts requests.

        Raises:
            CantStart: It ended before, took too long, or imported another hybrid_rt.
        """
        if self._is_ready:
            return
        try:
            answer = self.receive(time.monotonic() + _START_SECONDS, Limits(seconds=_START_SECONDS))
        except Ended as error:
            raise CantStart(str(error)) from error
        own = str(Path(__file__).parents[2])
        if answer != ("ready", own):
            self.kill()
            raise CantStart(f"it found another hybrid_rt: {answer[1]} instead of {own}")
        self._is_ready = True

    def send(self, message: Any) -> None:
        """Sends a message. If the process has ended, nothing is sent, and :meth:`receive` raises Ended.

        Raises:
            PicklingError, TypeError, AttributeError: The message can't be pickled.
        """
        content = pickle.dumps(message)
        with contextlib.suppress(OSError):
            self._connection.send_bytes(content)

    def receive(self, deadline: float, limits: Limits) -> Any:
        """Returns the process's next message.

        Args:
            deadline: time at which the process is killed, on the clock of time.monotonic().
            limits: the limits that the deadline follows from, and the memory that the process may hold.

        Raises:
            Ended: The process ended, or was killed because it exceeded a limit.
        """
        while not self._connection.poll(_LOOK_SECONDS):
            if time.monotonic() > deadline:
                self.kill()
                raise Ended(f"did not end within {limits.seconds:g} s and was stopped")
            held = self._memory()
            if limits.memory and held > limits.memory:
                self.kill()
                raise Ended(f"took more than {limits.memory / 2**20:.0f} MiB of memory and was stopped")
        try:
            return pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise Ended(self._how_it_ended()) from error

    def printed(self) -> str:
        """Returns the output that it has printed since the last call."""
        text = os.pread(self._log.fileno(), 1 << 20, self._read)
        self._read += len(text)
        return text.decode(errors="replace")

    def close(self) -> None:
        """Ends the process, by force if it does not end by itself."""
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        self.kill()
        self._log.close()

    def kill(self) -> None:
        """Kills the process, with all processes that it has started."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _memory(self) -> int:
        """Returns the memory that the process holds, in bytes."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        return 0

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        self.kill()
        code = self._process.returncode
        how = f"ended by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += " (the kernel does that when memory runs out)"
        lines = [line.strip() for line in self.printed().splitlines() if line.strip()]
        return f"{how}, after it had printed: {lines[-1][:_LAST_WORDS]}" if lines else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
