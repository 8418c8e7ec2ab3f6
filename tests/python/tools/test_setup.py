"""Tests of tools/setup with stand-ins for Python and pip: what runs at the same time, what is left after a fault."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.paths import ROOT

PYTHON = """#!/bin/sh
case "$*" in *--built-with*) cat versions ;; esac
"""
# Each call of pip notes its arguments; the build and the packages also run the script that a test wrote for them.
PIP = """#!/bin/sh
echo "$*" >>calls
case "$*" in
  *--editable*) . ./build_script ;;
  *--group=demo*) . ./packages_script ;;
esac
"""
WAIT = "for _ in $(seq 600); do [ -e {0} ] && break; sleep 0.05; done; [ -e {0} ] || exit 1\n"
SLEEP = "echo $$ >{}_process; sleep 600 & echo $! >>{}_process; wait\n"


@dataclass(frozen=True)
class SetUp:
    """A copy of the script with an environment of stand-ins."""

    directory: Path

    def start(self, build: str = "", packages: str = "") -> subprocess.Popen[str]:
        (self.directory / "build_script").write_text(build)
        (self.directory / "packages_script").write_text(packages)
        variables = {**os.environ, "HYBRID_RT_VENV": "venv", "HYBRID_RT_PYTHON": sys.executable}
        command = [self.directory / "tools" / "setup"]
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, build: str = "", packages: str = "") -> tuple[int, str, str]:
        """Returns the exit status, the output, and the errors."""
        process = self.start(build, packages)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def builds(self) -> int:
        return (self.directory / "calls").read_text().count("--editable")

    def assert_ended(self, name: str) -> None:
        """Checks that the processes of a script have ended, those that it started too."""
        for process in (self.directory / f"{name}_process").read_text().split():
            assert not Path(f"/proc/{process}/cwd").exists(), name


@pytest.fixture
def set_up(tmp_path: Path) -> SetUp:
    for name in ("tools/setup", "tools/dev/requirements.py", "pyproject.toml", "CMakeLists.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("cpp", "tests/cpp", "tools/benchmarks/cpp", "hybrid_rt/common", "venv/bin", "tools/debian"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("hybrid_rt/common/version.py", "tools/debian/build.txt", "calls"):
        (tmp_path / name).touch()
    (tmp_path / "versions").write_text("torch 1")
    for name, text in (("python", PYTHON), ("pip", PIP)):
        (tmp_path / "venv" / "bin" / name).write_text(text)
        (tmp_path / "venv" / "bin" / name).chmod(0o755)
    return SetUp(tmp_path)


def test_packages_are_installed_during_the_native_build_and_only_once(set_up: SetUp) -> None:
    meeting = [f"touch {own}\n" + WAIT.format(other) for own, other in (("one", "two"), ("two", "one"))]
    status, output, errors = set_up.run(*meeting)
    assert (status, errors) == (0, "")
    assert "Python packages: done" in output
    calls = (set_up.directory / "calls").read_text()
    assert set_up.run() == (0, "", "")
    assert (set_up.directory / "calls").read_text() == calls


def test_a_package_that_cannot_be_installed_ends_the_build_too(set_up: SetUp) -> None:
    status, output, errors = set_up.run(SLEEP.format("build", "build"), "sleep 1; echo no such package; exit 1")
    assert status == 1
    assert "Python packages: failed after" in errors
    assert "no such package" in errors
    assert "native build" not in errors
    set_up.assert_ended("build")
    status, output, _ = set_up.run()
    assert status == 0
    assert output.count("done") == 4  # what the build needs, headers, packages, build


def test_a_build_that_fails_ends_the_packages_too(set_up: SetUp) -> None:
    sleeps = SLEEP.format("packages", "packages")
    status, _, errors = set_up.run(WAIT.format("packages_process") + "sleep 1; echo no such header; exit 1", sleeps)
    assert status == 1
    assert "native build (about 6 minutes on two cores the first time): failed after" in errors
    assert "no such header" in errors
    set_up.assert_ended("packages")
    assert set_up.run()[0] == 0
    assert set_up.builds() == 2


def test_a_set_up_that_is_stopped_ends_what_it_started(set_up: SetUp) -> None:
    process = set_up.start(SLEEP.format("build", "build"), SLEEP.format("packages", "packages"))
    began = [set_up.directory / f"{name}_process" for name in ("build", "packages")]
    while not all(path.exists() and len(path.read_text().split()) == 2 for path in began):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    for name in ("build", "packages"):
        set_up.assert_ended(name)
    assert set_up.run()[0] == 0
    assert set_up.builds() == 2


def test_a_package_that_changes_what_was_built_with_leads_to_another_build(set_up: SetUp) -> None:
    status, _, _ = set_up.run(packages="sleep 1; echo torch 2 >versions")
    assert status == 0
    assert set_up.builds() == 2
    assert set_up.run() == (0, "", "")
