"""``hybrid-rt detect`` and ``hybrid-rt serve``: hand over to the C++ programs."""

from __future__ import annotations

import os
import sys
from typing import Any

from ..common.executables import program

PROGRAMS = {
    "detect": "detect objects in an image (C++ program; see hybrid-rt detect --help)",
    "serve": "serve bundles over HTTP (C++ program; see hybrid-rt serve --help)",
}
"""The verbs and their help texts. The programs parse their own arguments, so argparse never sees these."""


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    for verb, text in PROGRAMS.items():
        verbs.add_parser(verb, help=text)


def hand_over(verb: str, *arguments: str) -> int:
    """Replaces this process by the program of that verb."""
    path = program(f"hybrid-rt-{verb}", verb)
    sys.stdout.flush()
    os.execv(path, [path, *arguments])
