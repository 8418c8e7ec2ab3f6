"""What goes in and out of a detector's submodules on its example and on other pictures, to capture segments from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .observe import HeadOperators, Observation, recording, watch
from .probe_inputs import Sample
from .program import Recorded
from .segments import use_of
from .shapes import Shapes, ranges_of


def ranges_on(
    detector: nn.Module, example_inputs: tuple[Any, ...], observation: Observation, name: str, shapes: Shapes | None
) -> list[list[tuple[int, int]]] | None:
    """The ranges of the segment's inputs if it is fed with pictures alone, in one call a forward."""
    use = use_of(detector, observation, name)
    calls = use.calls if use else []
    if len(calls) != 1 or calls[0] is None:
        return None
    entries = [value for entry in example_inputs for value in (entry if isinstance(entry, list) else [entry])]
    channels = {value.shape[-3] for value in entries if isinstance(value, Tensor) and value.dim() >= 3}
    found = []
    for shape, _ in calls[0].input_tensors:
        if shapes is not None and not hasattr(detector, "transform") and len(shape) == 4 and shape[1] not in channels:
            return None  # features: their sizes follow from the pictures'
        ranges = ranges_of(detector, shape, shapes)
        if ranges is None:
            return None
        found.append(ranges)
    return found


def watched(
    detector: nn.Module, example_inputs: tuple[Any, ...], samples: list[Sample], names: Sequence[str]
) -> tuple[Recorded, dict[str, str]]:
    """What goes in and out of submodules on the first sample, and what they do that an engine can't repeat.

    A sample that the detector does not take is put out of the list, in favour of the example.
    """
    try:
        with HeadOperators(), recording(samples[0].detector, names) as first:
            return first, watch(samples[0].detector, samples[0].arguments)
    except Exception as error:
        if samples[0].required:
            raise
        _warn_of_sample(error)
        samples[0] = Sample(detector, example_inputs, required=True)
        with recording(detector, names) as first:
            return first, watch(detector, example_inputs)


def recorded(
    detector: nn.Module,
    example_inputs: tuple[Any, ...],
    samples: Sequence[Sample],
    groups: Sequence[Sequence[str]],
    first: Recorded,
) -> list[Recorded]:
    """What goes in and out of the segments on each sample; ``first``: what was recorded on the first one already."""
    names = [name for members in groups for name in members]
    runs: list[Recorded] = [first] if set(names) <= set(first) else []
    for sample in samples[len(runs) :]:
        try:
            with torch.no_grad(), HeadOperators(), recording(sample.detector, names) as run:
                sample.detector(*sample.arguments)
        except Exception as error:
            # A size of ours, or a black picture, that the detector does not take: its own example will do.
            if sample.required:
                raise
            _warn_of_sample(error)
            continue
        runs.append(run)
    if not any(all(run[name] for name in names) for run in runs):
        with torch.no_grad(), recording(detector, names) as run:
            detector(*example_inputs)
        runs.append(run)
    return runs


def _warn_of_sample(error: Exception) -> None:
    warnings.warn(
        "hybrid_rt[convert]: the detector was run on another picture than the example, to see which dimensions vary: "
        f"expected detections, got {type(error).__name__}: {error}. What varies is found without it: name the sizes "
        "that will be seen, shapes=[(height, width), ...], if one of them is refused later.",
        RuntimeWarning,
        stacklevel=4,
    )
