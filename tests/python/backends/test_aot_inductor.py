"""Tests of AOTInductor beyond the contract of all backends."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.machinery
import importlib.util
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import hybrid_rt
from helpers.bundle_surgery import run_python, save_with_backends, small_artifact
from helpers.small_detectors import Alone, small_image
from hybrid_rt import BackendError, OptionError, _native
from hybrid_rt.backends import registry
from hybrid_rt.backends.aot_inductor import cuda
from hybrid_rt.backends.aot_inductor.keep_nan import HANDLES_NAN, handles_nan, keep_nan
from hybrid_rt.backends.cache import artifact_file
from hybrid_rt.backends.selection import choose_variants
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.common.specs import Artifact, blob_from_bytes
from hybrid_rt.conversion.assemble.engine_module import EngineModule, engine_module

pytestmark = pytest.mark.slow

AOT_INDUCTOR = registry.backend("aot_inductor")
CUDA = AOT_INDUCTOR.configured("cuda")
needs_compiler = pytest.mark.skipif(
    not AOT_INDUCTOR.availability().available, reason=AOT_INDUCTOR.availability().reason
)
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


class Segment(nn.Module):
    """Takes images of even sizes, and another tensor of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: Tensor, bias: Tensor) -> Tensor:
        coarse = F.max_pool2d(self.layer(images).relu(), 2)
        weights = torch.full((1, 1, 1, 1), 0.5)
        return (F.interpolate(coarse, scale_factor=2.0) + F.conv2d(torch.log(bias), weights).clamp(-1, 1)).exp()


def inputs(batch: int = 1, height: int = 16, width: int = 24) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, 3, height, width), torch.rand(batch, 1, height, width)


@functools.cache
def program(seed: int = 0) -> Program:
    torch.manual_seed(seed)
    detector = Alone(Segment(), "segment").eval()
    return capture_alone(detector, "segment", [inputs(), inputs(2, 8, 10)])


@functools.cache
def artifact(precision: str = "fp32", seed: int = 0) -> Artifact:
    return AOT_INDUCTOR.compile(program(seed), precision)


