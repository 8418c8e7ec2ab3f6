"""Checks that tools/sanitize reports wrong usage before its long build, for which CI has no time."""

from __future__ import annotations

import json
import subprocess

import pytest

from helpers.paths import ROOT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds"], "--seconds: expected a value, got none."),
        (["--seconds", "0"], "--seconds: expected an integer above 0, got '0'."),
        (["msan"], "preset: expected asan, ubsan or tsan, got 'msan'."),
    ],
)
def test_wrong_usage_is_reported(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [ROOT / "tools" / "sanitize", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_each_named_preset_exists() -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text())
    for kind in ("configurePresets", "buildPresets", "testPresets"):
        assert {"asan", "ubsan", "tsan"} <= {preset["name"] for preset in presets[kind]}, kind
