"""Writes and reads an artifact as one file.

The first line has the format and the SHA-256 of the second line. The second line is JSON with the key, the segment's
name, the spec and the blobs' names, sizes and digests. The blobs' bytes follow. Reading it executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ...common.specs import Artifact, ArtifactSpec, TensorSpec

FORMAT = "hybrid_rt artifact 2"


def write(path: Path, artifact: Artifact, *, key: str, segment: str) -> None:
    """Writes the file.

    Args:
        path: the file.
        artifact: the artifact.
        key: key of the cache entry, which :func:`read` compares.
        segment: name of the compiled segment, for lists.

    Raises:
        OSError: The file can't be written.
    """
    header = {
        "key": key,
        "segment": segment,
        "made": time.time(),
        "spec": asdict(artifact.spec),
        "blobs": [
            {
                "name": name,
                "size": blob.numel(),
                "sha256": artifact.digests[name],
                "weights": artifact.weights.get(name, ()),
            }
            for name, blob in artifact.blobs.items()
        ],
    }
    line = json.dumps(header).encode() + b"\n"
    with path.open("wb") as stream:
        stream.write(f"{FORMAT} {hashlib.sha256(line).hexdigest()}\n".encode())
        stream.write(line)
        for blob in artifact.blobs.values():
            stream.write(blob.numpy().data)


def read_header(path: Path) -> dict[str, Any]:
    """Reads the JSON before the blobs: "key", "segment", "made" (seconds since 1970), "spec", "blobs".

    Raises:
        OSError: The file can't be read.
        ValueError: It is not an artifact's file, or was altered.
    """
    with path.open("rb") as stream:
        return _header(stream)


def read(path: Path, *, key: str) -> Artifact:
    """Reads an artifact, and checks every byte.

    Raises:
        OSError: The file can't be read.
        ValueError: It is not an artifact's file, was altered or truncated, or has another key.
    """
    with path.open("rb") as stream:
        header = _header(stream)
        if header["key"] != key:
            raise ValueError("of another key")
        blobs = {blob["name"]: _blob(stream, blob) for blob in header["blobs"]}
        if stream.read(1):
            raise ValueError("longer than it says")
    spec = header["spec"]
    artifact = Artifact(
        ArtifactSpec(
            **{**spec, **{side: tuple(map(TensorSpec.from_json, spec[side])) for side in ("inputs", "outputs")}}
        ),
        blobs,
        {blob["name"]: tuple((offset, size) for offset, size in blob["weights"]) for blob in header["blobs"]},
    )
    if artifact.digests != {blob["name"]: blob["sha256"] for blob in header["blobs"]}:
        raise ValueError("altered")
    return artifact


def _header(stream: BinaryIO) -> dict[str, Any]:
    start = f"{FORMAT} ".encode()
    first = stream.readline(len(start) + 65)
    line = stream.readline()
    if first != start + hashlib.sha256(line).hexdigest().encode() + b"\n":
        raise ValueError("not an artifact's file, or altered")
    header: dict[str, Any] = json.loads(line)
    return header


def _blob(stream: BinaryIO, blob: dict[str, Any]) -> torch.Tensor:
    if blob["size"] > os.fstat(stream.fileno()).st_size - stream.tell():
        raise ValueError("truncated")
    data = torch.empty(blob["size"], dtype=torch.uint8)
    stream.readinto(data.numpy().data)  # type: ignore[attr-defined]
    return data
