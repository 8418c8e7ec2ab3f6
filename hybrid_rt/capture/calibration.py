"""Records the inputs of segments on calibration samples for int8, in bounded memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..common.error_text import described
from ..common.errors import OptionError
from ..common.tensor_tree import map_tensors, tensors_in
from .call_recording import HeadOperators, Recorded, recording

MOST_BYTES = 2 << 30
"""Memory limit of all recorded inputs. Beyond it, every second sample is dropped, so that the rest stay spread out."""


class _Thinned:
    """Keeps as many evenly spaced samples as fit into the memory: all, every second, every fourth, ..."""

    def __init__(self, most_bytes: int) -> None:
        self.kept: list[Any] = []
        self._sizes: list[int] = []
        self._stride, self._most = 1, most_bytes

    def taken(self, samples: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yields the samples that are kept, as far as is known when it is their turn, with their indices."""
        for index, sample in enumerate(samples):
            if index % self._stride == 0:
                yield index, sample

    def add(self, sample: Any, size: int) -> None:
        self.kept.append(sample)
        self._sizes.append(size)
        while sum(self._sizes) > self._most and len(self.kept) > 1:
            self.kept, self._sizes = self.kept[::2], self._sizes[::2]
            self._stride *= 2


def _size(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value) if not tensor.is_meta)


def _without_numbers(value: Any) -> Any:
    """Returns the value with its tensors replaced by ones on the device "meta", which need no memory."""
    return map_tensors(value, lambda tensor: tensor.to("meta"))


@contextmanager
def _about(index: int) -> Iterator[None]:
    """Converts an error of the detector's own code to one that names the sample."""
    try:
        yield
    except Exception as error:  # whatever the user's code raises
        raise OptionError.make(
            "convert",
            f"calibration_data[{index}]",
            expected="arguments that the detector takes, like the example's",
            got=described(error),
            remedy="Pass typical images, in the form of the example.",
            code="example-not-arguments",
        ) from error


def record_calibration(
    detector: nn.Module,
    names: Sequence[str],
    samples: Sequence[tuple[Any, ...]],
    first: Collection[str],
    most_bytes: int = MOST_BYTES,
) -> list[Recorded]:
    """Records the inputs of segments on calibration samples.

    Args:
        detector: the detector; it runs on each sample in eager mode.
        names: the segments.
        samples: arguments of the detector.
        first: those of ``names`` whose inputs are needed. The inputs of the others, and all results, are kept without
            values, because a later segment of an engine gets its inputs from an earlier one.
        most_bytes: memory limit of the recordings.

    Raises:
        OptionError: The detector does not accept a sample.
    """
    kept = _Thinned(most_bytes)
    for i, arguments in kept.taken(samples):
        with _about(i), torch.no_grad(), HeadOperators(), recording(detector, names) as run:
            detector(*map_tensors(arguments, Tensor.clone))
        slim = {
            name: [
                (inputs if name in first else _without_numbers(inputs), _without_numbers(result))
                for inputs, result in calls
            ]
            for name, calls in run.items()
        }
        kept.add(slim, _size([[inputs for inputs, _ in calls] for calls in slim.values()]))
    return list(kept.kept)


class _EngineInputs(TorchDispatchMode):
    """Records the inputs of engines that run within the block, by the names of their segments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[tuple[str, ...], tuple[Tensor, ...]]] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if operator._schema.name == "hybrid_rt::run_engine":
            engine, inputs = args
            self.seen.append((tuple(engine.segments()), tuple(tensor.clone() for tensor in inputs)))
        return operator(*args, **(kwargs or {}))


def record_engine_inputs(
    hybrid: nn.Module,
    segments: Collection[tuple[str, ...]],
    samples: Sequence[tuple[Any, ...]],
    most_bytes: int = MOST_BYTES,
) -> dict[tuple[str, ...], list[tuple[Tensor, ...]]]:
    """Records the inputs of a saved hybrid's engines on calibration samples.

    Args:
        hybrid: the hybrid, with prepared engines.
        segments: the segments of each engine whose inputs are needed.
        samples: arguments of the detector.
        most_bytes: memory limit of the recordings.

    Returns:
        The inputs of each engine, by its segments; empty for an engine that is not called.

    Raises:
        OptionError: The hybrid does not accept a sample.
    """
    kept = _Thinned(most_bytes)
    for i, arguments in kept.taken(samples):
        with _about(i), torch.no_grad(), _EngineInputs() as inputs:
            hybrid(*map_tensors(arguments, Tensor.clone))
        wanted = [(name, tensors) for name, tensors in inputs.seen if name in segments]
        kept.add(wanted, _size([tensors for _, tensors in wanted]))
    found: dict[tuple[str, ...], list[tuple[Tensor, ...]]] = {name: [] for name in segments}
    for name, tensors in (entry for sample in kept.kept for entry in sample):
        found[name].append(tensors)
    return found
