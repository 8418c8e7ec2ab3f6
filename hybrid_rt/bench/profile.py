"""Measures a bundle's time by engine, operator of the head, interpreter, and layer inside an engine."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backends import registry
from ..backends.base import LayerTime
from ..bundle import archive
from ..bundle.archive import read_manifest
from ..bundle.call_parts import ENGINE, Part, Step, profiled_calls
from ..common.atomic_files import check_writable
from ..common.errors import InputError, OptionError
from ..common.latency import Latency, benchmark
from ..common.tensor_tree import tensors_in
from ..conversion.export.extract import extract
from ..verification.golden import read as read_golden
from .protocol import shortened


@dataclass(frozen=True)
class EngineLayers:
    """Layers inside an engine.

    Attributes:
        engine: name of the engine.
        backend: backend that ran it.
        precision: precision of the artifact.
        layers: the layers as the vendor's profiler reports them, in a separate run; empty: see ``reason``.
        reason: reason why there are no layers; empty if there are.
        tflops: 10^12 operations per second of its counted layers, in the bundle's own calls; None: not known.
    """

    engine: str
    backend: str
    precision: str
    layers: list[LayerTime] = field(default_factory=list)
    reason: str = ""
    tflops: float | None = None


@dataclass(frozen=True)
class Limits:
    """Rates that this machine achieved in the same run, on the same threads.

    Attributes:
        tflops: 10^12 operations per second of a matrix product of 1024 x 1024, by precision.
        convolution_tflops: 10^12 operations per second of torch's 3 x 3 convolution from 256 to 256 channels on 100 x
            136 pixels, by precision.
        copy_gb_per_s: 10^9 bytes per second, read and written by copies of 256 MiB.
    """

    tflops: dict[str, float]
    convolution_tflops: dict[str, float]
    copy_gb_per_s: float


@dataclass(frozen=True)
class Profile:
    """Breakdown of the time of a bundle's calls.

    Attributes:
        path: path of the bundle.
        inputs: shapes of the call's tensors.
        threads: number of threads per call.
        latency: latency of calls without the profiler.
        profiled_ms: milliseconds of a call with the profiler; the sum of ``parts``.
        parts: the parts of a call, longest first.
        engines: the layers inside each engine.
        limits: rates that the machine achieved in the same run.
    """

    path: str
    inputs: list[list[int]]
    threads: int
    latency: Latency
    profiled_ms: float
    parts: list[Part]
    engines: list[EngineLayers]
    limits: Limits

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)


def profile(
    path: str | os.PathLike[str],
    inputs: tuple[Any, ...] | None = None,
    *,
    backend: str = "",
    threads: int = 0,
    repeat: int = 10,
    trace: str | os.PathLike[str] | None = None,
) -> Profile:
    """Runs a bundle under torch's profiler, and its engines under their vendors'.

    Args:
        path: path of the `.pt`.
        inputs: the detector's positional arguments; None: those of the golden sample.
        backend: use only this backend's variants; empty: as :func:`hybrid_rt.load` chooses.
        threads: threads per call; 0: as many as torch uses.
        repeat: number of profiled calls, and of calls without the profiler; at least 1.
        trace: path for a Chrome trace of the profiled calls; None: write none.

    Returns:
        The profile.

    Raises:
        OptionError: ``repeat`` is below 1, or the trace can't be written.
        InputError: the bundle does not accept the inputs.
        BundleError: the file is not a bundle, was altered, or has no golden sample and no inputs are given.
        BackendError: no variant of an engine can run here.

    Examples:
        >>> profile = hybrid_rt.profile("detector.pt", repeat=2)
        >>> [layers.engine for layers in profile.engines]
        ['backbone']
    """
    if repeat < 1:
        raise OptionError.make("profile", "repeat", expected="at least 1", got=str(repeat))
    if trace is not None:
        check_writable(Path(trace))
    given = read_golden(path).inputs if inputs is None else inputs
    threads = threads or torch.get_num_threads()
    module = archive.load(path, backend=backend, threads=threads)
    try:
        latency = benchmark({"": module}, given, repeat=repeat)[""]
    except RuntimeError as error:  # from TorchScript, whose traceback names no line of the user's
        raise InputError.make(
            "profile", "the inputs", expected="inputs that the bundle accepts", got=str(error).strip().splitlines()[-1]
        ) from error
    calls = profiled_calls(module, given, repeat, trace)
    return Profile(
        path=os.fspath(path),
        inputs=[list(tensor.shape) for tensor in tensors_in(given)],
        threads=threads,
        latency=latency,
        profiled_ms=calls.milliseconds,
        parts=calls.parts,
        engines=_inside(path, module, calls.steps, calls.parts, threads),
        limits=_limits(threads, {choice["precision"] for choice in archive.engines(module)}),
    )


def _inside(
    path: str | os.PathLike[str],
    module: torch.jit.ScriptModule,
    steps: Sequence[Step],
    parts: Sequence[Part],
    threads: int,
) -> list[EngineLayers]:
    """Returns the vendors' measurements of the engines that ran."""
    times = {part.name: part.milliseconds / part.calls for part in parts if part.kind == ENGINE}
    shapes = {step.name: step.shapes for step in steps if step.kind == ENGINE}
    inputs = {engine.name: engine.variants[0].inputs for engine in read_manifest(path).engines}
    inside = []
    for choice in archive.engines(module):
        name, backend, precision = choice["engine"], choice["backend"], choice["precision"]
        known = EngineLayers(name, backend, precision, reason="the engine did not run in this call")
        if name in shapes:
            tensors = [_filled(shape, spec.dtype) for shape, spec in zip(shapes[name], inputs[name], strict=True)]
            known = _layers_of(path, known, tensors, threads, times[name])
        inside.append(known)
    return inside


