"""Starts a server on loopback for the load test, and reads its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hybrid_rt import BackendError
from hybrid_rt.common.executables import program

START_SECONDS = 300.0
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]

    def memory_mib(self, entry: str = "VmRSS") -> float:
        """Returns the current (VmRSS) or peak (VmHWM) resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return round(int(line.split()[1]) / 1024, 1)
        raise _failed("its memory in /proc", "none", f"exit code {self.process.poll()}")


@contextmanager
def started(model: Path, log: Path, **options: object) -> Iterator[Server]:
    """Starts hybrid-rt-serve on a free port of 127.0.0.1, and stops it at the end.

    Args:
        model: The bundle.
        log: File for its log.
        options: Options of the program: `threads=1` stands for `--threads 1`; None omits an option.

    Raises:
        BackendError: It does not start, or does not end properly.
    """
    command = [program("hybrid-rt-serve", "load_test"), str(model), "--host", "127.0.0.1", "--port", "0"]
    for name, value in options.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    with log.open("wb") as target:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=target)
    try:
        yield Server(_wait_until_serving(process, log), process)
    finally:
        process.terminate()
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    if code != 0:
        raise _failed("exit code 0 after SIGTERM", str(code), str(log))


def _wait_until_serving(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines(keepends=True):
            if '"serving"' in line and line.endswith("\n"):
                entry = json.loads(line)
                return f"http://{entry['address']}:{entry['port']}"
        time.sleep(0.05)
    print(log.read_text(), file=sys.stderr)
    raise _failed("to serve", f"exit code {process.poll()}", str(log))


def _failed(expected: str, got: str, where: str) -> BackendError:
    return BackendError.make("load_test", "hybrid-rt-serve", expected=expected, got=got, remedy=f"See {where}.")
