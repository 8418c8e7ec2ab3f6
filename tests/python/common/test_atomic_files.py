"""Tests that files are complete or absent, and that earlier files survive failures."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hybrid_rt import BundleError
from hybrid_rt.common.atomic_files import atomic_write, check_writable


def write(path: Path, text: str = "new") -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_an_old_file_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "private.pt"
    path.write_text("old")
    path.chmod(mode)
    write(path)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "new.pt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.pt").stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_an_old_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pt"
    path.write_text("old")
    os.chown(path, 12345, 23456)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_the_file_behind_a_link_is_written(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    target, link, further = tmp_path / "models" / "v3.pt", tmp_path / "current.pt", tmp_path / "latest.pt"
    target.write_text("old")
    link.symlink_to("models/v3.pt")
    further.symlink_to(link)
    write(further)
    assert link.is_symlink()
    assert further.is_symlink()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_link_to_no_file_yet_makes_that_file(tmp_path: Path) -> None:
    (tmp_path / "current.pt").symlink_to("v4.pt")
    write(tmp_path / "current.pt")
    assert (tmp_path / "v4.pt").read_text() == "new"


def no_files(tmp_path: Path) -> list[tuple[Path, str]]:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to("pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    return [
        (tmp_path / "pipe", "a pipe of that name"),
        (tmp_path / "to_pipe", "a pipe of that name"),
        (Path("/dev/null"), "a device of that name"),
        (tmp_path / "directory", "a directory of that name"),
        (tmp_path / "circle", ""),
    ]


def test_special_files_are_refused_and_stay(tmp_path: Path) -> None:
    for path, reason in no_files(tmp_path):
        kind = stat.S_IFMT(os.lstat(path).st_mode)
        with pytest.raises(BundleError, match="expected to write the file, got") as early:
            check_writable(path)
        with pytest.raises(BundleError):
            write(path)
        assert reason in str(early.value)
        assert stat.S_IFMT(os.lstat(path).st_mode) == kind
    assert not list(tmp_path.glob(".hybrid_rt-*"))


def test_leftovers_of_killed_processes_are_removed_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    old, young, other = tmp_path / ".hybrid_rt-old", tmp_path / ".hybrid_rt-young", tmp_path / ".other"
    for directory in (old, young, other):
        directory.mkdir()
        (directory / "half.pt").write_text("half")
    for directory in (old, other):
        os.utime(directory, (0, 0))
    write(tmp_path / "x.pt")
    assert not old.exists()
    assert young.exists()
    assert other.exists()


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_text("old")

    def fail_half_way() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise ValueError("by the caller")

    with pytest.raises(ValueError, match="by the caller"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
