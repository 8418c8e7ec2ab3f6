"""Defines the lines of JSON with which the benchmark's processes answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LONGEST = 300
_INTERPRETER = "operation failed in the TorchScript interpreter."


@contextmanager
def replies() -> Iterator[Callable[[Any], None]]:
    """Yields the function that answers. Within the block, all other output goes to stderr, also from C++."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w") as stream:

        def send(reply: Any) -> None:
            stream.write(json.dumps(reply) + "\n")
            stream.flush()

        yield send


def failure_text(error: BaseException) -> str:
    """Returns an error's type and message on one line, without the stacks and graphs that torch adds."""
    return shortened(f"{type(error).__name__}: {error}")


def shortened(text: str) -> str:
    """Returns the message in an error's text on one line: the first line, or for TorchScript's interpreter the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    line = " ".join((lines[-1] if _INTERPRETER in lines[0] else lines[0]).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
