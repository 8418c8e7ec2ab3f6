"""Tests of the unit of examples/systemd: its options exist, and its sandbox allows what the program needs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest

from helpers.paths import ROOT

UNIT = ROOT / "examples" / "systemd" / "hybrid-rt-serve.service"


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_arguments_are_the_program_s() -> None:
    known = set(re.findall(r'"--([a-z-]+)"', (ROOT / "cpp" / "apps" / "serve" / "main.cpp").read_text()))
    (command,) = settings()["ExecStart"]
    given = {argument.removeprefix("--") for argument in shlex.split(command) if argument.startswith("--")}
    assert {"host", "port", "stuck-seconds"} <= given <= known


def test_a_process_that_is_stuck_is_started_again() -> None:
    assert settings()["Restart"] == ["on-failure"]


def test_it_is_locked_in_but_for_machine_code_that_engines_write() -> None:
    found = settings()
    for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces"):
        assert found[name] == ["yes"], name
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert "MemoryDenyWriteExecute" not in found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_every_line() -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, check=False)
    assert "Unknown" not in done.stderr, done.stderr
