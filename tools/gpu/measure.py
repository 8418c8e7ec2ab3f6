"""Times backbones on a GPU alternately, for the cases of tools/gpu_check."""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hybrid_rt
from hybrid_rt.common.errors import HybridRTError
from hybrid_rt.common.latency import percentile
from hybrid_rt.torchscript import jit
from tools.gpu.report import FAILED, MEASURED, NOT_RUN, REFUSED, Row
from tools.gpu.runner import DEVICE_VARIABLE, LIMIT_VARIABLE, Writer

DEVICE = os.environ.get(DEVICE_VARIABLE, "cuda")
IS_REHEARSAL = DEVICE == "cpu"
ROUNDS, WARM_UP = (2, 1) if IS_REHEARSAL else (50, 5)
FASTEST = "fp32" if IS_REHEARSAL else "fp16"
"""Precision of single measurements. CPUs have no engines in fp16, and torch's own convolutions take minutes."""
REFERENCE = "TorchScript fp32"
_SHARE_FOR_BUILDING = 0.6
_IMAGE_SIZE = (256, 352) if IS_REHEARSAL else (800, 1088)
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

ENGINE_PRECISIONS = {
    "torch": ("fp32", "tf32", FASTEST, "bf16"),
    "compile": (FASTEST, "fp32", "tf32", "bf16"),
    "aot_inductor": (FASTEST, "fp32", "tf32", "bf16"),
    "tensorrt": (FASTEST, "fp32", "tf32", "bf16"),
}
"""Most important first: those beyond the time limit are not run. "tf32" is fp32 with TF32 products allowed."""


class Alone(nn.Module):
    """A detector that consists of its backbone, so that a call has no other cost than the op's."""

    def __init__(self, backbone: nn.Module) -> None:
        """Wraps a backbone that returns a dict of tensors."""
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the features of images [N, 3, H, W]."""
        return self.backbone(images)


def convert_unchecked(detector: nn.Module, inputs: tuple[Any, ...], path: Path, **options: Any) -> None:
    """Converts a detector for one engine only. Its results are not compared, because the caller judges them."""
    hybrid_rt.convert(
        detector, inputs, path, fallback=False, verify=False, golden=False, measure=False, progress=False, **options
    )


@dataclass(frozen=True)
class Candidate:
    """A candidate to time.

    Attributes:
        name: Name in the results.
        call: Called without arguments. Its work runs in the current stream.
        tf32: True if torch may use TF32 in its own products and convolutions while it runs.
    """

    name: str
    call: Callable[[], Any]
    tf32: bool = False


def allow_tf32(is_allowed: bool) -> None:
    """Allows or forbids TF32 in torch's convolutions (allowed by default) and products (forbidden by default)."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_allowed


def milliseconds(candidate: Candidate) -> float:
    """Measures one call between two CUDA events. The host's share counts if the GPU waits for it."""
    allow_tf32(candidate.tf32)
    if DEVICE == "cpu":
        begin = time.perf_counter()
        candidate.call()
        return (time.perf_counter() - begin) * 1e3
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    candidate.call()
    end.record()
    end.synchronize()
    found: float = start.elapsed_time(end)
    return found


def interleaved(
    candidates: list[Candidate], rounds: int = ROUNDS, warm_up: int = WARM_UP
) -> dict[str, dict[str, float]]:
    """Returns median and p95 of each candidate. The order changes in each round."""
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for i in range(warm_up + rounds):
        for candidate in random.Random(i).sample(candidates, len(candidates)):
            spent = milliseconds(candidate)
            if i >= warm_up:
                times[candidate.name].append(spent)
    return {
        name: {"median_ms": percentile(spent, 50), "p95_ms": percentile(spent, 95)} for name, spent in times.items()
    }