def _layers_of(
    path: str | os.PathLike[str], engine: EngineLayers, inputs: Sequence[Tensor], threads: int, milliseconds: float
) -> EngineLayers:
    compiler = registry.backend(engine.backend)
    found: Sequence[LayerTime] | None = None
    reason = "the vendor has no profiler that Python reaches"
    available = compiler.availability()
    if not available.available:
        reason = available.reason
    else:
        with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
            files = _files(path, directory, engine)
            try:
                found = compiler.layer_times(files, engine.precision, inputs, threads)
            except Exception as error:  # from any vendor's runtime, after the bundle itself has run
                reason = f"its profiler failed: {shortened(str(error))}"
    if not found:
        return EngineLayers(engine.engine, engine.backend, engine.precision, reason=reason)
    operations = sum(layer.operations for layer in found)
    tflops = operations / milliseconds / 1e9 if operations else None
    return EngineLayers(engine.engine, engine.backend, engine.precision, list(found), "", tflops)


def _files(path: str | os.PathLike[str], directory: str, engine: EngineLayers) -> Mapping[str, Path]:
    written = extract(path, directory, segment=engine.engine, backend=engine.backend)
    own = [file for file in written if f"-{engine.backend}-{engine.precision}" in str(file)]
    # The longest ending counts if a file has several, as .head.xml and .xml; a blob that the backend does not list has
    # none.
    longest_last = sorted(registry.file_endings(engine.backend).items(), key=lambda item: len(item[1]))
    names = {file: [name for name, ending in longest_last if str(file).endswith(ending)] for file in own}
    return {found[-1]: file for file, found in names.items() if found}


def _filled(shape: Sequence[int], dtype: str) -> Tensor:
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(list(shape), generator=generator).to(kind)


_SIDE = 1024
_CHANNELS, _MAP = 256, (100, 136)
_COPIED = 1 << 28
_TRIALS = 5


def _limits(threads: int, precisions: set[str]) -> Limits:
    """Measures the rates that this machine reaches, as the best of several trials."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        measured = {
            name: dtype
            for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items()
            if name == "fp32" or name in precisions
        }
        products = {
            name: 2 * _SIDE**3 / _best(lambda a: a @ a, torch.ones(_SIDE, _SIDE, dtype=dtype)) / 1e12
            for name, dtype in measured.items()
        }
        convolutions = {name: _convolution_tflops(dtype) for name, dtype in measured.items()}
        target = torch.empty(_COPIED, dtype=torch.uint8)
        seconds = _best(target.copy_, torch.zeros(_COPIED, dtype=torch.uint8))
        return Limits(products, convolutions, 2 * _COPIED / seconds / 1e9)
    finally:
        torch.set_num_threads(before)


def _convolution_tflops(dtype: torch.dtype) -> float:
    convolution = torch.nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False, dtype=dtype)
    convolution = convolution.to(memory_format=torch.channels_last)
    features = torch.ones(1, _CHANNELS, *_MAP, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = _best(convolution, features)
    return 2 * _CHANNELS**2 * 9 * math.prod(_MAP) / seconds / 1e12


def _best(call: Any, value: Tensor) -> float:
    """Returns the shortest duration of a call, in seconds."""
    times = []
    for _ in range(_TRIALS):
        start = time.perf_counter()
        call(value)
        times.append(time.perf_counter() - start)
    return min(times)
