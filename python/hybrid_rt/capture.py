"""Captured segments: what the backends' compilers take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from . import torchscript
from .errors import CaptureError
from .graph_digest import graph_digest
from .specs import UNBOUNDED, TensorSpec, dtype_name
from .structure import Flattened, Structure, structure_of


@dataclass
class Calls:
    """What went through a submodule while the detector ran: arguments by parameter name, and results."""

    arguments: list[dict[str, Any]] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Program:
    """A captured segment: a function of flat tensors with example inputs and the range of each dimension.

    The examples are on the CPU; a dimension whose range is one size is compiled for that size.
    """

    name: str
    module: Flattened
    examples: tuple[Tensor, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_structures: Mapping[str, Structure]
    output_structure: Structure
    calls: Calls

    @functools.cached_property
    def _traced(self) -> torch.jit.ScriptModule:
        return torchscript.trace(self.module, self.examples, self.name)

    def traced(self) -> torch.jit.ScriptModule:
        """The segment as a TorchScript module, recorded on the examples (made when first asked for)."""
        return self._traced

    @functools.cached_property
    def digest(self) -> str:
        """Of the traced graph and the weights, see :func:`graph_digest`."""
        return graph_digest(self.traced())


def record(detector: nn.Module, names: Sequence[str], inputs: Sequence[tuple[Any, ...]]) -> dict[str, Calls]:
    """Runs the detector on each of ``inputs`` and keeps what goes in and out of the named submodules.

    Raises:
        CaptureError: a submodule is never called, or takes what has no name.
    """
    calls = {name: Calls() for name in names}
    handles = []
    for name in names:
        submodule = detector.get_submodule(name)
        signature = inspect.signature(submodule.forward)

        def keep_arguments(
            _: nn.Module,
            positional: tuple[Any, ...],
            keyword: dict[str, Any],
            calls: Calls = calls[name],
            signature: inspect.Signature = signature,
        ) -> None:
            calls.arguments.append(_copied(dict(signature.bind(*positional, **keyword).arguments)))

        def keep_result(_: nn.Module, __: tuple[Any, ...], result: Any, calls: Calls = calls[name]) -> None:
            calls.results.append(_copied(result))

        handles.append(submodule.register_forward_pre_hook(keep_arguments, with_kwargs=True))
        handles.append(submodule.register_forward_hook(keep_result))
    try:
        with torch.no_grad():
            for example in inputs:
                detector(*example)
    finally:
        for handle in handles:
            handle.remove()
    for name, seen in calls.items():
        if not seen.arguments:
            raise CaptureError.make(
                "capture",
                f"segment '{name}'",
                expected="the detector to call it",
                got="no call on the example inputs",
                remedy="Name a submodule whose forward runs in eval mode.",
            )
    return calls


def _copied(value: Any) -> Any:
    """The value with its tensors copied: the detector may write into them in place."""
    return tree_map_only(Tensor, Tensor.clone, value)


def capture(detector: nn.Module, name: str, calls: Calls, ranges: Sequence[tuple[int, int]] | None = None) -> Program:
    """Makes a program of what was recorded.

    Args:
        detector: the detector.
        name: the segment's dotted path.
        calls: what :func:`record` saw; the first call becomes the example. A call at a second size is added if
            ``ranges`` allow one, to see which dimensions of the outputs vary, and to compare on.
        ranges: (min, max) of each dimension of the one input. None: what varies between the calls is free, from 1
            up, and the rest is fixed.

    Raises:
        CaptureError: inputs or outputs that are not tensors, or that change their structure between calls.
    """
    where = f"segment '{name}'"
    if ranges is not None and any(low != high for low, high in ranges):
        _call_at_second_size(detector.get_submodule(name), calls, ranges)
    inputs = {key: structure_of(value, f"{where}, input '{key}'") for key, value in calls.arguments[0].items()}
    output = structure_of(calls.results[0], f"{where}, output")
    for arguments, result in zip(calls.arguments[1:], calls.results[1:], strict=True):
        again = {key: structure_of(value, f"{where}, input '{key}'") for key, value in arguments.items()}
        if again != inputs or structure_of(result, f"{where}, output") != output:
            raise CaptureError.make(
                "capture",
                where,
                expected="the same structure of inputs and outputs in every call",
                got="two calls that differ",
                remedy="Name a smaller submodule in segments=.",
            )
    flat_inputs = [_flat(inputs, arguments) for arguments in calls.arguments]
    flat_outputs = [tuple(output.flatten(result)) for result in calls.results]
    input_names = [label for key, structure in inputs.items() for label in structure.names(key)]
    input_specs = _specs(input_names, flat_inputs, ranges)
    free = any(not spec.is_static for spec in input_specs)
    return Program(
        name=name,
        module=Flattened(detector.get_submodule(name), inputs, output).eval(),
        examples=tuple(tensor.detach().cpu().clone() for tensor in flat_inputs[0]),
        inputs=input_specs,
        outputs=_specs(list(output.names("")) if output.count > 1 else ["output"], flat_outputs, None, free),
        input_structures=inputs,
        output_structure=output,
        calls=calls,
    )


def _call_at_second_size(segment: nn.Module, calls: Calls, ranges: Sequence[tuple[int, int]]) -> None:
    """Calls the segment on the example at about half its size, and one picture more, inside the ranges."""
    ((parameter, example),) = calls.arguments[0].items()
    wanted = [example.shape[0] + 1, example.shape[1], *(_half(size) for size in example.shape[2:])]
    batch, _, height, width = (
        max(low, size if high == UNBOUNDED else min(size, high))
        for size, (low, high) in zip(wanted, ranges, strict=True)
    )
    smaller = nn.functional.interpolate(example, size=(height, width), mode="bilinear", align_corners=False)
    second = smaller[:1].expand(batch, -1, -1, -1).contiguous()
    with torch.no_grad():
        calls.results.append(segment(second))
    calls.arguments.append({parameter: second})


def _half(size: int, multiple: int = 32) -> int:
    """Half of a side, in whole strides of a usual backbone."""
    return max(multiple, size // 2 // multiple * multiple)


def _flat(structures: Mapping[str, Structure], arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return tuple(tensor for key, structure in structures.items() for tensor in structure.flatten(arguments[key]))


def _specs(
    names: Sequence[str],
    calls: Sequence[tuple[Tensor, ...]],
    ranges: Sequence[tuple[int, int]] | None,
    free: bool = True,
) -> tuple[TensorSpec, ...]:
    """Specs from the sizes seen; ``free``: a dimension that varied between calls has no fixed range."""
    specs = []
    for i, name in enumerate(names):
        first = calls[0][i]
        seen = [tuple(call[i].shape) for call in calls]
        if any(len(shape) != first.dim() for shape in seen):
            raise CaptureError.make(
                "capture", f"tensor '{name}'", expected="one rank in every call", got=f"shapes {seen}"
            )
        low = list(first.shape)
        high = list(first.shape)
        for d in range(first.dim()):
            sizes = {shape[d] for shape in seen}
            if ranges is not None and i == 0:
                low[d], high[d] = ranges[d]
            elif free and len(sizes) > 1:
                low[d], high[d] = min(1, *sizes), UNBOUNDED
        specs.append(TensorSpec(name, dtype_name(first.dtype), tuple(low), tuple(first.shape), tuple(high)))
    return tuple(specs)
