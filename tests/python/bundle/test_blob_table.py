"""Tests of the table of an engine's bytes, which stores shared weights once."""

from __future__ import annotations

import hashlib
import pickle
import random

import pytest
import torch
from torch import Tensor

from hybrid_rt.backends import registry
from hybrid_rt.bundle.blob_table import LEAST_SHARED, pack, unpack
from hybrid_rt.bundle.manifest import Member
from hybrid_rt.common.specs import Artifact, ArtifactSpec, blob_from_bytes

SPEC = ArtifactSpec("torchscript", "fp32", "cpu", (), ())


def random_bytes(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


WEIGHTS = [random_bytes(LEAST_SHARED + 100 * i, i) for i in range(4)]


def artifact(*parts: bytes | int, blob: str = "library") -> Artifact:
    """Makes a blob of the given bytes and of weights given by their number, in this order."""
    data = b""
    extents = []
    for part in parts:
        if isinstance(part, int):
            extents.append((len(data), len(WEIGHTS[part])))
            data += WEIGHTS[part]
        else:
            data += part
    return Artifact(SPEC, {blob: blob_from_bytes(data)}, {blob: tuple(extents)})


def assert_whole(artifacts: list[Artifact]) -> list[Tensor]:
    """Checks that every blob can be restored, and returns the table."""
    packed = pack(artifacts)
    for made, variant in zip(artifacts, packed.variants, strict=True):
        for blob in variant.blobs:
            assert torch.equal(unpack(blob, packed.table), made.blobs[blob.name])
            assert blob.sha256 == made.digests[blob.name]
            assert sum(size for _, _, size in blob.pieces) == blob.size
    for tensor, entry in zip(packed.table, packed.entries, strict=True):
        assert entry.size == tensor.numel()
        assert entry.sha256 == hashlib.sha256(tensor.numpy().data).hexdigest()
    return packed.table


def test_an_artifact_is_the_same_after_pickling_with_its_digests() -> None:
    made = artifact(b"head", 0)
    same = pickle.loads(pickle.dumps(made, pickle.HIGHEST_PROTOCOL))
    assert (same.spec, same.weights, same.digests) == (made.spec, made.weights, made.digests)
    assert torch.equal(same.blobs["library"], made.blobs["library"])
    assert vars(same)["digests"] == {"library": hashlib.sha256(made.blobs["library"].numpy().data).hexdigest()}


def test_a_single_variant_is_its_own_table() -> None:
    made = artifact(b"head", 0, b"middle", 1)
    table = assert_whole([made])
    assert table[0].data_ptr() == made.blobs["library"].data_ptr()  # not copied
    assert pack([made]).variants[0].blobs[0].pieces == ((0, 0, made.size),)


def test_weights_of_a_second_variant_are_not_stored_again() -> None:
    first, second = artifact(b"a", 0, 1, b"bb", 2), artifact(2, b"other", 0, 1, 3, b"end")
    table = assert_whole([first, second])
    assert [tensor.numel() for tensor in table] == [first.size, len(b"other") + len(WEIGHTS[3]) + len(b"end")]
    engine = pack([first, second]).engine([Member("backbone", 0, 0)])
    assert engine.added_sizes == [tensor.numel() for tensor in table]
    # 0 and 1 are adjacent in the first one too, and form one piece
    assert len(engine.variants[1].blobs[0].pieces) == 4


def test_a_variant_with_only_shared_weights_adds_nothing() -> None:
    table = assert_whole([artifact(b"a", 0, 1), artifact(1, 0)])
    assert len(table) == 1


def test_a_third_variant_shares_the_weights_of_both_earlier_ones() -> None:
    table = assert_whole([artifact(0, b"x"), artifact(0, 1, b"y"), artifact(1, 0, b"z")])
    assert [tensor.numel() for tensor in table] == [len(WEIGHTS[0]) + 1, len(WEIGHTS[1]) + 1, 1]


def test_equal_blobs_are_one() -> None:
    made = artifact(b"same")
    assert len(assert_whole([made, artifact(b"same")])) == 1


def test_small_weights_and_overlapping_ones_are_left_alone() -> None:
    small = Artifact(SPEC, {"b": blob_from_bytes(b"x" * 100)}, {"b": ((0, 50), (50, 50))})
    overlapping = Artifact(
        SPEC, {"b": blob_from_bytes(WEIGHTS[3])}, {"b": ((0, LEAST_SHARED + 10), (10, LEAST_SHARED), (5, 4096))}
    )
    assert_whole([small, small, overlapping, overlapping, artifact(3)])


def test_an_empty_blob() -> None:
    empty = Artifact(SPEC, {"b": blob_from_bytes(b"")})
    assert_whole([empty, artifact(0), empty])


@pytest.mark.parametrize("seed", range(20))
def test_any_variants_come_back_whole(seed: int) -> None:
    source = random.Random(seed)
    variants = []
    for i in range(4):
        parts = [
            source.randrange(4) if source.random() < 0.6 else random_bytes(source.randrange(30), seed * 100 + i)
            for _ in range(source.randrange(1, 7))
        ]
        variants.append(artifact(*parts))
    table = assert_whole(variants)
    assert sum(tensor.numel() for tensor in table) <= sum(made.size for made in variants)


def test_weights_of_a_backend_that_is_not_installed_are_not_known() -> None:
    assert registry.weights_of("nosuch", {"b": blob_from_bytes(b"x")}) == {}
