"""Makes bundles that convert() would not make: altered ones, and ones for backends that are not installed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import hybrid_rt
from helpers.small_detectors import small_detector, small_image
from hybrid_rt.backends import registry
from hybrid_rt.bundle import archive as bundle
from hybrid_rt.bundle.blob_table import pack
from hybrid_rt.bundle.manifest import Manifest, Member
from hybrid_rt.capture.program import capture_alone
from hybrid_rt.common.specs import Artifact
from hybrid_rt.common.submodules import with_submodules
from hybrid_rt.conversion.assemble.engine_module import engine_module
from hybrid_rt.torchscript import head_operators, jit

MANIFEST = "extra/hybrid_rt/manifest.json"
DIGEST = "extra/hybrid_rt/manifest.sha256"


def record_names(path: Path) -> list[str]:
    """Returns the names without the archive's root directory: ``data.pkl``, ``constants/0``, ..."""
    with zipfile.ZipFile(path) as archive:
        return [name.split("/", 1)[1] for name in archive.namelist()]


def read_record(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/", 1)[0]
        return archive.read(f"{root}/{name}")


def offset_of(path: Path, name: str, part: float = 0) -> int:
    """Returns the offset of a record's bytes in the file, or of the byte at a ``part`` of them (0.5: the middle)."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/", 1)[0]
        entry = archive.getinfo(f"{root}/{name}")
    with path.open("rb") as stream:
        stream.seek(entry.header_offset + 26)
        lengths = stream.read(4)
    begin = entry.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    return begin + int(entry.compress_size * part)


def flip_byte(path: Path, output: Path, position: int) -> Path:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x01
    output.write_bytes(data)
    return output


def rewrite(
    path: Path, output: Path, changes: Mapping[str, Callable[[bytes], bytes] | None], *, sign: bool = True
) -> Path:
    """Copies the archive with changed records. ``None`` removes one; ``sign`` updates the digests."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(contents)).split("/", 1)[0]
    for name, change in changes.items():
        old = contents.pop(f"{root}/{name}")
        if change is not None:
            contents[f"{root}/{name}"] = change(old)
    if sign and f"{root}/{MANIFEST}" in contents and f"{root}/{DIGEST}" in contents:
        manifest = json.loads(contents[f"{root}/{MANIFEST}"])
        if "records" in manifest:
            for name in changes:
                if name in manifest["records"] and f"{root}/{name}" in contents:
                    digest = hashlib.sha256(contents[f"{root}/{name}"]).hexdigest()
                    manifest["records"][name]["sha256"] = digest
        text = json.dumps(manifest).encode()
        contents[f"{root}/{MANIFEST}"] = text
        contents[f"{root}/{DIGEST}"] = hashlib.sha256(text).hexdigest().encode()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return output


def manifest_of(path: Path) -> dict:
    """Returns the manifest as it is in the file, in any version."""
    return json.loads(read_record(path, MANIFEST))


def rewrite_manifest(path: Path, output: Path, change: Callable[[dict], object]) -> Path:
    """Copies the archive with a manifest that ``change`` modifies in place, and updates the digests."""
    return rewrite(path, output, {MANIFEST: change_manifest(change)})


def change_manifest(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def changed(text: bytes) -> bytes:
        manifest = json.loads(text)
        change(manifest)
        return json.dumps(manifest).encode()

    return changed


def save_with_backends(path: Path, variants: Sequence[str | Artifact]) -> Path:
    """Saves the small detector with the given variants of its backbone.

    A name stands for TorchScript's artifact, labelled as that backend's; an artifact is used unchanged.
    """
    detector = small_detector()
    program = capture_alone(detector, "backbone", [(small_image(),)])
    artifact = registry.backend("torchscript").compile(program, "fp32")
    artifacts = [
        replace(artifact, spec=replace(artifact.spec, backend=variant)) if isinstance(variant, str) else variant
        for variant in variants
    ]
    hybrid = with_submodules(detector, {"backbone": engine_module(program, artifacts)})
    frozen = jit.freeze(jit.script(hybrid))
    head_operators.rewrite(frozen)
    members = [Member("backbone", 0, len(artifacts[0].spec.outputs))]
    bundle.save(frozen, path, Manifest((pack(artifacts).engine(members),)))
    return path


def save_with_torchscript(path: Path, detector: nn.Module, inputs: tuple[Any, ...], **options: Any) -> Path:
    """Converts a small detector with TorchScript as its backbone's engine, and returns the bundle's path."""
    segments = ["detector.backbone"] if hasattr(detector, "detector") else ["backbone"]
    hybrid_rt.convert(detector, inputs, path, engine="torchscript", segments=segments, measure=False, **options)
    return path


def small_artifact() -> Artifact:
    """Returns TorchScript's artifact of the small detector's backbone."""
    detector = small_detector()
    program = capture_alone(detector, "backbone", [(small_image(),)])
    return registry.backend("torchscript").compile(program, "fp32")


def run_python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter that can import the tests' modules."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
