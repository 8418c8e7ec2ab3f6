"""Signs bundles with Ed25519 (OpenSSL, in the native part), over the manifest and thus over every record."""

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
from ..common.atomic_files import atomic_write
from ..common.errors import BundleError, OptionError

Keys = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""PEM files with Ed25519 private keys: the path of one, or several."""

_RECORDS = "extra/hybrid_rt/signatures"
_DETACHED = ".sig"


@dataclass(frozen=True)
class Signature:
    """A signature of a bundle.

    Attributes:
        key: SHA-256 of the signer's public key (its 32 bytes), in hexadecimal digits.
        signature: 64 bytes, in hexadecimal digits.
        algorithm: always "ed25519".
    """

    key: str
    signature: str
    algorithm: str = "ed25519"


@dataclass(frozen=True)
class SignatureChange:
    """Signatures that a bundle gained and lost when it was written.

    Attributes:
        signed: the keys that have signed the new file.
        dropped: the keys whose signatures in the original or replaced file do not apply to the new file.
    """

    signed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Returns lines for a terminal."""
        lines = [f"signed with the key {key}" for key in self.signed]
        if self.dropped:
            lines.append(
                f"signatures that do not hold any more were left out: {', '.join(self.dropped)}. Sign it again: "
                "`hybrid-rt sign FILE --key KEY`, or sign= of what changes it."
            )
        return lines


def signing_keys(sign: Keys) -> list[Path]:
    """Returns the keys as paths after reading each, so that a bad key is reported before long work.

    Raises:
        OptionError: A file is not a private key, or a key is passed twice.
    """
    paths = [Path(sign)] if isinstance(sign, (str, os.PathLike)) else [Path(path) for path in sign]
    names = [_native.key_of(os.fsencode(path)) for path in paths]
    for path, name in zip(paths, names, strict=True):
        if names.count(name) > 1:
            raise OptionError.make("signature", "sign", expected="each key once", got=f"the key of {path} twice")
    return paths


def signers_of(path: str | os.PathLike[str]) -> set[str]:
    """Returns the keys that a bundle, or the file beside it, names as signers, without checking the signatures.

    A file that is not a bundle has none.
    """
    try:
        return set(_native.signers(os.fsencode(path)))
    except BundleError:
        return set()


def sign_copy(temporary: Path, keys: Sequence[Path]) -> tuple[str, ...]:
    """Signs a temporary bundle in place, and returns the signers' keys.

    Raises:
        BundleError, OptionError: see :func:`sign`.
    """
    signatures = [Signature(*_native.sign(os.fsencode(temporary), os.fsencode(key))) for key in keys]
    if signatures:
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_STORED) as archive:
            for signature in signatures:
                archive.writestr(_record_of(archive, signature), json.dumps([asdict(signature)]))
    return tuple(signature.key for signature in signatures)


def remove_detached(path: Path) -> None:
    """Removes the signatures next to a bundle that was replaced. Keeps a file without hybrid_rt's signatures."""
    beside = path.with_name(path.name + _DETACHED)
    try:
        found = _read_beside(beside)
    except BundleError:
        return
    if any("key" in entry and "signature" in entry for entry in found):
        beside.unlink()


def _record_of(archive: zipfile.ZipFile, signature: Signature) -> str:
    return f"{archive.namelist()[0].split('/', 1)[0]}/{_RECORDS}/{signature.key}.json"


def sign(path: str | os.PathLike[str], key: str | os.PathLike[str], *, detached: bool = False) -> Signature:
    """Signs a bundle, so that ``load(path, trusted_keys=[...])`` accepts it.

    A bundle can have signatures of several keys. Every change of the bundle removes them, so sign it again.

    Args:
        path: the `.pt`.
        key: a PEM file with an Ed25519 private key without a pass phrase, as ``openssl genpkey -algorithm ed25519``
            writes it.
        detached: write the signature to `PATH.sig` and leave the bundle as it is. Otherwise it is stored in the bundle.

    Returns:
        The signature.

    Raises:
        BundleError: the file is not a bundle, was altered, or can't be written.
        OptionError: the key can't be read.

    Examples:
        >>> signature = hybrid_rt.sign("detector.pt", "private.pem")
        >>> module = hybrid_rt.load("detector.pt", trusted_keys=["public.pem"])
    """
    place = Path(path)
    signature = Signature(*_native.sign(os.fsencode(place), os.fsencode(key)))
    if detached:
        _write_beside(place, signature)
    else:
        _write_into(place, signature)
    return signature


def verify_signature(path: str | os.PathLike[str], trusted_keys: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Returns the keys that have signed a bundle, and compares each record with its digest.

    Nothing in the bundle is run.

    Args:
        path: path of the `.pt`. Signatures in it and in `PATH.sig` count.
        trusted_keys: PEM files with Ed25519 public keys.

    Returns:
        The entries of ``trusted_keys`` whose key has signed the bundle.

    Raises:
        BundleError: none of the keys has signed it, or a record was altered.
        OptionError: a key can't be read, or none is given.

    Examples:
        >>> signature = hybrid_rt.sign("detector.pt", "private.pem")
        >>> hybrid_rt.verify_signature("detector.pt", ["public.pem"])
        ['public.pem']
    """
    keys = [os.fsencode(key) for key in trusted_keys]
    return [os.fsdecode(signer) for signer in _native.verify_signature(os.fsencode(path), keys)]


def _write_into(path: Path, signature: Signature) -> None:
    text = json.dumps([asdict(signature)])
    with zipfile.ZipFile(path) as archive:
        record = _record_of(archive, signature)
        if record in archive.namelist():
            if archive.read(record).decode("utf-8", "replace") == text:
                return
            raise BundleError.make(
                "sign",
                str(path),
                expected=f"no other signature of the key {signature.key}",
                got="one",
                remedy="Sign with detached=True, or convert the detector again.",
            )
    with atomic_write(path) as temporary:
        shutil.copyfile(path, temporary)
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_STORED) as archive:
            archive.writestr(record, text)


def _write_beside(path: Path, signature: Signature) -> None:
    beside = path.with_name(path.name + _DETACHED)
    others = [entry for entry in _read_beside(beside) if entry.get("key") != signature.key]
    with atomic_write(beside) as temporary:
        temporary.write_text(json.dumps([*others, asdict(signature)], indent=1) + "\n", encoding="utf-8")


def _read_beside(beside: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        found = error
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        return found
    raise BundleError.make(
        "sign", str(beside), expected="a file of signatures", got="something else", remedy="Move or delete it."
    )
