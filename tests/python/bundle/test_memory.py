"""Tests of memory over many image sizes and many loads: caches per size are bounded, and unloading frees memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import hybrid_rt
from helpers.small_detectors import small_detector, small_image

pytestmark = pytest.mark.slow

_BACKENDS = ["openvino", "torchscript"]

_SIZES = """
import sys
import torch
import hybrid_rt

path, backend = sys.argv[1:]
torch.set_num_threads(1)

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

hybrid = hybrid_rt.load(path, backend=backend, threads=1)
with torch.inference_mode():
    for i in range(400):
        hybrid(torch.full((1, 3, 32 + i * 37 % 225, 32 + i * 91 % 223), 0.5))
        if i == 99:
            before = resident()
print(resident() - before)
"""

_LOADS = """
import gc
import os
import sys
import torch
import hybrid_rt

path, backend = sys.argv[1:]
torch.set_num_threads(1)

def held():
    gc.collect()
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
    return resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

with torch.inference_mode():
    for i in range(40):
        hybrid_rt.load(path, backend=backend, threads=1)(torch.full((1, 3, 48, 64), 0.5))
        if i == 14:
            before = held()
print(*(after - one for after, one in zip(held(), before)))
"""

_FREED = """
import ctypes
import sys
import torch
import hybrid_rt

torch.set_num_threads(1)

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

opened = getattr(hybrid_rt, sys.argv[1])(*sys.argv[2:], threads=1)
loaded = resident()
ctypes.CDLL("libc.so.6").malloc_trim(0)
print(loaded - resident())
"""


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "any.pt"
    hybrid_rt.convert(
        small_detector(), (small_image(),), path, segments="backbone", engine=_BACKENDS, measure=False,
        shapes={"height": (32, 256), "width": (32, 256)},
    )  # fmt: skip
    return path


def output_of(code: str, *arguments: object) -> list[float]:
    """Returns the numbers that a separate Python process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


@pytest.mark.parametrize("backend", _BACKENDS)
def test_memory_is_flat_over_hundreds_of_sizes(backend: str, any_size: Path) -> None:
    (grown,) = output_of(_SIZES, any_size, backend)
    assert grown < 50, f"{grown:.0f} MB for 300 sizes"  # about 80 with OpenVINO if unbounded


@pytest.mark.parametrize("backend", _BACKENDS)
def test_loads_leave_no_memory_descriptors_or_threads(backend: str, any_size: Path) -> None:
    grown, descriptors, threads = output_of(_LOADS, any_size, backend)
    assert grown < 15, f"{grown:.0f} MB for 25 loads"
    assert descriptors <= 0
    assert threads <= 1


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="other allocators have no malloc_trim")
def test_loading_engines_returns_the_memory_that_compilers_freed(tmp_path: Path) -> None:
    layers = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU()) for _ in range(60)]
    detector = nn.Sequential(nn.Sequential(nn.Conv2d(3, 32, 3), *layers)).eval()
    path = tmp_path / "layers.pt"
    hybrid_rt.convert(detector, (torch.rand(1, 3, 32, 32),), path, segments=["0"], engine="openvino", measure=False)
    for call in (("load", path), ("open_engine", path, "0")):
        (kept,) = output_of(_FREED, *call)
        assert kept < 2, f"{call[0]}: {kept:.1f} MB"
