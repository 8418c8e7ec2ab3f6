"""Packs the bytes of an engine's variants into one table that stores shared weights only once.

A blob is a list of pieces ``[index, offset, size]`` of the table's entries; most are one whole entry.
cpp/src/bundle/blob_table.cpp is the C++ half, which reassembles the blobs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..common.specs import Artifact, ArtifactSpec
from .manifest import Blob, Engine, Member, Piece, Swapped, TableEntry, Variant

LEAST_SHARED = 4096
"""Smallest size in bytes of a weight that is shared between variants."""


@dataclass(frozen=True)
class Packed:
    """Variants, best first, and the table that their blobs point into.

    Attributes:
        variants: specs, each with its blobs.
        table: one-dimensional uint8 tensors.
        entries: the manifest's entry for each tensor of the table.
    """

    variants: list[Variant]
    table: list[Tensor]
    entries: list[TableEntry]

    def engine(self, members: Sequence[Member], swapped: Swapped | None = None) -> Engine:
        """Returns the manifest's entry for the engine of these segments."""
        return Engine(tuple(members), tuple(self.variants), tuple(self.entries), swapped)


class _Table:
    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.entries: list[TableEntry] = []
        self.blobs: dict[str, list[Piece]] = {}  # by digest
        self.weights: dict[bytes, Piece] = {}

    def pieces(self, blob: Tensor, digest: str, extents: Sequence[tuple[int, int]]) -> list[Piece]:
        """Returns the pieces of a blob, adding missing bytes to the table."""
        if digest not in self.blobs:
            self.blobs[digest] = self._added(blob, digest, extents)
        return self.blobs[digest]

    def _added(self, blob: Tensor, digest: str, extents: Sequence[tuple[int, int]]) -> list[Piece]:
        index = len(self.tensors)
        pieces: list[Piece] = []
        own: list[Tensor] = []
        found: dict[bytes, Piece] = {}
        position = length = 0

        def keep(end: int) -> None:
            """Marks the bytes before ``end`` as this blob's own."""
            nonlocal length
            if end > position:
                own.append(blob[position:end])
                pieces.append((index, length, end - position))
                length += end - position

        for offset, size in sorted(extents):
            if size < LEAST_SHARED or offset < position:
                continue
            key = hashlib.blake2b(blob[offset : offset + size].numpy().data).digest()
            known = self.weights.get(key)
            if known is None:
                found[key] = (index, length + offset - position, size)
                continue
            keep(offset)
            pieces.append(known)
            position = offset + size
        keep(blob.numel())
        self.weights |= found
        shared = blob.numel() - length
        if own or not shared:
            rest = torch.cat(own) if shared else blob
            self.tensors.append(rest)
            sha256 = hashlib.sha256(rest.numpy().data).hexdigest() if shared else digest
            self.entries.append(TableEntry(rest.numel(), sha256))
        return _joined(pieces) if shared else [(index, 0, blob.numel())]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Merges pieces that are adjacent in the table."""
    joined: list[Piece] = []
    for index, offset, size in pieces:
        if joined and joined[-1][0] == index and sum(joined[-1][1:]) == offset:
            joined[-1] = (index, joined[-1][1], joined[-1][2] + size)
        else:
            joined.append((index, offset, size))
    return joined


def pack(artifacts: Sequence[Artifact]) -> Packed:
    """Packs the variants of an engine, best first, for the engine itself and for the manifest."""
    table = _Table()
    variants = []
    shares = len(artifacts) > 1
    for artifact in artifacts:
        blobs = []
        for name, blob in artifact.blobs.items():
            digest = artifact.digests[name]
            pieces = table.pieces(blob, digest, artifact.weights.get(name, ()) if shares else ())
            blobs.append(Blob(name, blob.numel(), digest, tuple(pieces)))
        spec = {each.name: getattr(artifact.spec, each.name) for each in fields(ArtifactSpec)}
        variants.append(Variant(**spec, blobs=tuple(blobs)))
    return Packed(variants, table.tensors, table.entries)


def unpack(blob: Blob, table: Sequence[Tensor]) -> Tensor:
    """Assembles a blob from the table's entries."""
    pieces = [table[index][offset : offset + size] for index, offset, size in blob.pieces]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
