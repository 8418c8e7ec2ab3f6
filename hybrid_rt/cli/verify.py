"""``hybrid-rt verify``: re-runs the golden sample of a bundle, and checks its latency contract."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..common.errors import OptionError
from ..common.json_values import finite
from ..verification.golden import verify_golden
from ..verification.latency import TOLERANCE, LatencyCheck, read_contract, verify_latency
from ..verification.text import verdict
from .timing import add_contract_arguments, timed_calls

_DIFFERS = 1


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("verify", help="compare a .pt with its detector by running the golden sample")
    threads = "threads of torch and engines (default: the contract's)"
    add_contract_arguments(verb, "time", "check (default: all of the contract)", threads)
    verb.add_argument("--latency", action="store_true", help="also check the times that hybrid-rt measure has stored")
    verb.add_argument("--repeat", type=int, default=0, help="timed calls per size (default: as for the contract)")
    verb.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help=f"fraction by which a percentile may exceed the contract's (default: {TOLERANCE:g})",
    )
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    if options.latency:
        read_contract(options.model)  # before the detector runs
    elif options.image is not None or options.sizes is not None or options.repeat or options.threads:
        raise OptionError.make(
            "cli", "an image, --sizes, --repeat, --threads", expected="--latency as well", got="none"
        )
    check = verify_golden(options.model, backend=options.backend, device=options.device)
    latency = _latency(options) if options.latency else None
    passed = check.passed and (latency is None or latency.holds)
    if options.json:
        values = check.to_json()
        if latency is not None:
            values = {**values, "passed": passed, "latency": latency.to_json()}
        print(json.dumps(finite(values), indent=1))
    else:
        print("\n".join([*verdict(str(options.model), check), *(latency.lines if latency is not None else [])]))
    return 0 if passed else _DIFFERS


def _latency(options: argparse.Namespace) -> LatencyCheck:
    return verify_latency(options.model, tolerance=options.tolerance, **timed_calls(options))
