"""The artifacts of a bundle as plain files, which the vendors' own tools open."""

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
from ...common.atomic_files import written_whole
from ...common.errors import BundleError, OptionError


def extract(
    path: str | os.PathLike[str],
    output_folder: str | os.PathLike[str],
    *,
    segment: str | None = None,
    backend: str | None = None,
) -> list[Path]:
    """Writes the artifacts of a bundle: ENGINE-BACKEND-PRECISION.xml and .bin for OpenVINO, .pt for TorchScript, ...

    No engine is opened. Each artifact's bytes are compared with their digest.

    Args:
        path: the bundle.
        output_folder: where to; it is made if it is not there. Files of the same names are replaced.
        segment: only the engine that this segment is in; None: all.
        backend: only this backend's variants; None: all.

    Returns:
        The files.

    Raises:
        OptionError: no such segment or variant; the text lists those that there are.
        BundleError: no bundle, an altered one, or a file that can't be written.
    """
    path, folder = Path(path), Path(output_folder)
    manifest = read_manifest(path)
    chosen = _chosen(manifest.engines, segment, backend)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError.make(
            "extract",
            str(folder),
            expected="a folder that can be written",
            got=error.strerror or str(error),
            remedy="Name another directory.",
        ) from error
    files = []
    try:
        records = {record.sha256: name for name, record in manifest.records.items()}
        with zipfile.ZipFile(path) as archive:
            root = archive.namelist()[0].split("/", 1)[0]

            for stem, table, variant in _with_stems(chosen):
                names = [f"{root}/{records.get(entry.sha256, '')}" for entry in table]
                endings = registry.file_endings(variant.backend)
                for blob in variant.blobs:
                    file = folder / (stem + endings.get(blob.name, f".{_safe(blob.name)}"))
                    file.parent.mkdir(exist_ok=True)
                    _write(file, archive, names, blob)
                    files.append(file)
    except (zipfile.BadZipFile, KeyError, IndexError, EOFError) as error:
        raise _damaged(path, str(error)) from error
    return files


def _chosen(engines: Sequence[Engine], segment: str | None, backend: str | None) -> list[tuple[Engine, Variant]]:
    """Each variant that was asked for, with its engine."""
    named = [engine for engine in engines if segment is None or engine.is_named(segment)]
    if not named:
        known = dict.fromkeys(name for engine in engines for name in [*engine.segments, engine.name])
        raise OptionError.make("extract", "segment", expected=f"one of {', '.join(known)}", got=f"'{segment}'")
    variants = [(engine, variant) for engine in named for variant in engine.variants]
    chosen = [(engine, variant) for engine, variant in variants if backend is None or variant.backend == backend]
    if not chosen:
        there = ", ".join(dict.fromkeys(variant.backend for _, variant in variants))
        raise OptionError.make("extract", "backend", expected=f"one of {there}", got=f"'{backend}'")
    return chosen


def _with_stems(
    chosen: Sequence[tuple[Engine, Variant]],
) -> Iterator[tuple[str, Sequence[TableEntry], Variant]]:
    """Each variant with a file name, without its ending, and its table: names never lead out of the folder."""
    seen: dict[str, int] = {}
    for engine, variant in chosen:
        stem = _safe(f"{engine.name}-{variant.backend}-{variant.precision}")
        seen[stem] = seen.get(stem, 0) + 1
        yield (stem if seen[stem] == 1 else f"{stem}-{seen[stem]}"), engine.table, variant


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "_"


def _write(file: Path, archive: zipfile.ZipFile, records: Sequence[str], blob: Blob) -> None:
    """Writes a blob; ``records``: that of each entry of its table."""
    digest = hashlib.sha256()
    with written_whole(file) as temporary, temporary.open("wb") as target, ExitStack() as opened:
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
