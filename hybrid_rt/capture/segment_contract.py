"""Contract between a head and the segment before it, and the comparison with another module's output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from ..common.specs import TensorSpec, dtype_name
from ..common.structure import Structure, structure_of
from .derived_shapes import second_shapes, tile_to_shape
from .observe import arguments_of


@dataclass(frozen=True)
class Contract:
    """Inputs and outputs of a saved segment; an output's name consists of the keys and indices of its path."""

    segment: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Features:
    """Inputs and outputs of a module, and its flat calls (inputs, outputs), at two sizes if the contract has two."""

    inputs: Mapping[str, Structure]
    output: Structure
    calls: tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], ...]


def examples_for(contract: Contract) -> tuple[Tensor, ...]:
    """Returns noise of the size that the saved engine was told to expect; it is the same in each process."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(spec.opt, generator=generator).to(dtype)
        if (dtype := getattr(torch, spec.dtype)).is_floating_point
        else torch.zeros(spec.opt, dtype=dtype)
        for spec in contract.inputs
    )


def features_of(module: nn.Module, arguments: tuple[Any, ...], contract: Contract) -> tuple[Features | None, list[str]]:
    """Runs a module at two sizes and compares its outputs with the contract.

    Args:
        module: the new segment, in eval mode.
        arguments: its positional arguments.
        contract: the saved segment's.

    Returns:
        The observed features (None if the module does not run), and each mismatch as "WHAT: expected X, got Y".

    Raises:
        CaptureError: The module's arguments or result are not tensors in lists, tuples and dicts.
    """
    taken = ", ".join(f"{spec.name}: {spec.sizes} {spec.dtype}" for spec in contract.inputs)
    try:
        named = arguments_of(module, arguments, {})
    except TypeError as error:
        return None, [f"inputs: expected a forward that takes {taken}, got {type(module).__name__}.forward ({error})"]
    inputs = {key: structure_of(value, f"{_where(contract)}, input '{key}'") for key, value in named.items()}
    first = tuple(tensor for key, structure in inputs.items() for tensor in structure.flatten(named[key]))
    mismatches = _input_mismatches(inputs, first, contract)
    if mismatches:
        return None, mismatches
    ranges = [list(zip(spec.min, spec.max, strict=True)) for spec in contract.inputs]
    shapes = second_shapes([tensor.shape for tensor in first], ranges)
    sizes = [first] + ([tuple(map(tile_to_shape, first, shapes))] if shapes else [])
    calls = []
    output: Structure | None = None
    for tensors in sizes:
        remaining = iter(tensors)
        try:
            with torch.no_grad():
                result = module(**{key: structure.unflatten(remaining) for key, structure in inputs.items()})
        except Exception as error:  # whatever a user's module raises
            given = ", ".join(f"{_sizes(tensor.shape)} {dtype_name(tensor.dtype)}" for tensor in tensors)
            text = (str(error).strip() or "no message").splitlines()[0]
            return None, [f"inputs: expected a module that takes {given}, got {type(error).__name__}: {text}"]
        found = structure_of(result, f"{_where(contract)}, output")
        if output is not None and found != output:
            return None, ["outputs: expected the same structure at each size, got two that differ"]
        output = found
        calls.append((tensors, tuple(tensor.detach() for tensor in found.flatten(result))))
    assert output is not None
    return Features(inputs, output, tuple(calls)), _output_mismatches(output, calls, contract)


def _where(contract: Contract) -> str:
    return f"segment '{contract.segment}'"


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"


def _input_mismatches(inputs: Mapping[str, Structure], tensors: Sequence[Tensor], contract: Contract) -> list[str]:
    """Returns the mismatches of the inputs; a single input may have any name."""
    if len(tensors) != len(contract.inputs):
        return [f"inputs: expected {len(contract.inputs)} tensors, got {len(tensors)}"]
    names = [label for key, structure in inputs.items() for label in structure.names(key)]
    mismatches = []
    if len(inputs) > 1 and names != [spec.name for spec in contract.inputs]:
        mismatches.append(f"inputs: expected {_listed(spec.name for spec in contract.inputs)}, got {_listed(names)}")
    for spec, tensor in zip(contract.inputs, tensors, strict=True):
        if not spec.holds(tensor.shape) or dtype_name(tensor.dtype) != spec.dtype:
            mismatches.append(
                f"example for input '{spec.name}': expected {spec.sizes} {spec.dtype}, "
                f"got {_sizes(tensor.shape)} {dtype_name(tensor.dtype)}"
            )
    return mismatches


def _output_mismatches(
    output: Structure, calls: Sequence[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]], contract: Contract
) -> list[str]:
    names = list(output.names("")) if output.count > 1 else ["output"]
    wanted = [spec.name for spec in contract.outputs]
    mismatches = []
    if len(names) != len(wanted):
        mismatches.append(
            f"number of outputs: expected {len(wanted)} ({_listed(wanted)}), got {len(names)} ({_listed(names)})"
        )
    elif names != wanted:
        order = "order" if sorted(names) == sorted(wanted) else "names"
        mismatches.append(f"{order} of outputs: expected {_listed(wanted)}, got {_listed(names)}")
    by_position = len(names) == len(wanted) and not set(names) & set(wanted)
    for i, spec in enumerate(contract.outputs):
        k = i if by_position else names.index(spec.name) if spec.name in names else None
        if k is not None:
            mismatches += _mismatches_of(spec, contract.inputs[0], [(ins[0], outs[k]) for ins, outs in calls])
    return mismatches


def _mismatches_of(spec: TensorSpec, source: TensorSpec, calls: Sequence[tuple[Tensor, Tensor]]) -> list[str]:
    """Returns the mismatches of one output; ``calls`` has the first input and this output at each size."""
    name = f"output '{spec.name}'"
    shape = calls[0][1].shape
    mismatches = []
    dtype = dtype_name(calls[0][1].dtype)
    if dtype != spec.dtype:
        mismatches.append(f"{name}, dtype: expected {spec.dtype}, got {dtype}")
    if len(shape) != len(spec.min):
        return [*mismatches, f"{name}, dimensions: expected {len(spec.min)} ({spec.sizes}), got {len(shape)}"]
    are_images = len(shape) == len(source.min) == 4
    wanted, got = [], []
    for d in range(len(shape)):
        # A size that depends on a free size of the input may be fixed in the file, if it did not vary in any run.
        follows = d < len(source.min) and source.min[d] != source.max[d] and (d == 0 or (are_images and d > 1))
        is_fixed = spec.min[d] == spec.max[d]
        is_batch = d == 0 and follows and are_images
        if is_fixed and not is_batch and all(made.shape[d] == spec.min[d] for _, made in calls):
            continue
        if are_images and d > 1:
            expected = _strides(source.opt[d], spec.opt[d])
            found = frozenset.intersection(*(_strides(given.shape[d], made.shape[d]) for given, made in calls))
            if not expected & found:
                wanted.append(_shown(expected))
                got.append(_shown(found))
                continue
        if is_fixed and not follows:
            what = "channels" if are_images and d == 1 else f"size of dimension {d}"
            mismatches.append(f"{name}, {what}: expected {spec.min[d]}, got {shape[d]}")
        elif d == 0:
            mismatches += [
                f"{name}, batch: expected {given.shape[0] * spec.opt[0] // source.opt[0]} of {given.shape[0]}, "
                f"got {made.shape[0]}"
                for given, made in calls
                if made.shape[0] * source.opt[0] != given.shape[0] * spec.opt[0]
            ][-1:]
    if wanted:
        texts = (" x ".join(dict.fromkeys(values)) for values in (wanted, got))
        mismatches.append("{}, stride: expected {}, got {}".format(name, *texts))
    return mismatches


def _strides(given: int, made: int) -> frozenset[Fraction]:
    """Returns every stride that divides ``given`` pixels into ``made`` cells, for any rounding of the last cell."""
    if made < 1:
        return frozenset()
    whole = range(given // (made + 1) + 1, math.ceil(given / (made - 1)) if made > 1 else 2 * given + 1)
    return frozenset({Fraction(given, made), *map(Fraction, whole)})


def stride_of(source: TensorSpec, output: TensorSpec) -> str:
    """Returns the input pixels per output cell as text; empty if these are not images and features."""
    if not len(source.opt) == len(output.opt) == 4:
        return ""
    strides = (_shown(_strides(given, made)) for given, made in zip(source.opt[2:], output.opt[2:], strict=True))
    return " x ".join(dict.fromkeys(strides))


def _shown(strides: frozenset[Fraction]) -> str:
    """Returns the most likely stride: a power of two, else a whole number."""
    return str(
        min(strides, key=lambda s: (s.denominator > 1, s.numerator.bit_count() > 1, s), default="none at two sizes")
    )


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
