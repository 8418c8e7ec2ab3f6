"""Runs a case of tools/gpu_check in a separate process, so that a crash or a hang only affects that case."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu.report import FAILED, NOT_RUN, PASSED, REFUSED, TIMED_OUT, Row

ROOT = Path(__file__).resolve().parents[2]

LIMIT_VARIABLE = "HYBRID_RT_GPU_CHECK_SECONDS"
"""Variable with a case's time limit in seconds."""

_STACKS = "Fatal Python error: "
"""Start of what Python's faulthandler prints."""

_THREADS = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")

DEVICE_VARIABLE = "HYBRID_RT_GPU_CHECK_DEVICE"
"""Variable with the device on which the cases run; "cpu" in a rehearsal."""

REFUSAL = 3
"""Exit code of a case if hybrid_rt refuses."""

SECONDS_FOR_STACKS = 1.0
"""Time that each process of a case gets to print its stacks at the case's limit."""

SHORTEST_SECONDS = 10.0
"""Minimum remaining budget to start a case."""


@dataclass(frozen=True)
class Case:
    """One case to run.

    Attributes:
        name: Name of the case.
        engine: See :class:`report.Row`.
        seconds: Time limit.
        environment: Variables to set for its process.
        is_timed: True if it measures, so that nothing else may run at the same time.
    """

    name: str
    engine: str = ""
    seconds: float = 60.0
    environment: Mapping[str, str] | None = None
    is_timed: bool = False


@dataclass(frozen=True)
class Outcome:
    """Outcome of a case.

    Attributes:
        rows: Rows for the table. If the process ended early, the rows until then and one that describes its end.
        data: All other results, as JSON values.
    """

    rows: list[Row]
    data: dict[str, Any]


class Writer:
    """Writes a case's results. Each row is on disk before the next step, which may crash."""

    def __init__(self, path: Path) -> None:
        """Creates the file ``path``."""
        self._path = path
        self._rows: list[dict[str, str]] = []
        self._data: dict[str, Any] = {}

    def row(self, row: Row) -> None:
        """Adds a row to the table."""
        self._rows.append({"what": row.what, "result": row.result, "figure": row.figure, "engine": row.engine})
        self._write()

    def data(self, **values: Any) -> None:
        """Adds values to the JSON."""
        self._data.update(values)
        self._write()

    def _write(self) -> None:
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"rows": self._rows, "data": self._data}))
        temporary.replace(self._path)


def run(case: Case, command: Sequence[str], directory: Path, left: float, threads: int) -> Outcome:
    """Runs a case.

    Args:
        case: The case.
        command: Command of its process. The path that :class:`Writer` writes to is appended.
        directory: Directory of that file, and of the log of its output.
        left: Remaining budget in seconds.
        threads: Number of threads of each of its processes. Several processes that each use all cores are many times
            slower. It is the same for all cases, because the random weights of torchvision's detectors are scaled by
            running them, where the number of threads changes the last bits and with them the keys of the cache.
    """
    limit = min(case.seconds, left)
    if limit < SHORTEST_SECONDS and limit < case.seconds:
        return Outcome([Row(case.name, NOT_RUN, "the time was spent; --minutes gives more", case.engine)], {})
    stem = case.name.replace(" ", "_").replace("/", "_")
    written, log = directory / f"{stem}.json", directory / f"{stem}.log"
    written.unlink(missing_ok=True)
    start = time.monotonic()
    temporary = Path(tempfile.mkdtemp(prefix="hybrid_rt_"))  # short, since paths of sockets may be below it
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(written)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                **{name: str(threads) for name in _THREADS},
                **(case.environment or {}),
                LIMIT_VARIABLE: f"{limit:.0f}",
                "PYTHONFAULTHANDLER": "1",  # see _print_stacks
                "TMPDIR": str(temporary),
            },
            start_new_session=True,  # so that its children can be ended with it
        )
        try:
            ended = process.wait(limit)
        except subprocess.TimeoutExpired:
            ended = None
            _print_stacks(process)
        finally:
            _end(process)
    outcome = _read(written)
    seconds = time.monotonic() - start
    if ended is None:
        logs = (log, *sorted(temporary.rglob("*.log")))
        outcome.data["stacks"] = {path.name: tail(path, 200) for path in logs if path.stat().st_size}
    shutil.rmtree(temporary, ignore_errors=True)
    outcome.data["seconds"] = round(seconds, 1)
    if ended == 0:
        return outcome
    said = outcome.data.get("failure") or last_line(log)  # a vendor's library may print something after it
    outcome.data["log"] = tail(log, 40)
    return Outcome([*outcome.rows, _failure(case, ended, seconds, said)], outcome.data)


def _failure(case: Case, ended: int | None, seconds: float, said: str) -> Row:
    """Returns the row of a case that failed; ``ended`` is its exit code, None at its time limit."""
    if ended is None:
        return Row(case.name, TIMED_OUT, f"ended after {seconds:.0f} s: {said}", case.engine)
    if ended == REFUSAL:
        return Row(case.name, REFUSED, said, case.engine)
    how = f"signal {signal.Signals(-ended).name}" if ended < 0 else f"exit code {ended}"
    return Row(case.name, FAILED, f"{how}: {said}", case.engine)


def _print_stacks(process: subprocess.Popen[bytes]) -> None:
    """Ends the processes of a case, one after the other, such that each one in Python prints where it was."""
    for pid in sorted(_running(process.pid), reverse=True):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
        deadline = time.monotonic() + SECONDS_FOR_STACKS
        while pid in _running(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)


def _running(group: int) -> set[int]:
    """Returns the processes of a group that have not ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            state, _, own_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(own_group) == group and state != "Z":
                found.add(int(path.parent.name))
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its children, such as compilers, which outlive a crashed process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(path: Path) -> Outcome:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return Outcome([], {})
    return Outcome([Row.of(row) for row in values["rows"]], values["data"])


def tail(path: Path, count: int) -> str:
    """Returns the last lines of a log that are not blank."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return str(error)
    return "\n".join([line.rstrip() for line in lines if line.strip()][-count:])


def last_line(path: Path) -> str:
    """Returns the last line of a log before Python's stacks, where pip, CMake and Python state the error."""
    lines = tail(path, 1 << 30).partition(_STACKS)[0].splitlines()
    return lines[-1] if lines else "it printed nothing"


def first_error(path: Path, count: int = 4) -> str:
    """Returns the first lines of a log from an error on, since consequences follow it, or else the last lines."""
    lines = tail(path, 1 << 30).splitlines()
    for i, line in enumerate(lines):
        if re.search(r"CMake Error|\berror: |^ERROR: |hybrid_rt\[build\]", line):
            return "\n".join(lines[i : i + count])
    return "\n".join(lines[-count:]) or "it printed nothing"


def build_rows(path: Path) -> list[Row]:
    """Reads the results of the bash part: tab-separated lines of "title, exit code, seconds, log"."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        title, code, seconds, log = line.split("\t")
        if code == "-":
            rows.append(Row(title, NOT_RUN, log))
        elif code == "0":
            rows.append(Row(title, PASSED, f"{seconds} s"))
        else:
            rows.append(Row(title, FAILED, first_error(Path(log))))
    return rows
