"""Tests of TensorRT on a GPU: results, threads and streams, CUDA graphs, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import hybrid_rt
from backends.test_tensorrt import Pyramid, Wide, X, builds

pytestmark = [
    pytest.mark.gpu,
    builds,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]
FOR_THIS_GPU = {"tensorrt": {"compute_capabilities": "current"}}


def compiled_here(module: nn.Module, **options: Any) -> hybrid_rt.CompiledSegment:
    return hybrid_rt.compile_segment(module, X, engine="tensorrt", strict=True, **{"options": FOR_THIS_GPU, **options})


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def close(found: Any, expected: Any, allowed: float) -> None:
    for key, tensor in expected.items():
        error = (found[key].float().cpu() - tensor).abs().max() / tensor.abs().max()
        assert error < allowed, f"{key}: {error}"


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-4), ("fp16", 1e-2), ("bf16", 5e-2), ("int8", 0.2)])
def test_on_a_gpu_results_are_the_modules(precision: str, allowed: float) -> None:
    module = seeded(Pyramid)
    compiled = compiled_here(
        module,
        precision=precision,
        shapes={"batch": (1, 4), "height": (32, 128), "width": (32, 128)},
        calibration_data=[(X,)] * 12 if precision == "int8" else (),
        verify=False,
    )
    for size in ((1, 64, 96), (2, 32, 128), (4, 128, 33), (1, 64, 96)):
        x = torch.rand(size[0], 3, *size[1:])
        close(compiled(x.cuda()), module(x), allowed)


def test_on_a_gpu_threads_and_streams_get_their_own_results() -> None:
    from concurrent.futures import ThreadPoolExecutor

    module = seeded(Pyramid)
    compiled = compiled_here(module)
    inputs = [X * (1 + i) for i in range(8)]
    expected = [module(x) for x in inputs]

    def call(i: int) -> Any:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            x = inputs[i].cuda()
            results = [compiled(x) for _ in range(20)]
            torch.cuda.current_stream().synchronize()
            return results

    with ThreadPoolExecutor(8) as pool:
        for results, right in zip(pool.map(call, range(8)), expected, strict=True):
            for result in results:
                close(result, right, 1e-4)


@pytest.mark.parametrize("mode", ["copy", "static"])
def test_on_a_gpu_cuda_graphs_give_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_RT_TENSORRT_CUDA_GRAPHS", mode)
    module = seeded(Pyramid)
    compiled = compiled_here(module, shapes={"height": (32, 128), "width": (32, 128)})
    x = X.cuda()
    for i in range(40):  # more shapes than the number of cached graphs
        close(compiled(x), module(X), 1e-4)
        other = torch.rand(1, 3, 32 + i, 64)
        close(compiled(other.cuda()), module(other), 1e-4)


def test_on_a_gpu_a_shape_between_the_profiles_lists_them() -> None:
    options = {"compute_capabilities": "current", "profiles": [{"height": (32, 64)}, {"height": (96, 128)}]}
    compiled = compiled_here(
        seeded(Pyramid), shapes={"height": (32, 128), "width": (32, 128)}, options={"tensorrt": options}
    )
    with pytest.raises(RuntimeError, match=r"within one optimisation profile \(profile 0: 1x3x32..64x32..128; "):
        compiled(torch.rand(1, 3, 80, 64).cuda())


def test_on_a_gpu_too_little_memory_is_an_error_and_the_next_call_works() -> None:
    module = seeded(Wide)
    compiled = compiled_here(module, shapes={"batch": (1, 64), "height": (64, 1024), "width": (96, 1024)})
    compiled(X.cuda())
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - (1 << 30), dtype=torch.uint8, device="cuda")
    with pytest.raises(RuntimeError, match="MiB of scratch"):
        compiled(torch.rand(64, 3, 1024, 1024, device="cuda"))
    del held
    torch.cuda.empty_cache()
    found = compiled(X.cuda())
    assert (found.cpu() - module(X)).abs().max() < 1e-3


def test_on_a_gpu_a_stream_that_is_recorded_is_refused() -> None:
    compiled = compiled_here(seeded(Pyramid))
    x = X.cuda()
    compiled(x)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="expected one that is not being recorded"), torch.cuda.graph(graph):
        compiled(x)
