"""Runs the fuzzers of tests/fuzz for a short time; `tools/fuzz --hours N` runs them for longer.

Together with tests/python/bundle/test_fuzzed_bundles.py, this takes a minute.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT

pytestmark = pytest.mark.slow

FUZZERS = sorted(path.stem for path in (ROOT / "tests" / "fuzz").glob("fuzz_*.cpp"))
SECONDS = {"fuzz_image": 5, "fuzz_safetensors": 5, "fuzz_bundle": 10}


def fuzz(root: Path, *arguments: str, corpus: Path) -> subprocess.CompletedProcess[str]:
    assert shutil.which("clang++") is not None, "install the packages of tools/debian/tests.txt"
    return subprocess.run(
        [root / "tools" / "fuzz", "--no-setup", "--corpus", str(corpus), *arguments],
        env={**os.environ, "HYBRID_RT_VENV": sys.prefix},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_there_are_fuzzers() -> None:
    assert set(FUZZERS) == set(SECONDS)


@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_no_input_crashes_a_decoder(fuzzer: str, tmp_path: Path) -> None:
    done = fuzz(ROOT, "--seconds", str(SECONDS[fuzzer]), "--seed", "1", fuzzer, corpus=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    executed = re.search(r"number_of_executed_units: +(\d+)", done.stdout)
    assert executed is not None, done.stdout
    assert int(executed[1]) > 100  # there are twenty seeds
    assert list((tmp_path / fuzzer).iterdir())


@pytest.mark.parametrize(
    ("source", "check", "fuzzer", "property"),
    [
        ("serve/safetensors.cpp", "if (gap != 0)", "fuzz_safetensors", "data follows data"),
        ("image/jpeg.cpp", "if (channels == 4) image.rgb", "fuzz_image", "an image has three bytes a pixel"),
    ],
)
def test_a_missing_check_is_found_and_its_input_kept(
    source: str, check: str, fuzzer: str, property: str, tmp_path: Path
) -> None:
    for directory in ("cpp/apps/image", "cpp/apps/serve", "tests/fuzz"):
        shutil.copytree(ROOT / directory, tmp_path / directory)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "fuzz", tmp_path / "tools")
    broken = tmp_path / "cpp" / "apps" / source
    text = broken.read_text()
    assert text.count(check) == 1
    broken.write_text(text.replace(check, check.replace("if (", "if (false && ")))

    done = fuzz(tmp_path, "--seconds", "60", fuzzer, corpus=tmp_path / "corpus")
    assert done.returncode == 1, done.stdout
    assert f"does not hold: {property}" in done.stderr
    assert f"kept in build/fuzz/crashes/{fuzzer}" in done.stderr
    (kept,) = (tmp_path / "build" / "fuzz" / "crashes" / fuzzer).iterdir()
    again = subprocess.run(
        [tmp_path / "build" / "fuzz" / "build" / fuzzer, kept], capture_output=True, text=True, check=False
    )
    assert again.returncode != 0


def test_a_signature_that_lets_in_another_bundle_is_found(tmp_path: Path) -> None:
    """If another bundle is registered as the signed one, the fuzzer has to report the bundle that loads."""
    assert fuzz(ROOT, "--seconds", "1", "--seed", "1", "fuzz_bundle", corpus=tmp_path).returncode == 0
    seeds = ROOT / "build" / "fuzz" / "seeds"
    shutil.copytree(seeds / "signed", tmp_path / "signed")
    shutil.copy(seeds / "fuzz_bundle" / "single.pt", tmp_path / "signed" / "signed.pt")
    done = subprocess.run(
        [ROOT / "build" / "fuzz" / "build" / "fuzz_bundle", seeds / "fuzz_bundle" / "signed.pt"],
        env={**os.environ, "HYBRID_RT_FUZZ_SIGNED": str(tmp_path / "signed"), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "does not hold: what a signature lets in is what was signed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds: expected an integer above 0, got '0'."),
        (["--seconds"], "--seconds: expected a value, got none."),
        (["--hours", "x"], "--seconds: expected an integer above 0, got 'x hours'."),
        (["--seed", "x"], "--seed: expected an integer, got 'x'."),
        (["--other"], "--other: expected --seconds, --hours, --seed, --corpus or --no-setup, got another option."),
        (
            ["fuzz_nothing"],
            "expected one of fuzz_bundle fuzz_image fuzz_safetensors fuzz_bundles, got 'fuzz_nothing'.",
        ),
    ],
)
def test_wrong_usage_is_reported(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = fuzz(ROOT, *arguments, corpus=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
