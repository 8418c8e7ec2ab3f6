"""``hybrid-rt measure``: measures a bundle's latency on this machine and stores it in the bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..conversion.edit.measure import measure
from ..verification.latency import REPEAT
from .bundle import add_sign_argument
from .timing import add_contract_arguments, timed_calls


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("measure", help="store a .pt's latency on this machine in it, for verify --latency")
    threads = "threads of torch and of each engine (default: as torch)"
    add_contract_arguments(verb, "run", "measure (default: that of the image)", threads)
    verb.add_argument("--repeat", type=int, default=REPEAT, help=f"timed calls per size (default: {REPEAT})")
    verb.add_argument("--output", type=Path, help="path of the .pt to write (default: the input)")
    add_sign_argument(verb)
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=_measure)


def _measure(options: argparse.Namespace) -> int:
    report = measure(
        options.model,
        output=options.output,
        sign=options.sign,
        progress=not options.json or None,
        **timed_calls(options),
    )
    print(json.dumps(report.contract.to_json(), indent=1) if options.json else report)
    return 0
