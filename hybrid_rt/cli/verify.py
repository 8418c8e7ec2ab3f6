"""``hybrid-rt verify``: re-runs the golden sample of a bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..common.json_values import finite
from ..verification.golden import verify_golden
from ..verification.text import verdict

_DIFFERS = 1


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("verify", help="compare a .pt with its detector by running the golden sample")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument("--backend", default="", help="use only this backend")
    verb.add_argument("--device", default="cpu", help="device to run on (default: cpu)")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    check = verify_golden(options.model, backend=options.backend, device=options.device)
    if options.json:
        print(json.dumps(finite(check.to_json()), indent=1))
    else:
        print("\n".join(verdict(str(options.model), check)))
    return 0 if check.passed else _DIFFERS
