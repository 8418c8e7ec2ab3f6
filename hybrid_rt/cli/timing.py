"""Defines the arguments of the verbs that measure time."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..common.errors import OptionError

MAX_PICTURES = 4
"""Largest number of images of a directory that are timed, alternately."""


def add_timing_arguments(verb: argparse.ArgumentParser) -> None:
    """Adds the arguments for the images, the number of rounds and the number of threads."""
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


def sizes_of(text: str | None) -> list[tuple[int, int]]:
    """Returns the sizes (height, width) of ``--sizes``; empty if it is not given.

    Raises:
        OptionError: The text has another form.
    """
    if text is None:
        return []
    try:
        pairs = [size.lower().split("x") for size in text.split(",")]
        return [(int(height), int(width)) for height, width in pairs]
    except ValueError as error:
        raise OptionError.make("cli", "--sizes", expected="HEIGHTxWIDTH,...", got=f"'{text}'") from error
