"""The inputs of segments on calibration samples, in bounded memory: how large values get, for int8."""

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
from .recordings import HeadOperators, Recorded, recording

MOST_BYTES = 2 << 30
"""Of all recorded inputs together. Beyond that every second sample is left out, evenly over all."""


class _Thinned:
    """Keeps what fits into the memory: all samples, every second one, every fourth one, ..."""

    def __init__(self, most_bytes: int) -> None:
        self.kept: list[Any] = []
        self._sizes: list[int] = []
        self._stride, self._most = 1, most_bytes

    def takes(self, index: int) -> bool:
        return index % self._stride == 0

    def add(self, sample: Any, size: int) -> None:
        self.kept.append(sample)
        self._sizes.append(size)
        while sum(self._sizes) > self._most and len(self.kept) > 1:
            self.kept, self._sizes = self.kept[::2], self._sizes[::2]
            self._stride *= 2


def _size(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value) if not tensor.is_meta)


def _without_numbers(value: Any) -> Any:
    """Returns the same structure of tensors that have a size and no memory."""
    return map_tensors(value, lambda tensor: tensor.to("meta"))


@contextmanager
def _about(index: int) -> Iterator[None]:
    """Makes an error of the detector's own code say which sample it is about."""
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
    """Records what goes into segments on calibration samples.

    Args:
        detector: runs on each sample, in eager mode.
        names: the segments.
        samples: arguments of the detector.
        first: of ``names`` those whose inputs are needed. Those of the others, and all results, are kept without their
            numbers: what goes into a later segment of an engine comes from an earlier one.
        most_bytes: of all that is kept.

    Raises:
        OptionError: a sample that the detector does not take.
    """
    kept = _Thinned(most_bytes)
    for i, arguments in enumerate(samples):
        if not kept.takes(i):
            continue
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
    """Within it, what goes into engines is noted, by the names of their segments."""

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
    """Records what goes into the engines of a saved hybrid on calibration samples.

    Args:
        hybrid: its engines are prepared.
        segments: of the engines whose inputs are needed.
        samples: arguments of the detector.
        most_bytes: of all that is kept.

    Returns:
        The inputs of each engine, by its segments; empty for one that is not called.

    Raises:
        OptionError: a sample that the hybrid does not take.
    """
    kept = _Thinned(most_bytes)
    for i, arguments in enumerate(samples):
        if not kept.takes(i):
            continue
        with _about(i), torch.no_grad(), _EngineInputs() as inputs:
            hybrid(*map_tensors(arguments, Tensor.clone))
        wanted = [(name, tensors) for name, tensors in inputs.seen if name in segments]
        kept.add(wanted, _size([tensors for _, tensors in wanted]))
    found: dict[tuple[str, ...], list[tuple[Tensor, ...]]] = {name: [] for name in segments}
    for name, tensors in (entry for sample in kept.kept for entry in sample):
        found[name].append(tensors)
    return found
