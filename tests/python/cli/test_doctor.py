"""`hybrid-rt doctor`: which of TensorRT 10, TensorRT 11 and TensorRT-RTX would run on which GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.paths import ROOT
from hybrid_rt import _native
from hybrid_rt.backends.tensorrt import runtimes
from hybrid_rt.cli.main import main

ADA = {"name": "GeForce RTX 4090", "capability": "8.9", "memory": 24 << 30}
HOPPER = {"name": "H100", "capability": "9.0", "memory": 80 << 30}
VOLTA = {"name": "V100", "capability": "7.0", "memory": 16 << 30}
TENSORRT_10 = {"name": "tensorrt", "version": "10.14.1", "reason": ""}
RTX = {"name": "tensorrt_rtx", "version": "1.7.1", "reason": ""}
NO_RTX = {"name": "tensorrt_rtx", "version": "", "reason": "TensorRT-RTX's library can't be opened"}


def refusals(devices: list[dict[str, Any]], *libraries: dict[str, str]) -> list[str]:
    found = runtimes.checks(devices, "no driver", {library["name"]: library for library in libraries})
    return [check.refusal for check in found]


def test_each_library_is_checked_on_each_gpu() -> None:
    rtx = "it runs on GPUs of compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    other = "tensorrt 10.14.1 is installed here"
    assert refusals([ADA, HOPPER, VOLTA], TENSORRT_10, RTX) == [
        *("", other, ""),
        *("", other, rtx),
        *("", "it runs on GPUs of compute capability 7.5 and newer", rtx),
    ]
    checks = runtimes.checks([ADA], "", {"tensorrt": TENSORRT_10, "tensorrt_rtx": RTX})
    assert [check.version for check in checks] == ["10.14.1", "", "1.7.1"]
    assert {check.device for check in checks} == {"cuda:0 (GeForce RTX 4090, compute capability 8.9)"}


def test_a_library_that_can_not_be_called_says_why() -> None:
    headers = {**TENSORRT_10, "version": "11.2.0", "reason": "built with the headers of tensorrt 10.14"}
    assert refusals([ADA], headers, NO_RTX) == [
        "tensorrt 11.2.0 is installed here",
        "built with the headers of tensorrt 10.14",
        "TensorRT-RTX's library can't be opened",
    ]


def test_the_report_names_gpus_and_reasons(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_native, "cuda_devices", lambda: ([HOPPER], ""))
    monkeypatch.setattr(runtimes, "libraries", lambda _: {"tensorrt": TENSORRT_10, "tensorrt_rtx": NO_RTX})
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith(
        "on cuda:0 (H100, compute capability 9.0):\n"
        "  TensorRT 10 (10.14.1): would run\n"
        "  TensorRT 11: would NOT run: tensorrt 10.14.1 is installed here\n"
        "  TensorRT-RTX 1: would NOT run: it runs on GPUs of compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_machine_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.partition("no GPU is here:\n")[2].splitlines()
    assert [line.partition(":")[0] for line in lines] == ["  TensorRT 10", "  TensorRT 11", "  TensorRT-RTX 1"]
    assert all("would NOT run: NVIDIA's driver (" in line for line in lines)


STAND_INS = [next(iter(sorted(ROOT.glob(f"build/cp*/lib/libemulated_{name}.so"))), Path()) for name in
             ("driver_new", "tensorrt_enterprise_10")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not all(path.is_file() for path in STAND_INS), reason="the C++ tests are not built")
def test_the_run_half_is_asked_for_its_libraries() -> None:
    driver, library = map(str, STAND_INS)
    variables = {
        "HYBRID_RT_CUDA_DRIVER": driver,
        "HYBRID_RT_TENSORRT_LIBRARY": library,
        "HYBRID_RT_TENSORRT_RTX_LIBRARY": "/nowhere/libtensorrt_rtx.so",
    }
    told = subprocess.run(
        [sys.executable, "-m", "hybrid_rt.cli.main", "doctor", "--json"],
        env={**os.environ, **variables}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    checks = json.loads(told)["gpu_libraries"]
    assert [check["device"] for check in checks[::3]] == [
        "cuda:0 (Emulated GPU, compute capability 8.9)",
        "cuda:1 (Emulated GPU, compute capability 9.0)",
    ]
    assert [bool(check["refusal"]) for check in checks] == [False, True, True] * 2
    assert checks[0]["version"].startswith("10.")
    assert "can't be opened" in checks[2]["refusal"]
