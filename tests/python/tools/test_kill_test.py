"""Runs a few kills and full disks of tools/kill_test, which does hundreds."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tools.dev import kill_test

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kills") / "bundle.pt"
    kill_test.made_bundle(path)
    return path


@pytest.fixture
def trial(bundle: Path, tmp_path: Path) -> kill_test.Trial:
    (tmp_path / "trial").mkdir()
    return kill_test.Trial(bundle, tmp_path / "trial", tmp_path / "cache")


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(trial: kill_test.Trial) -> None:
    found = kill_test.kills(trial, "remove-variant", 6, random.Random(1))
    assert kill_test.is_fine(found), found
    assert found["old"] + found["new"] == 6


def test_a_full_disk_leaves_the_old_file_and_nothing_else(trial: kill_test.Trial) -> None:
    found = kill_test.full_disk(trial, "remove-variant", 3)
    assert found == Counter(old=3)


def test_lost_requests_are_reported(trial: kill_test.Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that a writer with an incomplete file at any moment is found."""
    for content in (b"", trial.bundle[: len(trial.bundle) // 2]):
        trial.path.write_bytes(content)
        found = Counter({trial._state(): 1})
        assert not kill_test.is_fine(found), found
    trial.path.unlink()
    assert not kill_test.is_fine(Counter({trial._state(): 1}))
    os.mkdir(trial.directory / ".hybrid_rt-left")
    assert len(trial.leftovers()) == 1
