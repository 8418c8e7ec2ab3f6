"""Tests of file names of any bytes and of any length that the file system allows."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import hybrid_rt
from hybrid_rt.common.atomic_files import atomic_write, check_writable
from hybrid_rt.common.executables import program
from hybrid_rt.verification import golden

NAMES = [b"with a space.pt", "бокс.pt".encode(), b"mod\xe8le.pt", b'100%\'s: a "b".pt', b"n" * 252 + b".pt"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_bundle_is_read_under_any_name(
    name: bytes, tmp_path: Path, demo_bundle: Path, demo_image: torch.Tensor, demo_image_path: Path
) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    shutil.copyfile(demo_bundle, path)
    assert hybrid_rt.inspect(path)["engines"]
    assert hybrid_rt.check(path)
    assert len(hybrid_rt.load(path)([demo_image])[0]["boxes"])
    assert golden.read(path).inputs
    command = [os.fsencode(program("hybrid-rt-detect", "detect")), os.fsencode(path), os.fsencode(demo_image_path)]
    annotated = os.fsencode(path)[:-3] + b".pn"  # as long as the bundle's name
    done = subprocess.run([*command, b"--output", annotated], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(annotated)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_bundle_is_written_under_any_name(name: bytes, tmp_path: Path, small_bundle: Path) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    hybrid_rt.remove_variant(small_bundle, "openvino", path)
    assert [len(engine["variants"]) for engine in hybrid_rt.inspect(path)["engines"]] == [1]
    hybrid_rt.add_variant(path, "torchscript:bf16")  # which reads the existing file
    assert [len(engine["variants"]) for engine in hybrid_rt.inspect(path)["engines"]] == [2]


def test_an_error_names_a_file_of_any_bytes(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9.pt")
    with pytest.raises(hybrid_rt.BundleError) as caught:
        hybrid_rt.load(path)
    assert path in str(caught.value)


@pytest.mark.parametrize("length", [1, 255])
def test_a_name_may_be_as_long_as_the_file_system_takes(length: int, tmp_path: Path) -> None:
    path = tmp_path / ("n" * length)
    check_writable(path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_name_that_is_too_long_is_refused_before_long_work(tmp_path: Path) -> None:
    with pytest.raises(hybrid_rt.BundleError, match="got a name of more than 255 bytes"):
        check_writable(tmp_path / ("n" * 256))
