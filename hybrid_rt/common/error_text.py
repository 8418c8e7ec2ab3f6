"""Shortens errors of other libraries to the message and the user's line."""

from __future__ import annotations

import importlib.util
import linecache
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from .errors import HybridRTError, split_code

_LINES = 24
_CHARACTERS = 300
"""Maximum number of characters per line."""

_VALUES = re.compile(r"[\s\d.,+\-eE()\[\]inf nan]*\d[\s\d.,+\-eE()\[\]inf nan]*")
"""Pattern of a line of a printed tensor."""

_OVERLOADS = re.compile(
    r"Arguments for call are not valid\.\s+The following variants are available:\s+"
    r"(?P<first>\S[^\n]*\n[^\n]*)\n.*?(?=The original call is:)",
    re.DOTALL,
)
"""TorchScript's list of an operator's overloads. It is longer than a message, and the line of the code follows it."""

# Found, not imported: that takes longer than all of torch, and a compiler's process has no need of it.
_TORCHVISION = importlib.util.find_spec("torchvision")

LIBRARIES = (
    f"{Path(__file__).parents[1]}/",
    f"{torch.__path__[0]}/",
    *(f"{place}/ops/" for place in (_TORCHVISION and _TORCHVISION.submodule_search_locations) or ()),
    "<hybrid_rt",
)
"""Prefixes of files that are not the user's; whole paths, because a user's directory may have any name."""


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes, the outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error that is raised again may be its own context's cause
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def described(error: BaseException) -> str:
    """Returns an exception as ``TYPE: MESSAGE``, without printed tensors and lists of overloads, at most 24 lines.

    For an exception without a message, such as StopIteration, the line of the user's code is given instead.
    """
    text = str(error).strip()
    if isinstance(error, HybridRTError):
        text = split_code(text)[0]  # the error that it becomes a part of has a code of its own
    text = _OVERLOADS.sub(r"Arguments for call are not valid, e.g. for\n  \g<first>\n", text)
    lines = [line for line in text.splitlines() if not _VALUES.fullmatch(line)]
    shortened = [line if len(line) <= _CHARACTERS else f"{line[:_CHARACTERS]}..." for line in lines[:_LINES]]
    text = "\n".join([*shortened, f"... and {len(lines) - _LINES} lines more"] if len(lines) > _LINES else shortened)
    kind = type(error).__name__
    if text:
        return f"{kind}: {text.removesuffix('.')}"
    place = line_of(traceback.extract_tb(error.__traceback__))
    return f"{kind} without a message, at {place}"


def line_of(frames: Iterable[traceback.FrameSummary]) -> str:
    """Returns the innermost line of a traceback in the user's code, as ``FILE:NUMBER: CODE``."""
    for frame in reversed(list(frames)):
        if not frame.filename.startswith(LIBRARIES):
            line = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f"{frame.filename}:{frame.lineno}: {line}"
    return "unknown line"
