"""``hybrid-rt measure``: measures a bundle's latency on this machine and stores it in the bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..common.images import read_picture
from ..conversion.edit.measure import measure
from ..verification.latency import REPEAT
from .bundle import add_sign_argument
from .timing import sizes_of


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("measure", help="store a .pt's latency on this machine in it, for verify --latency")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument("image", type=Path, nargs="?", help="image to run (default: the golden sample's inputs)")
    verb.add_argument("--sizes", help="image sizes HEIGHTxWIDTH,... to measure (default: that of the image)")
    verb.add_argument("--repeat", type=int, default=REPEAT, help=f"timed calls per size (default: {REPEAT})")
    verb.add_argument("--threads", type=int, default=0, help="threads of torch and of each engine (default: as torch)")
    verb.add_argument("--backend", default="", help="use only this backend")
    verb.add_argument("--device", default="cpu", help="device to run on (default: cpu)")
    verb.add_argument("--output", type=Path, help="path of the .pt to write (default: the input)")
    add_sign_argument(verb)
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=_measure)


def _measure(options: argparse.Namespace) -> int:
    report = measure(
        options.model,
        None if options.image is None else ([read_picture(options.image)],),
        options.output,
        sizes=sizes_of(options.sizes),
        repeat=options.repeat,
        device=options.device,
        backend=options.backend,
        threads=options.threads,
        sign=options.sign,
        progress=not options.json or None,
    )
    print(json.dumps(report.contract.to_json(), indent=1) if options.json else report)
    return 0
