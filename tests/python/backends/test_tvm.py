"""Tests of the TVM backend beyond the contract of all backends."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_rt.backends import registry
from hybrid_rt.backends.cache import store
from hybrid_rt.backends.tvm import tuning
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.common.errors import BackendError, CaptureError, OptionError
from hybrid_rt.conversion.assemble.engine_module import EngineModule, engine_module

TVM = registry.backend("tvm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TVM.availability().available, reason=TVM.availability().reason),
]


class Detector(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Any:
        return self.backbone(x)


def program_of(segment: nn.Module, *inputs: Tensor) -> Program:
    return capture_alone(Detector(segment).eval(), "backbone", [(x,) for x in inputs])


def engine_of(segment: nn.Module, *inputs: Tensor) -> EngineModule:
    program = program_of(segment, *inputs)
    return engine_module(program, [TVM.compile(program, "fp32")])


def convolution(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(3, 8, 3, padding=1).eval()


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def descriptors_in_memory() -> int:
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum("memfd:hybrid_rt_tvm" in os.readlink(link) for link in links if link.is_symlink())


X = torch.rand(1, 3, 16, 24)


@pytest.mark.parametrize("features", [1024, 48, 91])
def test_linear_layers_are_right_for_any_number_of_rows_and_columns(features: int) -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(300, features), nn.ReLU(), nn.Linear(features, 5)).eval()
    rows = [torch.rand(n, 300) for n in (1, 37, 200)]
    engine = engine_of(linear, *rows)
    for x in rows:
        assert_close(engine(x), linear(x))


def test_engines_leave_no_trace_and_are_not_mixed_up() -> None:
    """Each library's path is that of a descriptor, whose number may be reused."""
    gc.collect()
    before = descriptors_in_memory()
    programs = [program_of(convolution(seed), X) for seed in range(2)]
    artifacts = [TVM.compile(program, "fp32") for program in programs]
    for i in (0, 1, 0, 1):
        engine = engine_module(programs[i], [artifacts[i]])
        assert_close(engine(X), programs[i].members[0].module(X))
        assert descriptors_in_memory() == before + 1
        del engine
        gc.collect()
        assert descriptors_in_memory() == before
    together = [engine_module(program, [artifact]) for program, artifact in zip(programs, artifacts, strict=True)]
    for engine, program in zip(together, programs, strict=True):
        assert_close(engine(X), program.members[0].module(X))


def test_the_artifact_is_a_library_for_this_machines_level_of_cpus() -> None:
    artifact = TVM.compile(program_of(convolution(0), X), "fp32")
    assert bytes(artifact.blobs["library"][:4].tolist()) == b"\x7fELF"
    assert TVM.files["library"] == ".so"
    assert artifact.spec.requirements["version"] == ">=0.27,<0.28"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    needed = artifact.spec.requirements.get("cpu", "").split(",")
    assert set(needed) <= {*flags, ""}
    assert ("avx2" in needed) == ("avx2" in flags)


def test_memory_that_is_not_aligned_is_read_right() -> None:
    """Generated code loads whole vectors from the start of a tensor."""
    module = convolution(0)
    engine = engine_of(module, X)
    x = torch.rand(X.numel() + 1)[1:].view(X.shape)
    assert x.is_contiguous()
    assert x.data_ptr() % 64
    assert_close(engine(x), module(x))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no threads to cores")
def test_the_callers_thread_is_not_bound_to_cores() -> None:
    """TVM pins the thread that calls it."""
    engine = engine_of(convolution(0), X)
    before = os.sched_getaffinity(0)
    engine(X)
    after = []
    thread = threading.Thread(target=lambda: after.append((engine(X), os.sched_getaffinity(0))))
    thread.start()
    thread.join()
    assert os.sched_getaffinity(0) == before
    assert after[0][1] == before


def test_an_engine_has_the_requested_threads() -> None:
    module = convolution(0)
    program = program_of(module, X)
    artifact = TVM.compile(program, "fp32")
    engine_module(program, [artifact])(X)  # starts the threads that torch starts on first use
    for count in (5, 7):
        engine = engine_module(program, [artifact])
        before = len(os.listdir("/proc/self/task"))
        engine.engine.prepare("", torch.device("cpu"), count, False)
        assert len(os.listdir("/proc/self/task")) - before == count
        assert f"{count} threads" in json.loads(engine.engine.choice())["description"]
        assert_close(engine(X), module(X))
        del engine


def test_the_next_engine_takes_over_the_threads_of_one_that_ended() -> None:
    """TVM ends threads only after they yielded 300,000 times, which takes minutes if other processes use the CPUs."""
    program = program_of(convolution(0), X)
    artifact = TVM.compile(program, "fp32")
    counts = []
    for _ in range(3):
        engine = engine_module(program, [artifact])
        engine.engine.prepare("", torch.device("cpu"), 6, False)
        engine(X)
        counts.append(len(os.listdir("/proc/self/task")))
        del engine
        gc.collect()
    assert counts == counts[:1] * 3


class IgnoresAnInput(nn.Module):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x - z


