"""Tests that each script of examples/convert converts its detector and compares the file with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hybrid_rt

SCRIPTS = Path(__file__).parents[3] / "examples" / "convert"

HEADS = {"yolo": "script", "detr": "script", "crnn": "script", "segmentation": "script", "timm_backbone": "script"}
"""The method with which the head of each detector is captured."""


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_it_converts_and_is_equal_at_a_size_that_it_did_not_see(name: str, tmp_path: Path) -> None:
    path = tmp_path / "detector.pt"
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"head: {HEADS[name]}\n" in done.stdout
    assert hybrid_rt.inspect(path)["engines"]


def test_every_script_is_run() -> None:
    assert {script.stem for script in SCRIPTS.glob("*.py")} == set(HEADS)
