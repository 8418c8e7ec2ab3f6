"""Runs the programs that build a wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hybrid_rt.common.errors import BackendError


def succeed(program: str, *arguments: str | Path) -> str:
    """Runs a program of this environment or of the system.

    Returns:
        Its output.

    Raises:
        BackendError: The program failed. The message contains the last lines of its output.
    """
    beside = Path(sys.executable).parent / program
    command = [str(beside) if beside.exists() else program, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BackendError.make(
            "wheel", program, expected="the program", got=str(error), remedy="Run tools/setup --tests."
        ) from error
    if done.returncode != 0:
        printed = " ".join((done.stdout + done.stderr).split("\n")[-20:])
        raise BackendError.make("wheel", " ".join(command), expected="exit code 0", got=f"{done.returncode}: {printed}")
    return done.stdout
