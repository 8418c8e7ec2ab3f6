"""Signatures of bundles: Ed25519 by OpenSSL, in the native part, over the manifest and so over every record."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import _native
from ..common.atomic_files import written_whole
from ..common.errors import BundleError

_RECORDS = "extra/hybrid_rt/signatures"
_DETACHED = ".sig"


@dataclass(frozen=True)
class Signature:
    """A signature of a bundle.

    Attributes:
        key: the SHA-256 of the signer's public key.
        signature: 64 bytes in hexadecimal digits.
        algorithm: "ed25519".
    """

    key: str
    signature: str
    algorithm: str = "ed25519"


def sign(path: str | os.PathLike[str], key: str | os.PathLike[str], *, detached: bool = False) -> Signature:
    """Signs a bundle, so that ``load(path, trusted_keys=[...])`` takes it from whoever trusts the key.

    Signatures of several keys stand side by side. Whatever changes the bundle drops them: sign it again.

    Args:
        path: the `.pt`.
        key: a PEM file with an Ed25519 private key without a pass phrase, as ``openssl genpkey -algorithm ed25519``
            writes it.
        detached: write the signature to `PATH.sig` beside the bundle, which stays as it is. Otherwise it goes into it.

    Returns:
        The signature.

    Raises:
        BundleError: no bundle, an altered one, or a file that can't be written.
        OptionError: no such key.
    """
    place = Path(path)
    signature = Signature(*_native.sign(os.fsencode(place), os.fsencode(key)))
    if detached:
        _write_beside(place, signature)
    else:
        _write_into(place, signature)
    return signature


def verify_signature(path: str | os.PathLike[str], trusted_keys: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Returns the keys that have signed a bundle, and compares each of its records with its digest.

    Nothing of the bundle is run.

    Args:
        path: the `.pt`. Signatures in it count, and those in `PATH.sig` beside it.
        trusted_keys: PEM files with Ed25519 public keys.

    Returns:
        Those of the files whose key has signed it.

    Raises:
        BundleError: none of the keys has signed it, or a record was altered.
        OptionError: a key that can't be read, or no key.
    """
    keys = [os.fsencode(key) for key in trusted_keys]
    return [os.fsdecode(signer) for signer in _native.verify_signature(os.fsencode(path), keys)]


def _write_into(path: Path, signature: Signature) -> None:
    text = json.dumps([asdict(signature)])
    with zipfile.ZipFile(path) as archive:
        record = f"{archive.namelist()[0].split('/', 1)[0]}/{_RECORDS}/{signature.key}.json"
        if record in archive.namelist():
            if archive.read(record).decode("utf-8", "replace") == text:
                return
            raise BundleError.make(
                "sign",
                str(path),
                expected=f"no signature of the key {signature.key}, or this one",
                got="another one of that key",
                remedy="Sign with detached=True, or convert the detector again.",
            )
    with written_whole(path) as temporary:
        shutil.copyfile(path, temporary)
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_STORED) as archive:
            archive.writestr(record, text)


def _write_beside(path: Path, signature: Signature) -> None:
    beside = path.with_name(path.name + _DETACHED)
    others = [entry for entry in _read_beside(beside) if entry.get("key") != signature.key]
    with written_whole(beside) as temporary:
        temporary.write_text(json.dumps([*others, asdict(signature)], indent=1) + "\n", encoding="utf-8")


def _read_beside(beside: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        found = error
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        return found
    raise BundleError.make(
        "sign", str(beside), expected="a file of signatures", got="something else", remedy="Move it out of the way."
    )
