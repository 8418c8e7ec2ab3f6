"""``hybrid-rt sign`` and ``hybrid-rt verify-signature``: sign bundles, and check their signatures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..bundle.signing import sign, verify_signature


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("sign", help="sign a .pt for programs that require your key")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument("--key", type=Path, required=True, help="PEM file with an Ed25519 private key")
    verb.add_argument("--detached", action="store_true", help="write MODEL.sig instead of changing the .pt")
    verb.set_defaults(run=_sign)

    verb = verbs.add_parser("verify-signature", help="show who signed a .pt, without running anything in it")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument(
        "--trusted-keys", type=Path, nargs="+", required=True, metavar="KEY", help="PEM files with public keys"
    )
    verb.set_defaults(run=_verify_signature)


def _sign(options: argparse.Namespace) -> int:
    signature = sign(options.model, options.key, detached=options.detached)
    place = f"{options.model}.sig" if options.detached else str(options.model)
    print(f"{place}: signed with the key {signature.key}")
    return 0


def _verify_signature(options: argparse.Namespace) -> int:
    for signer in verify_signature(options.model, options.trusted_keys):
        print(f"{options.model}: signed with {signer}, every record matches its digest")
    return 0
