"""The lines of JSON by which the benchmark's processes answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LONGEST = 300


@contextmanager
def replies() -> Iterator[Callable[[Any], None]]:
    """Gives the function that answers. What others print goes to stderr meanwhile, also from C++."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w") as stream:

        def say(reply: Any) -> None:
            stream.write(json.dumps(reply) + "\n")
            stream.flush()

        yield say


def failure_text(error: BaseException) -> str:
    """An error in a line: its type, and what it says, without the stacks and graphs that torch adds."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return shortened(f"{type(error).__name__}: {said}")


def shortened(text: str) -> str:
    """The text's beginning, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
