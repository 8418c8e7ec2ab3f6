"""Bundles: the `.pt` that holds head, engines and manifest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import _native, registry, torchscript
from .errors import BundleError
from .files import written_whole

FORMAT_VERSION = 1

_PREFIX = "extra/hybrid_rt"
GOLDEN_RECORD = f"{_PREFIX}/golden.bin"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class VariantCheck:
    """One variant of a segment; ``refusal`` is why it can't run here, empty if it can."""

    backend: str
    precision: str
    chosen: bool
    refusal: str


@dataclass(frozen=True)
class SegmentCheck:
    """The variants of a segment in the file's order."""

    segment: str
    variants: tuple[VariantCheck, ...]

    @property
    def chosen(self) -> VariantCheck | None:
        """The variant that would run here."""
        return next((variant for variant in self.variants if variant.chosen), None)


def save(
    module: torch.jit.ScriptModule,
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    golden: bytes | None = None,
) -> None:
    """Writes a bundle. The file appears whole or not at all; an old one stays until then.

    A process that is killed while it writes leaves a hidden folder ``.NAME.*`` beside the file, which may be deleted.

    Args:
        module: the frozen hybrid.
        path: where to.
        manifest: what is known of it; ``segments`` with their variants are required. Format version and the digest
            of each record are added.
        golden: the bytes of the golden sample that ``manifest["golden"]`` describes.

    Raises:
        BundleError: it can't be written.
    """
    archive = torchscript.to_bytes(module)
    with written_whole(Path(path)) as temporary, ThreadPoolExecutor(1) as pool:
        records = pool.submit(_records, archive, manifest)  # hundreds of megabytes: digests while they are written
        temporary.write_bytes(archive)
        _append_manifest(temporary, manifest, *records.result(), golden)


def _records(archive: bytes, manifest: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """The archive's root folder, and of each record its digest and size."""
    blobs = {
        blob["sha256"]
        for segment in manifest["segments"]
        for variant in segment["variants"]
        for blob in variant["blobs"]
    }
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        root = opened.namelist()[0].split("/", 1)[0]
        records = {}
        for name in opened.namelist():
            digest = _sha256_of_record(opened, name)
            entry: dict[str, Any] = {"sha256": digest, "size": opened.getinfo(name).file_size}
            if digest in blobs:
                entry["is_blob"] = True
            records[name.split("/", 1)[1]] = entry
    return root, records


def _append_manifest(
    path: Path, manifest: Mapping[str, Any], root: str, records: dict[str, dict[str, Any]], golden: bytes | None
) -> None:
    if golden is not None:
        digest = hashlib.sha256(golden).hexdigest()
        records[GOLDEN_RECORD] = {"sha256": digest, "size": len(golden), "is_golden": True}
    text = json.dumps({"format_version": FORMAT_VERSION, **manifest, "records": records}, indent=1)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        if golden is not None:  # the one record that nothing maps into memory, and that is mostly zeros if it has masks
            archive.writestr(f"{root}/{GOLDEN_RECORD}", golden, zipfile.ZIP_DEFLATED)
        archive.writestr(f"{root}/{_PREFIX}/format_version", str(FORMAT_VERSION))
        archive.writestr(f"{root}/{_PREFIX}/manifest.json", text)
        archive.writestr(f"{root}/{_PREFIX}/manifest.sha256", hashlib.sha256(text.encode()).hexdigest())


def _sha256_of_record(archive: zipfile.ZipFile, name: str) -> str:
    digest = hashlib.sha256()
    with archive.open(name) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    backend: str = "",
    threads: int = 0,
    emulate_precision: bool = False,
) -> torch.jit.ScriptModule:
    """Loads a bundle; it then runs as the detector did. Fails here rather than at the first call.

    Args:
        path: the `.pt`.
        device: where it runs, e.g. "cpu" or "cuda:0".
        backend: run only this backend's variants. Empty: the environment's HYBRID_RT_BACKEND, else the file's order.
        threads: that an engine may use for one call; 0: as many as torch uses in this thread.
        emulate_precision: run a bf16 variant in bf16 even where the CPU has no instructions for it (much slower), to
            verify its results. Otherwise it runs in f32 there.

    Returns:
        The module; its forward takes and returns what the detector's did in eval mode.

    Raises:
        BundleError: no bundle, altered, truncated, of a newer format.
        BackendError: no variant of a segment can run here; the text lists each with its reason.
        OptionError: a device that does not exist.
    """
    registry.load_plugins()
    return torchscript.load(os.fspath(path), str(device), backend, threads, emulate_precision)


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a bundle, without unpickling anything or opening an engine: see docs/format.md.

    Raises:
        BundleError: no bundle, or an altered one.
    """
    text = _native.read_manifest(os.fspath(path))
    try:
        manifest: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise BundleError.make(
            "bundle",
            f"{os.fspath(path)}, manifest",
            expected="JSON",
            got=str(error),
            remedy="Convert the detector again.",
        ) from error
    return manifest


def check(path: str | os.PathLike[str], device: str | torch.device = "cpu", *, backend: str = "") -> list[SegmentCheck]:
    """Reads the whole file, compares every record with its digest, and says which variant would run here.

    No engine is loaded. Arguments as of :func:`load`.

    Raises:
        BundleError: no bundle, or a record that does not match its digest.
    """
    registry.load_plugins()
    _native.verify_records(os.fspath(path))
    return [
        SegmentCheck(entry["segment"], tuple(VariantCheck(**variant) for variant in entry["variants"]))
        for entry in _native.check(os.fspath(path), str(device), backend)
    ]


def engines(module: torch.jit.ScriptModule) -> list[dict[str, Any]]:
    """For each segment of a loaded bundle: which variant runs (backend, precision, description) and why not others."""
    return [json.loads(choice) for choice in _native.choices(module._c)]
