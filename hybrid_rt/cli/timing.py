"""The arguments of the verbs that time."""

from __future__ import annotations

import argparse
from pathlib import Path

MAX_PICTURES = 4
"""Largest number of images of a directory that are timed, alternately."""


def add_timing_arguments(verb: argparse.ArgumentParser) -> None:
    """Adds what is timed, how often, and on how many threads."""
    verb.add_argument(
        "--images",
        "--pictures",
        dest="pictures",
        type=Path,
        required=True,
        help=f"an image, or a directory of which the first {MAX_PICTURES} images are timed",
    )
    verb.add_argument("--repeat", type=int, default=20, help="timed rounds (default: 20)")
    verb.add_argument("--threads", type=int, default=0, help="threads per call (default: as torch)")
