"""Tests of `hybrid-rt doctor`: which of TensorRT 10, TensorRT 11 and TensorRT-RTX would run on which GPU."""

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
TENSORRT_10 = {"name": "tensorrt", "path": "libnvinfer.so.10", "version": "10.14.1", "reason": ""}
RTX = {"name": "tensorrt_rtx", "path": "libtensorrt_rtx.so.1", "version": "1.7.1", "reason": ""}
NO_RTX = {"name": "tensorrt_rtx", "path": "", "version": "", "reason": "TensorRT-RTX's library can't be opened"}


def run_half(*libraries: dict[str, str], driver: str = "13.0") -> runtimes.RunHalf:
    return runtimes.RunHalf(driver, {library["name"]: library for library in libraries})


def refusals(devices: list[dict[str, Any]], *libraries: dict[str, str], driver: str = "13.0") -> list[str]:
    found = runtimes.checks(devices, "no driver", run_half(*libraries, driver=driver))
    return [check.refusal for check in found]


def test_each_library_is_checked_on_each_gpu() -> None:
    rtx = "it runs on GPUs of compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    other = "tensorrt 10.14.1 is installed here"
    assert refusals([ADA, HOPPER, VOLTA], TENSORRT_10, RTX) == [
        *("", other, ""),
        *("", other, rtx),
        *("", "it runs on GPUs of compute capability 7.5 and newer", rtx),
    ]
    checks = runtimes.checks([ADA], "", run_half(TENSORRT_10, RTX))
    assert [check.version for check in checks] == ["10.14.1", "", "1.7.1"]
    assert {check.device for check in checks} == {"cuda:0 (GeForce RTX 4090, compute capability 8.9)"}


def test_a_library_that_cannot_be_called_says_why() -> None:
    headers = {**TENSORRT_10, "version": "11.2.0", "reason": "built with the headers of tensorrt 10.14"}
    assert refusals([ADA], headers, NO_RTX) == [
        "tensorrt 11.2.0 is installed here",
        "built with the headers of tensorrt 10.14",
        "TensorRT-RTX's library can't be opened",
    ]


def too_old(needed: int, driver: str, remedy: str = "") -> str:
    return (
        f"it needs a driver for CUDA {needed} or newer, and NVIDIA's driver here is for CUDA {driver}: "
        f"update the driver{remedy}"
    )


def test_an_old_driver_is_reported_with_both_versions(tmp_path: Path) -> None:
    other = "tensorrt 10.14.1 is installed here"
    assert refusals([ADA], TENSORRT_10, RTX, driver="11.8") == ["", other, too_old(12, "11.8")]
    assert refusals([ADA], TENSORRT_10, RTX, driver="10.2") == [too_old(11, "10.2"), other, too_old(12, "10.2")]
    # The names of NVIDIA's packages state what they were built for.
    (tmp_path / "tensorrt_rtx_cu13_libs-1.7.1.116.dist-info").mkdir()
    (tmp_path / "tensorrt_cu12_libs-11.4.0.106.dist-info").mkdir()
    eleven = {**TENSORRT_10, "path": str(tmp_path / "tensorrt_libs" / "libnvinfer.so.11"), "version": "11.4.0"}
    rtx = {**RTX, "path": str(tmp_path / "tensorrt_rtx_libs" / "libtensorrt_rtx.so.1")}
    installed = "tensorrt 11.4.0 is installed here"
    for driver in ("13.0", "13.1", "14.2", ""):
        assert refusals([ADA], eleven, rtx, driver=driver) == [installed, "", ""]
    remedy = ", or install a build for CUDA 12"
    assert refusals([ADA], eleven, rtx, driver="12.4") == [installed, "", too_old(13, "12.4", remedy)]
    assert refusals([ADA], eleven, rtx, driver="11.8") == [installed, too_old(12, "11.8"), too_old(13, "11.8")]


def test_the_cuda_version_of_a_library_is_that_of_its_package(tmp_path: Path) -> None:
    path = str(tmp_path / "tensorrt_libs" / "libnvinfer.so.10")
    assert runtimes.cuda_of("tensorrt", path) is None
    (tmp_path / "tensorrt_rtx_cu13_libs-1.7.1.116.dist-info").mkdir()
    assert runtimes.cuda_of("tensorrt", path) is None
    (tmp_path / "tensorrt_cu12_libs-10.14.1.48.dist-info").mkdir()
    assert runtimes.cuda_of("tensorrt", path) == 12
    (tmp_path / "tensorrt_cu13_libs-10.14.1.48.dist-info").mkdir()  # two packages in one place: version unknown
    assert runtimes.cuda_of("tensorrt", path) is None
    assert runtimes.cuda_of("tensorrt", "") is None


def test_the_report_names_gpus_and_reasons(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_native, "cuda_devices", lambda: ([HOPPER], ""))
    monkeypatch.setattr(runtimes, "run_half", lambda _: run_half(TENSORRT_10, NO_RTX))
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
def test_the_runtime_reports_its_libraries_and_the_driver(tmp_path: Path) -> None:
    driver, library = map(str, STAND_INS)
    # This is the layout of NVIDIA's package of TensorRT for CUDA 13.
    (tmp_path / "tensorrt_libs").mkdir()
    (tmp_path / "tensorrt_cu13_libs-10.14.1.dist-info").mkdir()
    installed = tmp_path / "tensorrt_libs" / "libnvinfer.so.10"
    installed.symlink_to(library)
    variables = {
        "HYBRID_RT_CUDA_DRIVER": driver,
        "HYBRID_RT_TENSORRT_LIBRARY": str(installed),
        "HYBRID_RT_TENSORRT_RTX_LIBRARY": "/nowhere/libtensorrt_rtx.so",
    }

    def checks(**more: str) -> list[dict[str, str]]:
        told = subprocess.run(
            [sys.executable, "-m", "hybrid_rt.cli.main", "doctor", "--json"],
            env={**os.environ, **variables, **more}, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return list(json.loads(told)["gpu_libraries"])

    found = checks()
    assert [check["device"] for check in found[::3]] == [
        "cuda:0 (Emulated GPU, compute capability 8.9)",
        "cuda:1 (Emulated GPU, compute capability 9.0)",
    ]
    assert [bool(check["refusal"]) for check in found] == [False, True, True] * 2
    assert found[0]["version"].startswith("10.")
    assert "can't be opened" in found[2]["refusal"]
    older = checks(EMULATED_CUDA_VERSION="12040")
    assert [check["refusal"] for check in older[::3]] == [too_old(13, "12.4", ", or install a build for CUDA 12")] * 2