def engine(precision: str = "fp32", seed: int = 0) -> EngineModule:
    return engine_module(program(seed), [artifact(precision, seed)])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def directories(directory: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Redirects temporary files, and the compiler's cache if it used the user's, to directories of the test."""
    temporary, users = directory / "temporary", directory / "users"
    temporary.mkdir()
    users.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(users))
    return temporary, users


@needs_compiler
def test_compiling_leaves_no_files_and_keeps_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, users = directories(tmp_path, monkeypatch)
    settings = torch._inductor.config.save_config_portable()
    artifact()
    assert list(temporary.iterdir()) == []
    assert list(users.iterdir()) == []
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(users)
    assert "TRITON_CACHE_DIR" not in os.environ
    assert torch._inductor.config.save_config_portable() == settings


@needs_compiler
def test_requirements_of_the_machine_are_recorded() -> None:
    major, minor = map(int, torch.__version__.split(".")[:2])
    requirements = artifact().spec.requirements
    assert requirements["version"] == f">={major}.{minor},<{major}.{minor + 1}"
    here = set(re.search(r"(?:flags|Features)\s*:(.*)", Path("/proc/cpuinfo").read_text())[1].split())
    needed = requirements["cpu"].split(",")
    assert set(needed) <= here
    assert {"fma", "asimd"} & set(needed)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert "avx512f" in needed


@needs_compiler
def test_sizes_that_do_not_belong_together_are_refused() -> None:
    run = engine()
    images, bias = inputs(2)
    expected = program().members[0].module(images, bias)
    torch.testing.assert_close(run(images, bias), expected)
    with pytest.raises(
        RuntimeError,
        match=re.escape(
            "hybrid_rt[aot_inductor]: inputs: expected images.shape[0] == bias.shape[0], "
            "got [2, 3, 16, 24], [1, 1, 16, 24]. Resize the images: the segment supports only such sizes"
        ),
    ):
        run(images, bias[:1])
    with pytest.raises(RuntimeError, match=re.escape("got [1, 3, 16, 23], [1, 1, 16, 23]. Resize the images")):
        run(*inputs(1, 16, 23))
    torch.testing.assert_close(run(images, bias), expected)


@needs_compiler
def test_nan_and_infinities_that_arise_inside_come_out_as_eagers() -> None:
    images, bias = inputs()
    bias[0, 0, 12, 20], bias[0, 0, 13, 20] = 0, -1  # log: -infinity, NaN
    expected = program().members[0].module(images, bias)
    assert expected.isnan().any()
    torch.testing.assert_close(engine()(images, bias), expected, equal_nan=True)


@needs_compiler
def test_nan_in_an_input_makes_the_outputs_nan() -> None:
    images, bias = inputs()
    images[0, 1, 3, 4] = math.nan
    assert program().members[0].module(images, bias).isnan().any()
    assert engine()(images, bias).isnan().all()
    assert not engine()(*inputs()).isnan().any()


@needs_compiler
def test_outputs_of_a_segment_that_handles_nan_itself_stay_as_they_are() -> None:
    marked = replace(artifact(), blobs={**artifact().blobs, HANDLES_NAN: blob_from_bytes(b"1")})
    images, bias = inputs()
    images[0, 1, 3, 4] = math.nan
    assert not engine_module(program(), [marked])(images, bias).isnan().all()


@pytest.mark.parametrize(
    ("function", "handles", "count"),
    [
        (lambda x: F.relu(F.conv2d(x, torch.ones(2, 3, 1, 1))), False, 0),
        (lambda x: F.relu(F.conv2d(x.log(), torch.ones(2, 3, 1, 1))), False, 1),
        (lambda x: F.relu(x / x.mean()).clamp(max=6), False, 2),
        (lambda x: F.relu(x / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)), False, 0),
        (lambda x: F.relu(x / x.shape[2] / 255), False, 0),
        (lambda x: F.relu(x / -2), False, 0),
        (lambda x: F.relu(x / (x.abs() - 0.5)), False, 1),
        (lambda x: F.relu(x / (x.abs() + -0.5)), False, 1),
        (lambda x: F.relu(x / x.norm(dim=1, keepdim=True).clamp(min=1e-6)), False, 0),
        (lambda x: F.relu(F.normalize(x, dim=1)), False, 0),
        (lambda x: F.relu(x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)), False, 0),
        (lambda x: F.relu(x * torch.rsqrt(x.mean(1, keepdim=True) + 1e-6)), False, 1),
        (lambda x: F.relu(torch.where(torch.isnan(x), 0.0, x)), True, 0),
        (lambda x: torch.nan_to_num(x), True, 0),
    ],
)
def test_only_activations_after_a_nan_producing_operator_are_changed(
    function: Callable[[Tensor], Tensor], handles: bool, count: int
) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    x = torch.rand(1, 3, 8, 8)
    module = torch.export.export(Module(), (x,), strict=False).module()
    assert handles_nan(module) == handles
    assert keep_nan(module) == count
    torch.testing.assert_close(module(x), function(x))


@needs_compiler
def test_libraries_that_follow_one_another_are_not_mixed_up() -> None:
    x = inputs()
    runs = [engine(seed=seed) for seed in (0, 1)]
    right = [program(seed).members[0].module(*x) for seed in (0, 1)]
    assert not torch.allclose(*right)
    for run in runs:
        run(*x)  # loads it
    gc.collect()  # collect what other tests left
    before = descriptors()
    for i in (0, 1, 0, 1, 1, 0):
        torch.testing.assert_close(runs[i](*x), right[i])
        runs[i] = engine(seed=i)  # destroys the previous one
        gc.collect()
    assert descriptors() <= before


@needs_compiler
def test_a_loaded_library_is_on_no_disk() -> None:
    run = engine()
    run(*inputs())
    mapped = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    in_memory = [path for path in mapped if "memfd:hybrid_rt" in path]
    assert in_memory
    assert all(path.endswith("(deleted)") for path in in_memory)
    # Compare only the file's name, because a directory on its path may be called hybrid_rt too.
    on_disk = {Path(path) for path in mapped if "hybrid_rt" in Path(path).name and path not in in_memory}
    assert {path.parent for path in on_disk} <= {Path(hybrid_rt._native.__file__).parent / "lib"}


def names_of_loaded_libraries() -> list[str]:
    """Returns the names that the dynamic linker reports to readers of the debug information of loaded libraries."""
    names: list[str] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_LinkerInfo), ctypes.c_size_t, ctypes.c_void_p)
    def take(info: Any, size: int, data: Any) -> int:
        names.append((info.contents.name or b"").decode())
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(take, None)
    return names


class _LinkerInfo(ctypes.Structure):
    """The first fields of ``struct dl_phdr_info``."""

    _fields_ = (("address", ctypes.c_void_p), ("name", ctypes.c_char_p))


@needs_compiler
def test_a_loaded_librarys_path_leads_to_it_and_to_no_other_file(tmp_path: Path) -> None:
    run = engine()
    run(*inputs())
    with contextlib.ExitStack() as files:
        for i in range(20):  # they reuse the numbers of closed descriptors
            files.enter_context((tmp_path / f"{i}").open("w"))
        for _ in range(2):
            paths = [name for name in names_of_loaded_libraries() if name.startswith("/proc/self/fd/")]
            assert paths
            assert [path for path in paths if "memfd:hybrid_rt" not in os.readlink(path)] == []
            run = None  # the library stays loaded
            gc.collect()


IMPORT_TVM = """
import sys, tempfile
from pathlib import Path
from backends import test_aot_inductor as tests
from hybrid_rt.backends.cache import artifact_file
from hybrid_rt.conversion.assemble.engine_module import engine_module
artifact = artifact_file.read(Path(sys.argv[1]), key="key")
engine_module(tests.program(), [artifact])(*tests.inputs())
files = [tempfile.TemporaryFile() for _ in range(20)]
import tvm
print("imported")
"""


@needs_compiler
@pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="the tvm package is not installed")
def test_tvm_can_be_imported_afterwards(tmp_path: Path) -> None:
    """TVM reads the debug information of every loaded library by its path when it is imported."""
    path = tmp_path / "segment.artifact"
    artifact_file.write(path, artifact(), key="key", segment="segment")
    done = run_python(IMPORT_TVM, path)
    assert (done.returncode, done.stdout.strip()) == (0, "imported"), done.stderr


@needs_compiler
def test_bf16_is_inside_only() -> None:
    x = inputs(2)
    run = engine("bf16")
    got, expected = run(*x), program().members[0].module(*x)
    assert got.dtype == torch.float32
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    assert 1e-5 < error < 0.03
    assert ", bf16, " in run.engine.choice()


@needs_compiler
def test_the_callers_threads_stay_as_they_are() -> None:
    run = engine()
    before = torch.get_num_threads()
    run.engine.prepare("", torch.device("cpu"), before + 2, False)
    run(*inputs())
    assert torch.get_num_threads() == before
    assert f", {before + 2} threads" in run.engine.choice()


@needs_compiler
def test_files_that_are_not_libraries_are_refused() -> None:
    # A truncated library would fail earlier, because the digest is checked first.
    altered = replace(artifact(), blobs={**artifact().blobs, "library": blob_from_bytes(b"no library")})
    with pytest.raises(
        RuntimeError,
        match=r"hybrid_rt\[aot_inductor\]: artifact: expected a library that torch \S+ opens, got .*file too short",
    ):
        engine_module(program(), [altered])(*inputs())


@needs_compiler
@pytest.mark.parametrize("words", ["0.2: 1.2:", "== 1 2", "2.2: 1 ==", "0.4: 1 ==", "0.2 1 ==", "x"])
def test_conditions_that_cannot_be_read_are_refused(words: str) -> None:
    altered = replace(
        artifact(), blobs={**artifact().blobs, "conditions": blob_from_bytes(f"text\t{words}\n".encode())}
    )
    with pytest.raises(RuntimeError, match=r"hybrid_rt\[aot_inductor\]: artifact, conditions: expected "):
        engine_module(program(), [altered])(*inputs())


@needs_compiler
@pytest.mark.parametrize(
    ("words", "holds"),
    [
        ("0.2: 16 ==", True),
        ("0.2: 16 !=", False),
        ("0.2: 3 // 5 ==", True),
        ("-7 2 // -4 ==", True),
        ("-7 2 % 1 ==", True),
        ("7 0 % 7 ==", True),
        ("0.3: 0.2: - 8 <=", True),
        ("0.3: 0.2: min 16 < 1 1 == or", True),
        ("0.3: 0.2: max 24 > 1 1 == and", False),
    ],
)
def test_conditions_are_computed_as_python_does(words: str, holds: bool) -> None:
    altered = replace(
        artifact(), blobs={**artifact().blobs, "conditions": blob_from_bytes(f"text\t{words}\n".encode())}
    )
    run = engine_module(program(), [altered])
    if holds:
        run(*inputs())
        return
    with pytest.raises(RuntimeError, match=re.escape("inputs: expected text, got [1, 3, 16, 24]")):
        run(*inputs())


def test_without_a_compiler_it_says_so() -> None:
    reason = (
        "no C++ compiler (no-such-compiler) to convert with, running needs none; apt-get install g++, "
        "or name one in the environment variable CXX"
    )
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert AOT_INDUCTOR.availability().reason == reason
        (info,) = [info for info in hybrid_rt.backends() if info.name == "aot_inductor"]
    assert not info.available
    assert (info.compile_reason, info.run_reason) == (reason, "")


def test_a_failing_compiler_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "broken-g++"
    broken.write_text(
        '#!/bin/sh\ncase "$1" in *version|-v) echo "g++ (GCC) 12.2.0";; *) echo "no space left" >&2; exit 1;; esac\n'
    )
    broken.chmod(0o755)
    text = r"hybrid_rt\[aot_inductor\]: segment 'segment': expected a module that AOTInductor compiles"
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, str(broken))}),
        pytest.raises(BackendError, match=text) as raised,
    ):
        AOT_INDUCTOR.compile(program(), "fp32")
    assert "no space left" in str(raised.value)


@needs_compiler
def test_an_operator_without_a_c_function_is_refused() -> None:
    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 3, 3, 3))

        def forward(self, images: Tensor) -> Tensor:
            offset = images.mean(1, keepdim=True).expand(-1, 18, -1, -1)
            return torchvision.ops.deform_conv2d(images, offset, self.weight, padding=(1, 1))

    segment = capture_alone(Alone(Deformed(), "segment").eval(), "segment", [(torch.rand(1, 3, 16, 24),)])
    with pytest.raises(
        BackendError,
        match=r"segment 'segment': expected operators that torch gives a C function, got torchvision::deform_conv2d",
    ):
        AOT_INDUCTOR.compile(segment, "fp32")


@needs_compiler
def test_another_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"aot_inductor.*runs on cpu, not on cuda"):
        engine().engine.prepare("", torch.device("cuda"), 1, False)


# CUDA, as far as it can be tested without a device


def test_it_compiles_for_cpus_and_for_cuda() -> None:
    assert [AOT_INDUCTOR.target, CUDA.target, AOT_INDUCTOR.configured("tpu").target] == ["cpu", "cuda", "cpu"]
    (info,) = [info for info in hybrid_rt.backends() if info.name == "aot_inductor"]
    assert info.devices == ("cpu", "cuda")


def test_fp16_is_only_for_cuda() -> None:
    assert CUDA.target_precisions == ("fp32", "bf16", "fp16")
    with pytest.raises(OptionError, match=r"precision for aot_inductor: expected one of fp32, bf16, got 'fp16'\."):
        choose_variants("aot_inductor", "fp16", fallback=False)
    text = (
        "hybrid_rt[aot_inductor]: precision on cpu: expected one of fp32, bf16, got 'fp16'. "
        "Use one of these, or convert for device='cuda'."
    )
    with pytest.raises(BackendError, match=re.escape(text)):
        AOT_INDUCTOR.compile(program(), "fp16")


class NeverRun(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("the work has begun")


@needs_compiler
def test_without_a_device_compiling_for_it_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cuda_devices", lambda: ([], "the driver is missing. Install it"))
    reason = "compiling for CUDA requires a CUDA device, and none is available: the driver is missing. Install it"
    with pytest.raises(BackendError, match=re.escape(f"'aot_inductor', which is not available: {reason}")):
        hybrid_rt.compile_segment(
            NeverRun().eval(), torch.rand(1, 3, 8, 8), engine="aot_inductor", device="cuda", fallback=False
        )
    text = f"hybrid_rt[aot_inductor]: device cuda: expected a machine that can compile for CUDA, got {reason}."
    with pytest.raises(BackendError, match=re.escape(text)):
        CUDA.compile(program(), "fp16")


@needs_compiler
@pytest.mark.parametrize(
    ("owner", "lacking", "value", "reason"),
    [
        (torch.cuda, "is_available", lambda: False, "can't use a GPU; install a build of torch with CUDA"),
        (importlib.util, "find_spec", lambda name: None, "no Triton, by which inductor makes kernels"),
        (cuda, "_can_embed", lambda: False, "(aot_inductor.embed_kernel_binary)"),
        (cuda, "_HEADERS", ("no-such.h",), "no CUDA headers (no-such.h)"),
    ],
)
def test_other_options_for_cuda_are_named(
    owner: Any, lacking: str, value: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("torch.utils.cpp_extension")  # it searches for modules itself
    monkeypatch.setattr(_native, "cuda_devices", lambda: ([{"name": "a GPU"}], ""))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    monkeypatch.setattr(owner, lacking, value)
    assert reason in CUDA.availability().reason
    assert AOT_INDUCTOR.availability().available


@needs_compiler
def test_the_linker_finds_the_driver_and_the_settings_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils import cpp_extension

    (tmp_path / "driver").mkdir()
    (tmp_path / "work").mkdir()
    driver = tmp_path / "driver" / "libcuda.so.1"
    build = ["g++", "-shared", "-x", "c++", "/dev/null", "-x", "none"]
    subprocess.run([*build, "-o", driver, "-Wl,-soname,libcuda.so.1"], check=True)
    monkeypatch.setattr(cuda, "_driver", lambda: driver)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.delenv("LIBRARY_PATH", raising=False)
    for before in (None, str(tmp_path)):
        if before is not None:
            monkeypatch.setenv("LIBRARY_PATH", before)
        directory = tmp_path / "work" / str(before is None)
        directory.mkdir()
        with cuda.compiling(directory):
            subprocess.run([*build, "-o", directory / "library.so", "-Wl,--no-as-needed", "-lcuda"], check=True)
            assert os.environ["LIBRARY_PATH"].endswith(before or "/lib")
        assert b"libcuda.so.1" in (directory / "library.so").read_bytes()
        assert os.environ.get("LIBRARY_PATH") == before
        assert cpp_extension.CUDA_HOME is None


def cuda_bundle(path: Path) -> Path:
    """Makes a bundle whose first variant claims to be for GPUs of compute capability 9.0; its bytes are never read."""
    artifact = small_artifact()
    spec = replace(
        artifact.spec, backend="aot_inductor", device="cuda", requirements={"compute_capability": "9.0", "cpu": ""}
    )
    return save_with_backends(path, [replace(artifact, spec=spec), "torchscript"])


@without_cuda
def test_without_a_device_the_next_variant_runs(tmp_path: Path) -> None:
    path = cuda_bundle(tmp_path / "cuda.pt")
    (segment,) = hybrid_rt.check(path)
    _, reason = _native.cuda_devices()
    assert segment.variants[0].refusal == f"it was compiled for a CUDA device, and there is none: {reason}"
    module = hybrid_rt.load(path)
    module(small_image())
    assert [choice["backend"] for choice in hybrid_rt.engines(module)] == ["torchscript"]


def test_check_can_judge_for_the_gpu_of_another_machine(tmp_path: Path) -> None:
    path = cuda_bundle(tmp_path / "cuda.pt")

    def refusal(device: str, capability: str) -> str:
        return hybrid_rt.check(path, device, capability=capability)[0].variants[0].refusal

    assert refusal("cuda", "9.0") == ""
    assert refusal("cuda", "8.6").startswith(
        "it was built for GPUs of compute capability 9.0, but a GPU has capability 8.6; "
    )
    assert refusal("cuda:1", "9.0") == "there is no CUDA device 1"
    assert refusal("cpu", "9.0") == (
        'what was compiled for cuda runs on cuda, not on cpu; convert the detector with device="cpu"'
    )
