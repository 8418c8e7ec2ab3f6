"""Measures the latency of a new bundle and of its detector, and the cost of an image size that is new to the bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...bundle import archive
from ...bundle.call_parts import Part, profiled_calls
from ...capture.program import Program
from ...common.image_inputs import ImageInputs
from ...common.latency import Latency, benchmark
from ...common.specs import UNBOUNDED
from ...common.tensor_tree import map_tensors

eager_budget: ContextVar[float] = ContextVar("eager_budget", default=2.0)
"""Time budget in seconds for all eager calls together; a slow detector still runs once. Tests that ignore the figures
set it to 0, for one round."""

_MOST_ROUNDS = 20

_PROFILED = 3
"""Number of calls under the profiler."""

_RATIOS = (0.8, 1.25, 1.0, 0.75, 1.5, 0.5, 2.0)
"""Ratios of height to width of the sizes to try."""

_ANY = 1 << 30

Size = tuple[int, int]


@dataclass(frozen=True)
class NewSize:
    """Milliseconds of the first and of the next call on images of a size that the hybrid had not seen."""

    height: int
    width: int
    first: float
    later: float


@dataclass(frozen=True)
class Measurement:
    """Latency of the hybrid on the example and of the eager detector, called alternately in Python.

    Attributes:
        latencies: the latencies of "eager" and "hybrid". ``first`` is the hybrid's first call after loading; the
            detector had run before.
        load: time to load the bundle with its engines, in milliseconds.
        pictures: (height, width) of the example's images.
        threads: number of torch's threads.
        engines: each engine's description of the variant that runs.
        new_size: times at a new size; None: see ``no_new_size``.
        no_new_size: why no new size was measured.
        parts: parts of the hybrid's call on the example under torch's profiler, the longest first: engines, operators
            of the head, and the rest. They add up to one call, which takes longer than without the profiler.
    """

    latencies: dict[str, Latency]
    load: float
    pictures: list[Size]
    threads: int
    engines: dict[str, str] = field(default_factory=dict)
    new_size: NewSize | None = None
    no_new_size: str = ""
    parts: list[Part] = field(default_factory=list)

    @property
    def gain(self) -> float:
        """Returns the hybrid's speed-up over the detector, by the medians."""
        return self.latencies["eager"].median / max(1e-9, self.latencies["hybrid"].median)


def measure_hybrid(
    detector: nn.Module,
    path: Path,
    inputs: Sequence[tuple[Any, ...]],
    images: ImageInputs,
    programs: Sequence[Program],
    eager_seconds: float,
) -> tuple[Measurement | None, str]:
    """Times detector and bundle alternately on the first of ``inputs``, then the bundle on a size that is new to it.

    Args:
        detector: the detector.
        path: the bundle; it is loaded as by a service.
        inputs: the arguments on which it was compared; the first tuple is the example.
        images: which of the arguments are images.
        programs: its segments.
        eager_seconds: duration of one call of the detector, which determines the number of rounds.

    Returns:
        The measurement and an empty string; or None and the reason if the bundle can't run here, because an unverified
        bundle may be for another machine.
    """
    try:
        start = time.perf_counter()
        hybrid = archive.load(path)
        load = (time.perf_counter() - start) * 1e3
        example = map_tensors(inputs[0], Tensor.clone)  # a detector may write to its images
        rounds = max(1, min(_MOST_ROUNDS, int(eager_budget.get() / max(1e-9, eager_seconds)) - 1))
        with torch.inference_mode():
            first = _milliseconds(hybrid, example)
            hybrid(*example)  # TorchScript optimises its graph in the second call
        latencies = benchmark({"eager": detector, "hybrid": hybrid}, example, repeat=rounds, warm_up=0)
        latencies["hybrid"] = replace(latencies["hybrid"], first=first)
        parts = profiled_calls(hybrid, example, min(rounds, _PROFILED)).parts
        new_size, reason = _first_call_at_a_new_size(detector, hybrid, inputs, images, programs)
        measured = Measurement(
            latencies=latencies,
            load=load,
            pictures=images.sizes(example),
            threads=torch.get_num_threads(),
            engines={engine["engine"]: engine["description"] for engine in archive.engines(hybrid)},
            new_size=new_size,
            no_new_size=reason,
            parts=parts,
        )
        return measured, ""
    except RuntimeError as error:  # what TorchScript makes of any error of ours
        return None, _last_line(error)


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")


