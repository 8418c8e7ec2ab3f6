"""Tests of running TensorRT engines: their bundles and the library, as far as possible without a device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from backends.test_tensorrt import Pyramid, X, builds, needs_none, refused
from hybrid_rt.common.executables import program as installed
from tools.gpu.measure import Alone

pytestmark = [pytest.mark.slow, builds]

# In bundles


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a bundle with TensorRT for GPUs, OpenVINO for the CPU and TorchScript for both."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tensorrt") / "bank.pt"
    result = hybrid_rt.convert(
        Alone(Pyramid()).eval(),
        (X,),
        path,
        segments=["backbone"],
        engine=["tensorrt:fp16", "tensorrt", "openvino"],
        shapes={"height": (32, 128), "width": (32, 128)},
        options={"tensorrt": {"compute_capabilities": ["8.6", "8.9"]}},
        measure=False,
        verify_inputs=(),
    )
    if not torch.cuda.is_available():
        assert result.report.verification is not None
        not_run = result.report.verification.not_run
        assert len(not_run) == 2
        assert all("it was compiled for a CUDA device, and there is none" in text for text in not_run), not_run
    return path


@needs_none
def test_on_a_cpu_the_bank_runs_openvino_and_says_that_there_is_no_cuda_device(bank: Path) -> None:
    module = hybrid_rt.load(bank)
    (segment,) = hybrid_rt.engines(module)
    assert segment["backend"] == "openvino"
    refusals = {f"{v['backend']}:{v['precision']}": v["refusal"] for v in segment["variants"]}
    for name in ("tensorrt:fp16", "tensorrt:fp32"):
        assert refusals[name].startswith("it was compiled for a CUDA device, and there is none: NVIDIA's driver (")
    assert refusals["openvino:fp32"] == ""
    assert set(module(X)) == {"0", "classes"}


@needs_none
def test_loading_it_on_cuda_says_that_there_is_no_device(bank: Path) -> None:
    with refused("hybrid_rt[bundle]: device cuda: expected a CUDA device, got none: NVIDIA's driver (") as caught:
        hybrid_rt.load(bank, device="cuda")
    assert isinstance(caught.value, hybrid_rt.OptionError)
    with refused("hybrid_rt[bundle]: device cuda:1: expected a CUDA device, got none"):
        hybrid_rt.open_engine(bank, "backbone", "cuda:1")


@needs_none
def test_a_policy_of_tensorrt_alone_leaves_no_variant(bank: Path) -> None:
    with refused("expected a variant that can run on this machine, got none of 4:") as caught:
        hybrid_rt.load(bank, backend="tensorrt")
    assert str(caught.value).count("it was compiled for a CUDA device, and there is none") == 2
    assert str(caught.value).count("only 'tensorrt' was requested") == 2


@needs_none
@pytest.mark.parametrize(
    ("capability", "text"),
    [
        (
            "9.0",
            "it was built for GPUs of compute capability 8.6,8.9, but a GPU has capability 9.0; convert",
        ),
        ("8.6", ""),
    ],
)
def test_check_judges_for_the_gpu_of_another_machine(bank: Path, capability: str, text: str) -> None:
    (segment,) = hybrid_rt.check(bank, "cuda", capability=capability)
    refusal = segment.variants[0].refusal
    if text:
        assert refusal.startswith(text)
    else:
        assert "capability" not in refusal  # the library may refuse for another reason


def test_the_bundle_is_inspected_and_extracted_anywhere(bank: Path, tmp_path: Path) -> None:
    (segment,) = hybrid_rt.inspect(bank)["engines"]
    kinds = [(v["backend"], v["precision"], v["device"]) for v in segment["variants"]]
    assert kinds == [
        ("tensorrt", "fp16", "cuda"),
        ("tensorrt", "fp32", "cuda"),
        ("openvino", "fp32", "cpu"),
        ("torchscript", "fp32", "cpu"),
    ]
    names = {path.name for path in hybrid_rt.extract(bank, tmp_path, backend="tensorrt")}
    assert {Path(name).suffix for name in names} == {".engine", ".json"}


def test_an_altered_engine_is_found(bank: Path, tmp_path: Path) -> None:
    data = bytearray(bank.read_bytes())
    (segment,) = hybrid_rt.inspect(bank)["engines"]
    engine = hybrid_rt.extract(bank, tmp_path / "engines", backend="tensorrt")
    largest = max((path for path in engine if path.suffix == ".engine"), key=lambda path: path.stat().st_size)
    start = bytes(data).index(largest.read_bytes()[:4096])
    data[start + 2000] ^= 1
    altered = tmp_path / "altered.pt"
    altered.write_bytes(data)
    with pytest.raises(hybrid_rt.BundleError, match="expected the SHA-256"):
        hybrid_rt.check(altered)
    assert segment["variants"][0]["blobs"]


def test_add_variant_adds_tensorrt_from_the_stored_segment(bank: Path, tmp_path: Path) -> None:
    smaller = tmp_path / "smaller.pt"
    hybrid_rt.remove_variant(bank, "tensorrt", smaller)
    report = hybrid_rt.add_variant(
        smaller, "tensorrt:bf16", first=True, options={"tensorrt": {"compute_capabilities": ["12.0"]}}
    )
    assert report.variants["backbone"][0] == "tensorrt:bf16"
    if not torch.cuda.is_available():
        assert any("tensorrt" in note and "there is none" in note for note in report.notes)
    (segment,) = hybrid_rt.inspect(smaller)["engines"]
    assert segment["variants"][0]["requirements"]["compute_capability"] == "12.0"


@needs_none
def test_compile_segment_strictly_is_an_engine_or_an_error() -> None:
    torch.manual_seed(0)
    with refused("compile_segment]: strict: expected a CUDA device, on which tensorrt:fp32 runs, got none: NVIDIA's"):
        hybrid_rt.compile_segment(Pyramid().eval(), X, engine="tensorrt", strict=True)


@needs_none
def test_moving_a_compiled_segment_to_cuda_says_why_not() -> None:
    torch.manual_seed(0)
    compiled = hybrid_rt.compile_segment(Pyramid().eval(), X, engine=["tensorrt", "openvino"])
    assert compiled.running()["backend"] == "openvino"
    with pytest.raises((hybrid_rt.BackendError, RuntimeError, AssertionError)):
        compiled.to("cuda")


def test_auto_for_cuda_is_tensorrt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hybrid_rt.convert(
        Alone(Pyramid()).eval(), (X,), tmp_path / "auto.pt", segments=["backbone"], device="cuda", measure=False
    )
    (segment,) = hybrid_rt.inspect(tmp_path / "auto.pt")["engines"]
    assert [variant["backend"] for variant in segment["variants"]] == ["tensorrt", "torchscript"]


@pytest.fixture(scope="module")
def demo_bank(tmp_path_factory: pytest.TempPathFactory, demo_detector: nn.Module, demo_image: Tensor) -> Path:
    """Returns the demo detector with an engine for GPUs, followed by one for the CPU."""
    path = tmp_path_factory.mktemp("tensorrt_demo") / "digits.pt"
    hybrid_rt.convert(
        demo_detector, ([demo_image],), path, segments="backbone", engine=["tensorrt:fp16", "openvino"], measure=False
    )
    return path


@needs_none
def test_a_cpp_program_runs_the_bank_on_a_cpu(demo_bank: Path, demo_image_path: Path) -> None:
    done = subprocess.run(
        [installed("hybrid-rt-detect", "test"), demo_bank, demo_image_path, "--json"],
        env={**os.environ, "HYBRID_RT_LOG": "info"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["engines"] == {"backbone": "openvino"}
    assert len(found["detections"]) >= 5
    assert "tensorrt (fp16) can't run: it was compiled for a CUDA device, and there is none: " in done.stderr


@needs_none
def test_a_cpp_program_says_that_there_is_no_cuda_device(demo_bank: Path, demo_image_path: Path) -> None:
    done = subprocess.run(
        [installed("hybrid-rt-detect", "test"), demo_bank, demo_image_path, "--device", "cuda"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "hybrid_rt[bundle]: device cuda: expected a CUDA device, got none: NVIDIA's driver (" in done.stderr


# The run half's library


def plugin_with(directory: Path, **environment: str) -> dict[str, Any]:
    """Reports the backend's state in a separate process."""
    program = (
        "import json, hybrid_rt\n"
        "(info,) = [i for i in hybrid_rt._native.backends() if i['name'] == 'tensorrt']\n"
        "print(json.dumps(info))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def library(directory: Path, name: str, code: str) -> str:
    source = directory / f"{name}.c"
    source.write_text(code)
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", directory / name], check=True)
    return str(directory / name)


TWO_GPUS = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int size, int device) { strncpy(name, "NVIDIA Test", size); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = 1ull << 36; return 0; }
"""

NO_DRIVER = "int cuInit(unsigned flags) { return 100; }\n" + (
    'int cuGetErrorString(int error, const char** text) { *text = "no CUDA-capable device is detected"; return 0; }\n'
)


def tensorrt_of(number: int) -> str:
    return (
        f"int getInferLibVersion(void) {{ return {number}; }}\n"
        "void* createInferRuntime_INTERNAL(void* logger, int version) { return 0; }\n"
    )


def test_without_a_library_the_reason_names_both(tmp_path: Path) -> None:
    info = plugin_with(
        tmp_path,
        HYBRID_RT_TENSORRT_LIBRARY="/nonexistent/libnvinfer.so",
        HYBRID_RT_TENSORRT_RTX_LIBRARY="/nonexistent/libtensorrt_rtx.so",
    )
    assert not info["available"]
    assert "TensorRT's library can't be opened (/nonexistent/libnvinfer.so" in info["reason"]
    assert "TensorRT-RTX's library can't be opened (/nonexistent/libtensorrt_rtx.so" in info["reason"]


@pytest.mark.parametrize(
    ("number", "version"), [(80601, "8.6.1"), (8601, "8.6.1"), (90300, "9.3.0"), (120000, "12.0.0")]
)
def test_a_library_of_another_version_than_the_headers_is_refused_before_any_call(
    tmp_path: Path, number: int, version: str
) -> None:
    info = plugin_with(
        tmp_path,
        HYBRID_RT_TENSORRT_LIBRARY=library(tmp_path, "libnvinfer.so", tensorrt_of(number)),
        HYBRID_RT_TENSORRT_RTX_LIBRARY="/nonexistent/libtensorrt_rtx.so",
    )
    assert (
        f"tensorrt {version} is installed ({tmp_path}/libnvinfer.so), but this plug-in was built with the headers of"
        in (info["reason"])
    )


def test_a_library_that_fits_is_available_where_a_gpu_is(tmp_path: Path) -> None:
    environment = {
        "HYBRID_RT_TENSORRT_LIBRARY": library(tmp_path, "libnvinfer.so", tensorrt_of(109900)),
        "HYBRID_RT_TENSORRT_RTX_LIBRARY": "/nonexistent/libtensorrt_rtx.so",
    }
    gpus = library(tmp_path, "libcuda.so", TWO_GPUS)
    info = plugin_with(tmp_path, HYBRID_RT_CUDA_DRIVER=gpus, **environment)
    assert info["available"], info["reason"]
    assert info["version"] == "tensorrt 10.99.0"
    assert info["devices"] == ["cuda"]
    none = library(tmp_path, "libnone.so", NO_DRIVER)
    info = plugin_with(tmp_path, HYBRID_RT_CUDA_DRIVER=none, **environment)
    assert not info["available"]
    assert info["reason"] == (
        "it runs on CUDA devices, and there is none: NVIDIA's driver does not start: no CUDA-capable device is "
        "detected. Install NVIDIA's driver on a machine with a GPU, or run on the cpu"
    )


def checked_with(bank: Path, device: str = "cuda", **environment: str) -> list[str]:
    """Returns the refusals of the bank's variants in a separate process."""
    program = (
        f"import hybrid_rt; [print(v.refusal or '-') for v in hybrid_rt.check({str(bank)!r}, {device!r})[0].variants]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-4:]


def test_the_present_gpu_is_compared_with_the_engines(bank: Path, tmp_path: Path) -> None:
    refusals = checked_with(bank, HYBRID_RT_CUDA_DRIVER=library(tmp_path, "libcuda.so", TWO_GPUS))
    assert refusals[0].startswith(
        "it was built for GPUs of compute capability 8.6,8.9, but NVIDIA Test has capability 9.0"
    )
    assert refusals[2] == "runs on cpu, not on cuda"
    assert refusals[3] == "-"  # TorchScript runs on it


def test_an_unknown_index_is_refused(bank: Path, tmp_path: Path) -> None:
    gpus = library(tmp_path, "libcuda.so", TWO_GPUS)
    refusals = checked_with(bank, "cuda:2", HYBRID_RT_CUDA_DRIVER=gpus)
    assert refusals[0] == "there is no CUDA device 2"
    assert refusals[3] == "there is no CUDA device 2"
    program = f"import hybrid_rt; hybrid_rt.load({str(bank)!r}, device='cuda:2')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HYBRID_RT_CUDA_DRIVER": gpus},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "hybrid_rt[bundle]: device cuda:2: expected an index below 2, got cuda:2." in done.stderr