def backbone(name: str) -> tuple[nn.Module, Tensor]:
    """Returns the backbone "demo" or "r50" on the CPU, and its input."""
    torch.manual_seed(0)
    if name == "demo":
        from models import digits_detector  # needs scikit-image and scikit-learn, unlike the other one

        return digits_detector.load().backbone, torch.rand(1, 3, 256, 352)
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.resnet import Bottleneck

    found = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
    for module in found.modules():
        if isinstance(module, Bottleneck):  # otherwise activations grow from block to block, beyond fp16
            module.bn3.weight.data.fill_(0.2)
    return found.requires_grad_(False).eval(), torch.rand(1, 3, *_IMAGE_SIZE)


def tensors_of(result: Any) -> list[Tensor]:
    """Returns the tensors of a backbone's result in fp32."""
    values = list(result.values()) if isinstance(result, Mapping) else [result]
    return [value.float() for value in values]


def relative_error(found: Any, expected: list[Tensor]) -> float:
    """Returns the worst output's largest difference relative to its largest value."""
    pairs = zip(tensors_of(found), expected, strict=True)
    return max(((value - right).abs().max() / right.abs().max()).item() for value, right in pairs)


def candidates(engine: str, precision: str, module: nn.Module, x: Tensor) -> Iterator[Candidate]:
    """Yields the engines per precision. Each is built when it is requested.

    Args:
        engine: A key of :data:`ENGINE_PRECISIONS`.
        precision: A precision of the engine, or "tf32".
        module: The module on the CPU. It is not modified.
        x: Its input on the CPU.
    """
    is_tf32 = precision == "tf32"
    if engine in ("torch", "compile"):
        own = copy.deepcopy(module).to(DEVICE, _DTYPES[precision])
        image = x.to(DEVICE, _DTYPES[precision])
        if engine == "compile":
            compiled = torch.compile(own)
            yield Candidate(f"torch.compile {precision}", lambda: compiled(image), is_tf32)
            return
        yield Candidate(f"eager {precision}", lambda: own(image), is_tf32)
        frozen = jit.freeze(jit.script(own))
        yield Candidate(f"TorchScript {precision}", lambda: frozen(image), is_tf32)
        return
    compiled_segment = segment(engine, precision, module, x)
    image = x.to(DEVICE)
    yield Candidate(f"{engine} {precision}", lambda: compiled_segment(image), is_tf32)


def segment(engine: str, precision: str, module: nn.Module, x: Tensor) -> Any:
    """Returns a module on the device whose computation one of our engines runs; see :func:`candidates`."""
    options: dict[str, Any] = {}
    if engine == "tensorrt":
        options = {"tensorrt": {"tf32": precision == "tf32", "compute_capabilities": "current"}}
    return hybrid_rt.compile_segment(
        module,
        x,
        engine=engine,
        precision="fp32" if precision == "tf32" else precision,
        device=DEVICE,
        strict=True,
        verify=False,  # the caller measures the errors, and shows them whatever they are
        options=options,
        progress=False,
    )


def kernel_milliseconds(call: Callable[[], Any], calls: int = 10) -> float:
    """Returns the milliseconds of a call's kernels and copies on the GPU, measured by torch's profiler."""
    from torch.profiler import ProfilerActivity

    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in found.key_averages()) / calls / 1e3