def test_an_input_that_is_not_used_keeps_its_place() -> None:
    class Calls(Detector):
        def forward(self, x: Tensor) -> Any:
            return self.backbone(x, x * 2, x * 3)

    program = capture_alone(Calls(IgnoresAnInput()).eval(), "backbone", [(X,)])
    engine = engine_module(program, [TVM.compile(program, "fp32")])
    assert_close(engine(X, X * 2, X * 3), X - X * 3)


class BranchesOnASize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[2] == 16 else x + 1


def test_a_size_that_the_export_fixes_is_refused() -> None:
    program = program_of(BranchesOnASize(), X, torch.rand(1, 3, 20, 24))
    with pytest.raises(CaptureError, match=r"input 'x', dimension 2: expected a program for every size of .*16 only"):
        TVM.compile(program, "fp32")


class BranchesOnALimit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[2] != 30 else x + 1


def test_a_size_that_the_program_does_not_hold_for_is_refused_at_the_call() -> None:
    engine = engine_of(BranchesOnALimit(), X, torch.rand(1, 3, 20, 24))
    assert_close(engine(X), X * 2)
    x = torch.rand(1, 3, 30, 24)
    with pytest.raises(RuntimeError, match=r"hybrid_rt\[tvm\]: .*inputs: expected .*30.*, got \[1, 3, 30, 24\]"):
        engine(x)


class Resizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.interpolate(nn.functional.max_pool2d(x, 2), size=x.shape[-2:], mode="nearest")


def test_a_resize_that_tvm_rounds_otherwise_is_refused() -> None:
    assert_close(engine_of(Resizes(), X)(X), Resizes()(X))
    with pytest.raises(BackendError, match="expected interpolation in mode 'nearest' by whole factors"):
        TVM.compile(program_of(Resizes(), torch.rand(1, 3, 17, 23)), "fp32")


class Transformed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x).abs()


def test_an_operation_that_tvm_lacks_is_named() -> None:
    with pytest.raises(
        BackendError, match=r"hybrid_rt\[tvm\]: segment 'backbone': expected a module that TVM compiles, got"
    ):
        TVM.compile(program_of(Transformed(), X), "fp32")


def test_without_a_compiler_it_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    availability = TVM.availability()
    assert not availability.available
    assert "no C++ compiler" in availability.reason
    assert "apt-get install g++" in availability.reason


def test_a_missing_library_is_a_reason() -> None:
    code = "import hybrid_rt; print(next(i.reason for i in hybrid_rt.backends() if i.name == 'tvm'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HYBRID_RT_TVM_LIBRARY": "/nowhere/libtvm_runtime.so"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "TVM's runtime can't be opened (/nowhere/libtvm_runtime.so" in done.stdout
    assert "pip install apache-tvm" in done.stdout


# Tuning


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_an_invalid_budget_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_RT_TVM_TUNING_SECONDS", text)
    with pytest.raises(
        OptionError,
        match=rf"hybrid_rt\[tvm\]: HYBRID_RT_TVM_TUNING_SECONDS: expected a number of seconds, got '{text}'",
    ):
        TVM.compile(program_of(convolution(0), X), "fp32")


def test_the_cache_keeps_one_artifact_for_each_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(convolution(0), X)
    keys = set()
    for seconds in ("", "0", "10", "10.0", "20"):
        monkeypatch.setenv("HYBRID_RT_TVM_TUNING_SECONDS", seconds)
        keys.add(store.key_of(TVM, program, "fp32"))
    assert len(keys) == 3


def test_tuned_kernels_are_correct_and_measurements_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_RT_CACHE", str(tmp_path))
    monkeypatch.setenv("HYBRID_RT_TVM_TUNING_SECONDS", "20")  # it takes two seconds
    module = convolution(0)
    program = program_of(module, X)
    artifact = TVM.compile(program, "fp32")
    assert artifact.spec.versions["tvm_tuning_seconds"] == "20"
    assert_close(engine_module(program, [artifact])(X), module(X))
    (path,) = (tmp_path / "tvm_tuning").iterdir()
    (times,) = json.loads(path.read_text()).values()
    assert all(seconds > 0 for seconds in times.values())
    # The choice recorded as the fastest is used without measuring again.
    fastest = list(times)[-1]
    assert fastest != repr(tuning.CHOICES[0])
    path.write_text(path.read_text().replace(str(times[fastest]), "1e-9"))
    monkeypatch.setenv("HYBRID_RT_TVM_TUNING_SECONDS", "0.000001")
    taken = []
    arranged = tuning._arranged
    monkeypatch.setattr(tuning, "_arranged", lambda f, choice: (taken.append(repr(choice)), arranged(f, choice))[1])
    TVM.compile(program, "fp32")
    assert taken == [fastest]
    store.clear()
    assert not (tmp_path / "tvm_tuning").exists()


def test_every_order_that_tuning_may_choose_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 6, 1)
    ).eval()
    program = program_of(module, X)
    for choice in tuning.CHOICES:
        monkeypatch.setattr(tuning, "CHOICES", (choice,))
        assert_close(engine_module(program, [TVM.compile(program, "fp32")])(X), module(X))
