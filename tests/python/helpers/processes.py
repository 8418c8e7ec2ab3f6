"""Waits for a process as long as it works, because a time limit would depend on the load of the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.dev.process_work import work_of

IDLE_SECONDS = 30.0
"""A process that sleeps this long without working is considered hung."""
CPU_SECONDS = 400.0
"""A process that works longer is considered hung in a busy loop."""


def run_while_it_works(
    command: Sequence[str | Path],
    *,
    idle_seconds: float = IDLE_SECONDS,
    cpu_seconds: float = CPU_SECONDS,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a new session, and captures the output of it and its children.

    Raises:
        AssertionError: If all processes of the session slept for ``idle_seconds``, or used ``cpu_seconds``.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
            env=env,
            start_new_session=True,
        )
        fault = _watch(process, idle_seconds, cpu_seconds)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    assert not fault, f"{fault}\n{texts[0]}\n{texts[1]}"
    return subprocess.CompletedProcess(command, process.returncode, *texts)


def _watch(process: subprocess.Popen[str], idle_seconds: float, cpu_seconds: float) -> str:
    """Waits for the end. Kills the session if it hangs, and returns how it hung."""
    used, since = -1.0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        now_used, is_runnable = _work(process.pid)
        if now_used != used or is_runnable:
            used, since = now_used, time.monotonic()
        fault = ""
        if time.monotonic() - since > idle_seconds:
            fault = f"hangs: its processes slept for {idle_seconds} s"
        elif used > cpu_seconds:
            fault = f"hangs: its processes used {cpu_seconds} s of CPU time"
        if fault:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return fault
    return ""


def _work(session: int) -> tuple[float, bool]:
    """Returns the CPU seconds of a session's processes, and whether one of them can run."""
    seconds, is_runnable = 0.0, False
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            used, can_run, its_session = work_of(stat)
        except OSError:  # it has ended
            continue
        if its_session == session:
            seconds += used
            is_runnable |= can_run
    return seconds, is_runnable
