"""The command line: the same verbs as the Python interface. Dispatches only; each group of verbs has its own module."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

import torch

from ..common.errors import HybridRTError, OptionError
from ..common.version import __version__
from . import (
    bench,
    bundle,
    cache,
    compare_engines,
    convert,
    doctor,
    explain,
    measure,
    package,
    profile,
    programs,
    signing,
    triton,
    verify,
)

EXIT_FAILED = 1
EXIT_USAGE = 2

_GROUPS = (
    convert,
    explain,
    verify,
    measure,
    profile,
    programs,
    doctor,
    bundle,
    signing,
    bench,
    compare_engines,
    cache,
    triton,
    package,
)
"""The groups of verbs, in the order in which ``--help`` lists them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0 success, 1 failure (the message is on stderr), 2 wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in programs.PROGRAMS:
            return programs.hand_over(*given)
        options = _parser().parse_args(given)
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except HybridRTError as error:
        print(f"hybrid-rt: error: {error}", file=sys.stderr)
        if error.code:
            print(f"Run 'hybrid-rt explain {error.code}' for the cause and the solutions.", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, OptionError) else EXIT_FAILED
    except OSError as error:
        # If the disk is full or the pipe of stdout is closed, Python would try to write to it again when it exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(
                f"hybrid-rt: error: hybrid_rt[cli]: files: expected to read and write them, got {error}",
                file=sys.stderr,
            )
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hybrid-rt", description="Convert detectors into one .pt with compiled engines and a TorchScript head."
    )
    parser.add_argument("--version", action="version", version=f"hybrid-rt {__version__} (torch {torch.__version__})")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for group in _GROUPS:
        group.add_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
