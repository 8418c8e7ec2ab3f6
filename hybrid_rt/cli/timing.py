"""Defines the arguments of the verbs that measure time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from ..common.errors import OptionError
from ..common.images import read_image

MAX_IMAGES = 4
"""Largest number of images of a directory that are timed, alternately."""


def add_timing_arguments(verb: argparse.ArgumentParser) -> None:
    """Adds the arguments for the images, the number of rounds and the number of threads."""
    verb.add_argument(
        "--images",
        "--pictures",
        dest="images",
        type=Path,
        required=True,
        help=f"an image, or a directory of which the first {MAX_IMAGES} images are timed",
    )
    verb.add_argument("--repeat", type=int, default=20, help="timed rounds (default: 20)")
    verb.add_argument("--threads", type=int, default=0, help="threads per call (default: as torch)")


def add_call_arguments(verb: argparse.ArgumentParser, purpose: str, threads: str) -> None:
    """Adds the bundle, the image and the way to run it, for the verbs that time one bundle.

    Args:
        verb: the parser to add them to.
        purpose: what is done with the image, for the help.
        threads: help of ``--threads``.
    """
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument("image", type=Path, nargs="?", help=f"image to {purpose} (default: the golden sample's inputs)")
    verb.add_argument("--backend", default="", help="use only this backend")
    verb.add_argument("--threads", type=int, default=0, help=threads)


def add_contract_arguments(verb: argparse.ArgumentParser, purpose: str, sizes: str, threads: str) -> None:
    """Adds the arguments of the verbs that time a bundle at several sizes.

    Args:
        verb: the parser to add them to.
        purpose: what is done with the image, for the help.
        sizes: end of the help of ``--sizes``.
        threads: help of ``--threads``.
    """
    add_call_arguments(verb, purpose, threads)
    verb.add_argument("--device", default="cpu", help="device to run on (default: cpu)")
    verb.add_argument("--sizes", help=f"image sizes HEIGHTxWIDTH,... to {sizes}")


def image_arguments(image: Path | None) -> tuple[list[Tensor]] | None:
    """Returns an image as the arguments of a detector; None if there is none.

    Raises:
        OptionError: The image can't be read.
    """
    return None if image is None else ([read_image(image)],)


def timed_calls(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of :func:`add_contract_arguments` and ``--repeat``, as the functions that time take them."""
    return {
        "inputs": image_arguments(options.image),
        "sizes": sizes_of(options.sizes),
        "repeat": options.repeat,
        "device": options.device,
        "backend": options.backend,
        "threads": options.threads,
    }


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