def recorded(call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """Returns a call as a CUDA graph that torch records."""
    graph = torch.cuda.CUDAGraph()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    with torch.cuda.graph(graph):
        call()
    return graph


@dataclass(frozen=True)
class Timed:
    """Result of calls from several threads.

    Attributes:
        seconds: Time from the first call to the end of all work.
        results: Last result for each input.
    """

    seconds: float
    results: list[Any]


def seconds_in_streams(call: Callable[[Tensor], Any], inputs: Sequence[Tensor], calls: int, streams: int) -> Timed:
    """Calls a module ``calls`` times with each input, each input in its own thread.

    Args:
        call: The function to call.
        inputs: Inputs on the device.
        calls: Number of calls per input.
        streams: 1 if all threads share a stream, otherwise one stream per thread. A CPU has no streams.
    """
    is_cuda = DEVICE == "cuda"
    own = [torch.cuda.Stream() for _ in inputs] if is_cuda else []

    def work(place: int) -> Any:
        with torch.no_grad(), torch.cuda.stream(own[place % streams] if is_cuda else None):
            for _ in range(calls):
                result = call(inputs[place])
            return result

    if is_cuda:
        torch.cuda.synchronize()  # wait for the inputs
    with ThreadPoolExecutor(len(inputs)) as pool:
        list(pool.map(work, range(len(inputs))))  # warm-up, which also starts the threads
        if is_cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        results = list(pool.map(work, range(len(inputs))))
        if is_cuda:
            torch.cuda.synchronize()
        return Timed(time.perf_counter() - begin, results)


def _failure(error: Exception) -> tuple[str, str]:
    """Returns result and figure of a failure's row."""
    return (REFUSED if isinstance(error, HybridRTError) else FAILED), f"{type(error).__name__}: {error}"


def measure_backbone(
    writer: Writer, title: str, engine: str, name: str, precisions: tuple[str, ...] = (), row_engine: str = ""
) -> None:
    """Builds an engine's candidates and times them beside TorchScript's. Writes a row per failure and one for the rest.

    Args:
        writer: Receives rows and data.
        title: Title of the row.
        engine: A key of :data:`ENGINE_PRECISIONS`.
        name: Name of a backbone, see :func:`backbone`.
        precisions: The precisions to build; empty for all.
        row_engine: Engine of the row; empty for ``engine``.
    """
    begin, limit = time.monotonic(), float(os.environ.get(LIMIT_VARIABLE, "inf"))
    module, x = backbone(name)
    row_engine = row_engine or engine
    allow_tf32(False)
    made: list[Candidate] = []
    errors: dict[str, float] = {}
    seconds: dict[str, float] = {}
    with torch.no_grad():
        expected = tensors_of(copy.deepcopy(module).to(DEVICE)(x.to(DEVICE)))
        references = []
        for precision in () if engine == "torch" else dict.fromkeys(("fp32", "tf32", FASTEST)):
            try:
                references += list(candidates("torch", precision, module, x))[1:]  # without eager
            except Exception as error:  # the engine's figures are useful without it
                writer.row(Row(f"{title}, TorchScript {precision}", *_failure(error), "torch"))
        for precision in dict.fromkeys(precisions or ENGINE_PRECISIONS[engine]):
            if time.monotonic() - begin > _SHARE_FOR_BUILDING * limit:
                writer.row(Row(f"{title} {precision}", NOT_RUN, "the time was spent; --minutes gives more", row_engine))
                continue
            start = time.monotonic()
            try:
                allow_tf32(precision == "tf32")
                for candidate in candidates(engine, precision, module, x):
                    errors[candidate.name] = relative_error(candidate.call(), expected)
                    made.append(candidate)
            except Exception as error:  # from any compiler
                writer.row(Row(f"{title} {precision}", *_failure(error), row_engine))
            seconds[precision] = round(time.monotonic() - start, 1)
        latency = interleaved(made + references) if made else {}
    writer.data(latency=latency, errors=errors, build_seconds=seconds, input=list(x.shape))
    if made:
        texts = [f"{c.name} {latency[c.name]['median_ms']:.2f} ms ({errors[c.name]:.0e})" for c in made]
        beside = ""
        if engine != "torch" and REFERENCE in latency:
            beside = f"; beside {REFERENCE} {latency[REFERENCE]['median_ms']:.2f} ms"
        writer.row(Row(title, MEASURED, ", ".join(texts) + beside, row_engine))
    half = [candidate.name for candidate in made if candidate.name.endswith(" fp16")]
    if engine not in ("torch", "compile") and half and REFERENCE in latency:
        against = latency[REFERENCE]["median_ms"] / latency[half[0]]["median_ms"]
        writer.data(goals=[{"what": f"{title}: fp16 / {REFERENCE}", "goal": "backbone", "value": against}])
