"""Waits for a process as long as it works: a limit in seconds would count the load of the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

IDLE_SECONDS = 30.0
"""A process that sleeps for so long without any work hangs."""
CPU_SECONDS = 400.0
"""A process that works for longer hangs too: it waits actively."""

_TICK = os.sysconf("SC_CLK_TCK")


def run_while_it_works(
    command: Sequence[str | Path],
    *,
    idle_seconds: float = IDLE_SECONDS,
    cpu_seconds: float = CPU_SECONDS,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a session of its own, and captures what it and its children print.

    Raises:
        AssertionError: all processes of the session slept for ``idle_seconds``, or they used ``cpu_seconds``.
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
    """Waits for the end; kills the session if it hangs, and returns how."""
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
    """Returns the CPU seconds of a session's processes, with those of ended children, and whether one can run."""
    seconds, is_runnable = 0.0, False
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            seconds += sum(map(int, fields[11:15])) / _TICK
            is_runnable |= fields[0] in "RD"
    return seconds, is_runnable
