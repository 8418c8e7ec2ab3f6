"""``hybrid-rt verify``: re-runs the golden sample of a bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..common.json_values import finite
from ..verification.golden import GoldenCheck, verify_golden

_DIFFERS = 1


def add_verbs(verbs: Any) -> None:
    """``verbs``: what ``add_subparsers`` returned."""
    verb = verbs.add_parser("verify", help="does a .pt find here what its detector found: re-runs its golden sample")
    verb.add_argument("model", type=Path)
    verb.add_argument("--backend", default="", help="only this one")
    verb.add_argument("--device", default="cpu", help="default: cpu")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    check = verify_golden(options.model, backend=options.backend, device=options.device)
    if options.json:
        print(json.dumps(finite(check.to_json()), indent=1))
    else:
        print(_verdict(options.model, check))
    return 0 if check.passed else _DIFFERS


def _verdict(model: Path, check: GoldenCheck) -> str:
    lines = [f"{model}: " + ("finds what its detector found" if check.passed else "DIFFERS from its detector")]
    lines += [f"  {engine['engine']}: {engine['description']}" for engine in check.engines]
    for match in check.verification.pictures:
        text = (
            f"  {match.where}: {match.matched} of {match.expected} boxes found again among {match.found}, worst IoU "
            f"{match.min_iou:.4f}, box drift {match.max_box_drift:.2f} pixels, "
            f"score drift {match.max_score_difference:.2g}"
        )
        if match.min_mask_iou is not None:
            text += f", mask IoU {match.min_mask_iou:.4f}"
        if match.max_keypoint_distance is not None:
            text += f", keypoint drift {match.max_keypoint_distance:.2f} pixels"
        lines.append(text)
    worst = max(check.verification.tensors, key=lambda error: error.relative_error, default=None)
    if worst is not None:
        lines.append(f"  {len(check.verification.tensors)} outputs, worst relative error {worst.relative_error:.2g}")
    lines += [f"  FAILED: {text}" for text in check.verification.failures]
    if not check.compared:
        lines.append("  (not compared when it was converted: verify=False)")
    return "\n".join(lines)
