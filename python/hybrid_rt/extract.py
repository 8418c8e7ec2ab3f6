"""The artifacts of a bundle as plain files, which the vendors' own tools open."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import bundle, registry
from .errors import BundleError, OptionError
from .files import written_whole


def extract(
    path: str | os.PathLike[str],
    output_folder: str | os.PathLike[str],
    *,
    segment: str | None = None,
    backend: str | None = None,
) -> list[Path]:
    """Writes the artifacts of a bundle: SEGMENT-BACKEND-PRECISION.xml and .bin for OpenVINO, .pt for TorchScript, ...

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
    manifest = bundle.inspect(path)
    chosen = _chosen(manifest["segments"], segment, backend)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError.make(
            "extract",
            str(folder),
            expected="a folder that can be written",
            got=error.strerror or str(error),
            remedy="Name another folder.",
        ) from error
    files = []
    try:
        records = {record["sha256"]: name for name, record in manifest["records"].items()}
        with zipfile.ZipFile(path) as archive:
            root = archive.namelist()[0].split("/", 1)[0]
            for stem, variant in _with_stems(chosen):
                endings = registry.file_endings(variant["backend"])
                for blob in variant["blobs"]:
                    file = folder / (stem + endings.get(blob["name"], f".{_safe(blob['name'])}"))
                    _write(file, archive, f"{root}/{records.get(blob['sha256'], '')}", blob)
                    files.append(file)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise _damaged(path, str(error)) from error
    return files


def _chosen(
    segments: list[dict[str, Any]], segment: str | None, backend: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """(segment's name, variant) of each variant that was asked for."""
    members = {entry["name"]: [member["name"] for member in entry.get("members", [])] for entry in segments}
    known = dict.fromkeys(name for whole, parts in members.items() for name in [*parts, whole])
    if segment is not None and segment not in known:
        raise OptionError.make("extract", "segment", expected=f"one of {', '.join(known)}", got=f"'{segment}'")
    in_segment = [
        (entry["name"], variant)
        for entry in segments
        if segment is None or segment == entry["name"] or segment in members[entry["name"]]
        for variant in entry["variants"]
    ]
    chosen = [(name, variant) for name, variant in in_segment if backend is None or variant["backend"] == backend]
    if not chosen:
        there = ", ".join(dict.fromkeys(variant["backend"] for _, variant in in_segment))
        raise OptionError.make("extract", "backend", expected=f"one of {there}", got=f"'{backend}'")
    return chosen


def _with_stems(chosen: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file name, without its ending, for each variant: names from a file never lead out of the folder."""
    seen: dict[str, int] = {}
    for name, variant in chosen:
        stem = _safe(f"{name}-{variant['backend']}-{variant['precision']}")
        seen[stem] = seen.get(stem, 0) + 1
        yield (stem if seen[stem] == 1 else f"{stem}-{seen[stem]}"), variant


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "_"


def _write(file: Path, archive: zipfile.ZipFile, record: str, blob: Mapping[str, Any]) -> None:
    digest = hashlib.sha256()
    with written_whole(file) as temporary, temporary.open("wb") as target:
        if blob["size"]:  # torch keeps no record of an empty tensor
            with archive.open(record) as source:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    target.write(chunk)
        if digest.hexdigest() != blob["sha256"]:
            raise _damaged(Path(str(archive.filename)), f"other bytes in {record}")


def _damaged(path: Path, reason: str) -> BundleError:
    return BundleError.make(
        "extract",
        str(path),
        expected="the artifacts as they were saved",
        got=reason,
        remedy="The file was altered or damaged: copy it again, or convert the detector again.",
    )
