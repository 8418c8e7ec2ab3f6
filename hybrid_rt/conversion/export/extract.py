"""Extracts the artifacts of a bundle as plain files for the vendors' own tools."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from ...backends import registry
from ...bundle.archive import read_manifest
from ...bundle.manifest import Blob, Engine, TableEntry, Variant
from ...common.atomic_files import atomic_write, named_if_refused
from ...common.errors import BundleError, OptionError
from ...common.specs import variant_names


def extract(
    path: str | os.PathLike[str],
    output_folder: str | os.PathLike[str],
    *,
    segment: str | None = None,
    backend: str | None = None,
) -> list[Path]:
    """Writes the artifacts of a bundle as files for the vendors' own tools.

    The files are called ENGINE-BACKEND-PRECISION, with .xml and .bin for OpenVINO, .pt for TorchScript, and so on. No
    engine is opened. Each artifact's bytes are compared with their digest.

    Args:
        path: path of the bundle.
        output_folder: directory for the files; it is created if it does not exist. Files of the same names are
            replaced.
        segment: extract only the engine that contains this segment; None: all engines.
        backend: extract only this backend's variants, or those of a longer name such as "tensorrt:fp16@8.6+8.9"; None:
            all variants.

    Returns:
        The paths of the files.

    Raises:
        OptionError: the bundle has no such segment or variant; the text lists those that it has.
        BundleError: the file is not a bundle, was altered, or a file can't be written.

    Examples:
        >>> [path.name for path in hybrid_rt.extract("detector.pt", "engines", backend="openvino")]
        ['backbone-openvino-fp32.xml', 'backbone-openvino-fp32.bin']
    """
    path, directory = Path(path), Path(output_folder)
    manifest = read_manifest(path)
    chosen = _chosen(manifest.engines, segment, backend)
    with named_if_refused("extract", directory, "a directory that can be written", "Name another directory."):
        directory.mkdir(parents=True, exist_ok=True)
    files = []
    try:
        records = {record.sha256: name for name, record in manifest.records.items()}
        with zipfile.ZipFile(path) as archive:
            root = archive.namelist()[0].split("/", 1)[0]

            for stem, table, variant in _with_stems(chosen):
                names = [f"{root}/{records.get(entry.sha256, '')}" for entry in table]
                endings = registry.file_endings(variant.backend)
                for blob in variant.blobs:
                    file = directory / (stem + endings.get(blob.name, f".{_safe(blob.name)}"))
                    file.parent.mkdir(exist_ok=True)
                    _write(file, archive, names, blob)
                    files.append(file)
    except (zipfile.BadZipFile, KeyError, IndexError, EOFError) as error:
        raise _damaged(path, str(error)) from error
    return files


def _chosen(engines: Sequence[Engine], segment: str | None, backend: str | None) -> list[tuple[Engine, Variant]]:
    """Returns the requested variants, each with its engine."""
    named = [engine for engine in engines if segment is None or engine.is_named(segment)]
    if not named:
        known = dict.fromkeys(name for engine in engines for name in [*engine.segments, engine.name])
        raise OptionError.make("extract", "segment", expected=f"one of {', '.join(known)}", got=f"'{segment}'")
    variants = [(engine, variant) for engine in named for variant in engine.variants]
    chosen = [(engine, variant) for engine, variant in variants if backend is None or variant.is_named(backend)]
    if not chosen:
        there = ", ".join(dict.fromkeys(variant.backend for _, variant in variants))
        raise OptionError.make("extract", "backend", expected=f"one of {there}", got=f"'{backend}'")
    return chosen


def _with_stems(
    chosen: Sequence[tuple[Engine, Variant]],
) -> Iterator[tuple[str, Sequence[TableEntry], Variant]]:
    """Yields each variant with its file name (no suffix) and blob table; no name leads out of the directory."""
    seen: dict[str, int] = {}
    for engine, variant in chosen:
        name = dict(zip(map(id, engine.variants), variant_names(engine.variants), strict=True))[id(variant)]
        stem = _safe(f"{engine.name}-{re.sub('[:@]', '-', name)}")
        seen[stem] = seen.get(stem, 0) + 1
        yield (stem if seen[stem] == 1 else f"{stem}-{seen[stem]}"), engine.table, variant


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "_"


def _write(file: Path, archive: zipfile.ZipFile, records: Sequence[str], blob: Blob) -> None:
    """Writes a blob; ``records`` has the archive's record of each entry of its table."""
    digest = hashlib.sha256()
    with atomic_write(file) as temporary, temporary.open("wb") as target, ExitStack() as opened:
        sources: dict[int, IO[bytes]] = {}
        for index, offset, size in blob.pieces:
            if not size:  # torch keeps no record of an empty tensor
                continue
            if index not in sources:
                sources[index] = opened.enter_context(archive.open(records[index]))
            sources[index].seek(offset)
            left = size
            while left and (chunk := sources[index].read(min(left, 1 << 20))):
                digest.update(chunk)
                target.write(chunk)
                left -= len(chunk)
        if digest.hexdigest() != blob.sha256:
            raise _damaged(Path(str(archive.filename)), f"other bytes of {blob.name}")


def _damaged(path: Path, reason: str) -> BundleError:
    return BundleError.make(
        "extract",
        str(path),
        expected="the artifacts as they were saved",
        got=reason,
        remedy="The file was altered or damaged: copy it again, or convert the detector again.",
    )