@needs_none
def test_a_driver_that_torch_cannot_use_is_reported(bank: Path, tmp_path: Path) -> None:
    """The driver reports devices but CUDA's runtime in torch does not start, as with a driver that is too old."""
    gpus = library(tmp_path, "libcuda.so", TWO_GPUS)
    program = f"import hybrid_rt; hybrid_rt.load({str(bank)!r}, device='cuda')"
    environment = {**os.environ, "HYBRID_RT_CUDA_DRIVER": gpus}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "hybrid_rt[bundle]: device cuda: expected a CUDA device that torch can use, got CUDA" in done.stderr


def test_an_engine_of_another_version_is_refused(bank: Path, tmp_path: Path) -> None:
    """The library's version is the only function called."""
    gpus = library(tmp_path, "libcuda.so", TWO_GPUS.replace("? 9 : 0", "? 8 : 6"))
    rtx = library(tmp_path, "libtensorrt_rtx.so", tensorrt_of(10500))
    refusals = checked_with(bank, HYBRID_RT_CUDA_DRIVER=gpus, HYBRID_RT_TENSORRT_RTX_LIBRARY=rtx)
    if "was built with the headers of" in refusals[0]:
        assert "tensorrt_rtx 1.5.0 is installed" in refusals[0]
    else:
        assert refusals[0].startswith("the engine needs tensorrt_rtx ==")
        assert ", but 1.5.0 is installed; install a version in that range" in refusals[0]
