"""Records inputs and outputs of a detector's submodules, on its example and on other inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..common.error_text import described
from ..common.errors import CaptureError
from ..common.tensor_tree import map_tensors, tensors_in
from ..torchscript.head_operators import HEAD_OPERATORS
from .observe import Observation, arguments_of, structures_of
from .probe_inputs import Sample
from .side_effects import find_effects_and_draws

RecordedCall = tuple[dict[str, Any], Any]
"""Arguments by parameter name, and the result."""

Recorded = Mapping[str, Sequence[RecordedCall]]
"""The calls of each segment in one run, by the segment's name."""


class HeadOperators(TorchDispatchMode):
    """Replaces torchvision's operators within the block by hybrid_rt's, which are faster and which the hybrid uses."""

    def __init__(self) -> None:
        """Initializes the dispatch mode."""
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operator."""
        name = operator._schema.name
        if name in HEAD_OPERATORS:
            operator = getattr(torch.ops.hybrid_rt, name.removeprefix("torchvision::"))
        return operator(*args, **(kwargs or {}))


@contextmanager
def recording(detector: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[RecordedCall]]]:
    """Records the calls of the named submodules within the block, as (arguments by parameter name, result).

    Tensors are copied, because the detector may write into them afterwards.
    """
    seen: dict[str, list[RecordedCall]] = {name: [] for name in names}
    with ExitStack() as hooks:
        for name in names:
            pending: list[dict[str, Any]] = []

            def before(
                module: nn.Module,
                positional: tuple[Any, ...],
                keyword: dict[str, Any],
                pending: list[dict[str, Any]] = pending,
            ) -> None:
                pending.append(map_tensors(arguments_of(module, positional, keyword), Tensor.clone))

            def after(
                _: nn.Module,
                __: tuple[Any, ...],
                result: Any,
                name: str = name,
                pending: list[dict[str, Any]] = pending,
            ) -> None:
                seen[name].append((pending.pop(), map_tensors(result, Tensor.clone)))

            submodule = detector.get_submodule(name)
            hooks.callback(submodule.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove)
            hooks.callback(submodule.register_forward_hook(after).remove)
        yield seen


def record_runs(detector: nn.Module, names: Sequence[str], inputs: Sequence[tuple[Any, ...]]) -> list[Recorded]:
    """Records inputs and outputs of segments on each of ``inputs``; the detector gets copies of these."""
    runs: list[Recorded] = []
    for arguments in inputs:
        with torch.no_grad(), HeadOperators(), recording(detector, names) as run:
            detector(*map_tensors(arguments, Tensor.clone))
        runs.append(run)
    return runs


def record_first(
    observation: Observation, samples: Sequence[Sample], names: Sequence[str]
) -> tuple[list[Sample], Recorded, dict[str, str], str]:
    """Records submodules on the first sample, and finds operations that an engine can't repeat.

    Returns:
        The samples, with the example instead of the first one if the detector does not accept that; the recording; the
        findings and the operator that draws random numbers, see :class:`hybrid_rt.capture.side_effects.SideEffects`.
    """
    on_example = Sample(observation.detector, observation.example, required=True)
    for first in samples[:1] if samples[0].required else [samples[0], on_example]:
        operators = nullcontext() if first is on_example else HeadOperators()
        try:
            with operators, recording(first.detector, names) as recorded:
                findings, drawn = find_effects_and_draws(first.detector, first.arguments)
                return [first, *samples[1:]], recorded, findings, drawn
        except Exception as error:
            if first.required:
                _raise_of_sample(observation, first, error)
            _warn_of_sample(error)
    raise AssertionError("the last of them is required")


def varying_constants(observation: Observation, recorded: Recorded) -> dict[str, str]:
    """Finds submodules whose inputs contain numbers that differ from those on the example.

    Returns:
        The findings, by the submodule's first name.
    """
    found = {}
    for name, calls in recorded.items():
        seen = [call.inputs for call in observation.calls(name)]
        for arguments, _ in calls if seen else []:
            given = [(key, value) for key, structure in structures_of(arguments, name).items()
                     for _, value in structure.constants(key)]  # fmt: skip
            if given != [(key, value) for key, structure in seen[0].items() for _, value in structure.constants(key)]:
                found[observation.first_name(name)] = "numbers among its inputs that vary from call to call"
    return found


def record_samples(
    observation: Observation, samples: Sequence[Sample], names: Sequence[str], first: Recorded
) -> list[Recorded]:
    """Records segments on each sample; ``first``: the existing recording of the first one."""
    runs: list[Recorded] = [first] if set(names) <= set(first) else []
    for sample in samples[len(runs) :]:
        try:
            types = observation.types.observing()  # of code that the example's size does not reach
            with torch.no_grad(), HeadOperators(), types, recording(sample.detector, names) as run:
                sample.detector(*map_tensors(sample.arguments, Tensor.clone))
        except Exception as error:
            # The detector may refuse a derived size or a black image; the example is then enough.
            if sample.required:
                _raise_of_sample(observation, sample, error)
            _warn_of_sample(error)
            continue
        runs.append(run)
    if not any(all(run[name] for name in names) for run in runs):
        with torch.no_grad(), recording(observation.detector, names) as run:
            observation.detector(*map_tensors(observation.example, Tensor.clone))
        runs.append(run)
    return runs


def _raise_of_sample(observation: Observation, sample: Sample, error: Exception) -> NoReturn:
    """Raises the detector's error if the sample is the example, else an error that names the size in ``shapes``."""
    if isinstance(error, CaptureError) or sample.arguments is observation.example:
        raise error
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors_in(sample.arguments))
    raise CaptureError.make(
        "capture",
        "shapes",
        expected=f"a detector that accepts inputs of {shapes}, a size in shapes=",
        got=described(error),
        remedy="Use other sizes, or omit shapes= to use the example's.",
        code="sizes-not-taken",
    ) from error


def _warn_of_sample(error: Exception) -> None:
    warnings.warn(
        "hybrid_rt[convert]: the detector was run on another image than the example, to see which dimensions vary: "
        f"expected detections, got {described(error)}. The varying dimensions are determined "
        "without it. If the bundle refuses a size later, pass shapes=[(height, width), ...].",
        RuntimeWarning,
        stacklevel=4,
    )
