"""AOTInductor on a GPU."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn

import hybrid_rt
from backends.test_aot_inductor import CUDA, directories, inputs, program
from hybrid_rt.common.specs import Artifact
from hybrid_rt.conversion.assemble.engine_module import EngineModule, engine_module

# Do not use CUDA.availability(): on a machine with a GPU but no headers the tests have to fail, not to be skipped.
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def exact() -> Iterator[None]:
    """Disables TF32 in eager mode and in the engines, which both follow torch's settings."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@functools.cache
def cuda_artifact(precision: str = "fp32", seed: int = 0) -> Artifact:
    return CUDA.compile(program(seed), precision)


def cuda_engine(precision: str = "fp32", seed: int = 0) -> EngineModule:
    return engine_module(program(seed), [cuda_artifact(precision, seed)])


def on_cuda(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.cuda() for tensor in tensors)


def expected(x: tuple[Tensor, ...], seed: int = 0) -> Tensor:
    """Returns the results of the module itself on the CPU."""
    return program(seed).members[0].module(*(tensor.cpu() for tensor in x))


def test_cuda_requirements_of_the_machine_are_recorded() -> None:
    spec = cuda_artifact().spec
    major, minor = torch.cuda.get_device_capability()
    assert spec.device == "cuda"
    assert spec.requirements["compute_capability"] == f"{major}.{minor}"
    assert set(spec.requirements) == {"version", "cpu", "compute_capability"}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("size", [(1, 16, 24), (2, 8, 10), (3, 64, 36), (1, 200, 304), (0, 16, 24)])
def test_cuda_matches_the_module(size: tuple[int, int, int]) -> None:
    x = on_cuda(inputs(*size))
    run = cuda_engine()
    for _ in range(5):  # use each runner more than once
        got = run(*x)
        assert got.device == x[0].device
        torch.testing.assert_close(got.cpu(), expected(x), rtol=1e-4, atol=1e-5)
    assert f", fp32, cuda:{torch.cuda.current_device()}" in run.engine.choice()


@pytest.mark.usefixtures("exact")
def test_cuda_takes_inputs_at_any_address() -> None:
    """Kernels are compiled for addresses that are multiples of 16, as those of torch's own allocations are."""
    x = on_cuda(inputs(2))
    odd = tuple(torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view_as(tensor) for tensor in x)
    assert all(tensor.data_ptr() % 16 for tensor in odd)
    torch.testing.assert_close(cuda_engine()(*odd).cpu(), expected(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("precision", "limit"), [("bf16", 0.03), ("fp16", 0.005)])
def test_cuda_half_precision_is_inside_only(precision: str, limit: float) -> None:
    x = on_cuda(inputs(2))
    got = cuda_engine(precision)(*x).cpu()
    assert got.dtype == torch.float32
    error = ((got - expected(x)).abs().max() / expected(x).abs().max()).item()
    assert 1e-6 < error < limit


def test_cuda_inconsistent_sizes_are_refused() -> None:
    images, bias = on_cuda(inputs(2))
    with pytest.raises(RuntimeError, match=re.escape("expected images.shape[0] == bias.shape[0], got")):
        cuda_engine()(images, bias[:1])


@pytest.mark.usefixtures("exact")
def test_cuda_equal_kernels_with_other_weights_are_not_mixed_up() -> None:
    """They are compiled in one process, each in a directory that is deleted before the next one is compiled."""
    x = on_cuda(inputs())
    runs = [cuda_engine(seed=seed) for seed in (0, 1)]
    for i in (0, 1, 1, 0):
        torch.testing.assert_close(runs[i](*x).cpu(), expected(x, i), rtol=1e-4, atol=1e-5)


def test_cuda_compiling_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, users = directories(tmp_path, monkeypatch)
    settings = torch._inductor.config.save_config_portable()
    CUDA.compile(program(2), "fp32")
    assert list(temporary.iterdir()) == []
    assert list(users.rglob("*.cubin")) == []
    assert torch._inductor.config.save_config_portable() == settings


@pytest.mark.usefixtures("exact")
def test_cuda_runs_on_the_current_stream() -> None:
    run = cuda_engine()
    x = on_cuda(inputs(1, 64, 64))
    for _ in range(3):
        run(*x)
    later = on_cuda(inputs(1, 64, 64))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # on another stream the engine would finish before the inputs change
        for old, new in zip(x, later, strict=True):
            old.copy_(new, non_blocking=True)
        got = run(*x)
    stream.synchronize()
    torch.testing.assert_close(got.cpu(), expected(later), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("exact")
def test_cuda_threads_with_their_own_streams_do_not_interfere() -> None:
    run = cuda_engine()
    run(*on_cuda(inputs()))
    wrong: list[str] = []

    def work(batch: int) -> None:
        x = on_cuda(inputs(batch, 32, 40))
        right = expected(x)
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                got = run(*x).cpu()
                if not torch.allclose(got, right, rtol=1e-4, atol=1e-5):
                    wrong.append(f"batch {batch}")

    threads = [threading.Thread(target=work, args=(batch,)) for batch in (1, 2, 3, 4)]
    torch.cuda.synchronize()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.usefixtures("exact")
def test_cuda_a_compiled_segment_moves_with_its_model() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    image = torch.rand(1, 3, 32, 40)
    model = nn.Sequential(hybrid_rt.compile_segment(module, image, engine="aot_inductor", device="cuda"))
    for device, backend in (("cuda", "aot_inductor"), ("cpu", "torchscript"), ("cuda", "aot_inductor")):
        model.to(device)
        assert model[0].running()["backend"] == backend
        torch.testing.assert_close(model(image.to(device)).cpu(), module(image), rtol=1e-4, atol=1e-5)


def test_cuda_a_missing_device_or_one_of_another_kind_is_refused() -> None:
    run = cuda_engine()
    with pytest.raises(RuntimeError, match=r"aot_inductor.*there is no CUDA device 31"):
        run.engine.prepare("", torch.device("cuda", 31), 1, False)
    with pytest.raises(RuntimeError, match=r"aot_inductor.*what was compiled for cuda runs on cuda, not on cpu"):
        run(*inputs())
    x = on_cuda(inputs())
    assert run(*x).shape == expected(x).shape
