"""A process that forks after a module has run: a server that loads first and forks its workers then."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from helpers.processes import run_while_it_works

PROGRAM = """
import os, sys
import torch
import hybrid_rt

path, where, backend = sys.argv[1:]
threads = 2
torch.set_num_threads(threads)
image = torch.rand(3, 480, 640, generator=torch.Generator().manual_seed(0))

def boxes(module):
    with torch.no_grad():
        return module([image])[0]["boxes"]

module = hybrid_rt.load(path, backend=backend, threads=threads)
expected = boxes(module)
boxes(module)
child = os.fork()
if child == 0:
    try:
        if where == "child":
            module = hybrid_rt.load(path, backend=backend, threads=1)  # another engine than the one that is there
        found = boxes(module)
        print("same" if torch.allclose(found, expected, atol=1e-2) else f"{found} {expected}", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(0)
os.waitpid(child, 0)
assert torch.equal(boxes(module), expected)
"""


def forked(bundle: Path, where: str, backend: str) -> tuple[str, str]:
    """Returns what the child says, and both processes' log."""
    done = run_while_it_works([sys.executable, "-c", PROGRAM, bundle, where, backend])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torchscript", "openvino"])
def test_what_the_parent_loaded_runs_in_a_child(demo_bundle: Path, backend: str) -> None:
    said, log = forked(demo_bundle, "parent", backend)
    assert said == "same"
    assert "this process was forked after a module had run in 2 threads" in log


@pytest.mark.slow
def test_a_child_loads_for_itself(demo_bundle: Path) -> None:
    assert forked(demo_bundle, "child", "torchscript")[0] == "same"


@pytest.mark.slow
def test_a_child_is_told_that_openvino_cannot_compile_in_it(demo_bundle: Path) -> None:
    said, _ = forked(demo_bundle, "child", "openvino")
    assert said.startswith("BackendError: ")
    assert "expected one that compiles with OpenVINO for the first time, got a fork of process " in said
    assert "Load in the children only, or start them with 'spawn'." in said


@pytest.mark.parametrize("program", ["import time; time.sleep(60)", "while True: pass"])
def test_a_process_that_hangs_is_found(program: str) -> None:
    """Checks that the tests above can fail."""
    with pytest.raises(AssertionError, match="hangs"):
        run_while_it_works([sys.executable, "-c", program], idle_seconds=0.5, cpu_seconds=0.5)