def _first_call_at_a_new_size(
    detector: nn.Module,
    hybrid: nn.Module,
    inputs: Sequence[tuple[Any, ...]],
    images: ImageInputs,
    programs: Sequence[Program],
) -> tuple[NewSize | None, str]:
    """Times the resized example; returns the reason instead if no new size can be run."""
    sizes = images.sizes(inputs[0])
    if not sizes:
        return None, "the inputs are not images"
    seen = {_seen_by_engine(detector, images.sizes(arguments)) for arguments in inputs}
    seen |= {(x.shape[-2], x.shape[-1]) for program in programs for call in program.calls for x in call.inputs[:1]
             if x.dim() == 4}  # fmt: skip
    bounds = _bounds(images.of(inputs[0]), programs)
    refusal = ""
    for size in _candidates(sizes[0], bounds if not hasattr(detector, "transform") else None):
        made = _seen_by_engine(detector, [size] * len(sizes))
        if made in seen or not all(low <= side <= high for side, (low, high) in zip(made, bounds, strict=True)):
            continue
        arguments = images.resized(inputs[0], size)
        try:
            with torch.inference_mode():
                first, later = _milliseconds(hybrid, arguments), _milliseconds(hybrid, arguments)
        except RuntimeError as error:  # what TorchScript makes of an InputError
            refusal = f"{size[0]}x{size[1]} is refused: {_last_line(error)}"
            continue
        return NewSize(*size, first, later), ""
    return None, refusal or "its segments always get images of the same size"


def _bounds(images: Sequence[Tensor], programs: Sequence[Program]) -> list[tuple[int, int]]:
    """Returns (min, max) of height and width of the segment that takes the images; no bounds if none does."""
    channels = {image.shape[-3] for image in images}
    for program in programs:
        spec = program.inputs[0] if program.inputs else None
        if spec is not None and len(spec.min) == 4 and spec.min[1] in channels:
            return [
                (low, _ANY if high == UNBOUNDED else high) for low, high in zip(spec.min[2:], spec.max[2:], strict=True)
            ]
    return [(1, _ANY)] * 2


def _candidates(example: Size, bounds: Sequence[tuple[int, int]] | None) -> Iterator[Size]:
    """Yields sizes near the example's, with other ratios, inside the bounds if there are any."""
    short = min(example)
    step = 32 if short % 32 == 0 else 1
    for ratio in _RATIOS:
        size = (short, round(short / ratio)) if ratio < 1 else (round(short * ratio), short)
        height, width = (max(1, side // step * step) for side in size)
        if bounds is not None:
            height, width = (
                max(low, min(side, high)) for side, (low, high) in zip((height, width), bounds, strict=True)
            )
        yield height, width


def _seen_by_engine(detector: nn.Module, sizes: Sequence[Size]) -> Size:
    """Returns (height, width) of the batch that the detector forms from images of these sizes."""
    transform: Any = getattr(detector, "transform", None)
    if hasattr(transform, "min_size") and hasattr(transform, "image_mean"):
        channels = len(transform.image_mean)
        tensors: Tensor = transform([torch.zeros(channels, *size) for size in sizes])[0].tensors
        return tensors.shape[-2], tensors.shape[-1]
    return max((height for height, _ in sizes), default=0), max((width for _, width in sizes), default=0)


def _milliseconds(call: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    arguments = map_tensors(arguments, lambda tensor: tensor)  # own lists and dicts: it may add entries to them
    start = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - start) * 1e3
