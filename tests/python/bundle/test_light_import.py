"""Tests that loading, checking and verifying a bundle do not import what only convert() needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hybrid_rt

USES_A_BUNDLE = """
import sys
import hybrid_rt
from hybrid_rt.cli.main import main

path = sys.argv[1]
hybrid_rt.load(path)
assert hybrid_rt.verify_golden(path).verification.passed
for verb in ("check", "inspect", "verify"):
    assert main([verb, path]) == 0
heavy = {"torchvision", "torch._dynamo", "torch.fx.experimental.symbolic_shapes"} & set(sys.modules)
assert not heavy, heavy
assert "convert" in dir(hybrid_rt)
assert hybrid_rt.convert.__name__ == "convert"
assert "torchvision" in sys.modules
"""


def test_a_bundle_is_used_without_torchvision_and_torch_export(small_bundle: Path) -> None:
    command = [sys.executable, "-c", USES_A_BUNDLE, str(small_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_exported_name_exists() -> None:
    assert set(hybrid_rt.__all__) <= set(dir(hybrid_rt))
    assert all(hasattr(hybrid_rt, name) for name in hybrid_rt.__all__)
