"""Captured segments, the input of the backends' compilers."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common.error_text import described
from ..common.errors import CaptureError, SegmentError
from ..common.specs import UNBOUNDED, TensorSpec, dtype_name
from ..common.structure import Flattened, Structure, structure_of
from ..torchscript import jit
from ..torchscript.graph_digest import graph_digest
from . import onnx_export, torch_export
from .calibration import record_calibration
from .call_recording import Recorded, record_runs
from .derived_shapes import second_shapes, tile_to_shape
from .export_conditions import holds
from .exported_segment import ExportedSegment, exported_segment
from .observe import Observation, observe, structures_of
from .wide_integers import wide_integers

_FLOAT_SIZES = "sizes computed from fractions, as floats of 64 bits"

Ranges = Sequence[tuple[int, int]]
"""(min, max) of each dimension of a tensor."""


@dataclass(frozen=True)
class Member:
    """One segment of a program.

    Attributes:
        name: its dotted path.
        module: the submodule.
        inputs: forward's parameters and their structures.
        output: the structure of its result.
        sources: index of the program's output that each of its input tensors is; empty for the first member, which
            takes the program's inputs.
        first: index of its first output tensor among the program's outputs.
        returned: its result on the example with empty tensors, which preserves the classes of its containers.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Structure]
    output: Structure
    sources: tuple[int, ...]
    first: int
    returned: Any = None

    def misfit(self, arguments: Iterable[str]) -> SegmentError:
        """Returns the error for a call whose ``arguments`` (by name) differ in structure from those on the example."""
        error = SegmentError.make(
            "capture",
            f"segment '{self.name}'",
            expected=f"the arguments of the first call ({', '.join(self.inputs)}), with as many tensors",
            got=f"a different {', '.join(arguments)}",
            remedy="Code that checks for tracing may cause this. Name other submodules in segments=.",
            code="calls-differ",
        )
        error.segment = self.name
        return error

    @property
    def flattened(self) -> Flattened:
        """Returns the submodule as a function of flat tensors."""
        return Flattened(self.module, self.inputs, self.output).eval()


@dataclass(frozen=True)
class FlatCall:
    """Inputs and outputs of one call of a program, as flat tensors."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Program:
    """A captured segment, or several that feed each other directly: a function of flat tensors.

    Attributes:
        name: dotted paths of the segments, joined by "+".
        members: the segments, in the order in which they are called.
        inputs: specs of the first member's inputs. A dimension whose range is one size is compiled for that size.
        outputs: specs of the outputs of all members, in order.
        calls: recorded calls; the first one is the example for tracing.
        calibration: inputs on which a compiler for int8 may measure the ranges of values.
        sizes: calls at further sizes, the most informative first, which are compared within the budget.
        by_export: true if its TorchScript is generated from an exported program, false if torch.jit.trace records it.
    """

    name: str
    members: tuple[Member, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calls: tuple[FlatCall, ...]
    calibration: tuple[tuple[Tensor, ...], ...] = ()
    sizes: tuple[FlatCall, ...] = ()
    by_export: bool = False

    @property
    def segments(self) -> tuple[str, ...]:
        """Returns the dotted paths of its members."""
        return tuple(member.name for member in self.members)

    @property
    def examples(self) -> tuple[Tensor, ...]:
        """Returns inputs, on the CPU, for a compiler that runs the segment once."""
        return self.calls[0].inputs

    @functools.cached_property
    def _traced(self) -> torch.jit.ScriptModule:
        if self.by_export:
            traced = [segment.module for segment in self._exported_members]
        else:
            traced = [
                jit.trace(member.flattened, self.inputs_of(member, self.calls[0]), member.name)
                for member in self.members
            ]
        return jit.chain(traced, len(self.inputs), [member.sources for member in self.members], self.counts)

    @functools.cached_property
    def _exported_members(self) -> list[ExportedSegment]:
        """Exports each member; a later one for the output sizes of those before it."""
        found = []
        for member in self.members:
            specs = [self.outputs[i] for i in member.sources] if member.sources else list(self.inputs)
            seen = [self.inputs_of(member, call) for call in self.calls]
            inputs = self.inputs_of(member, self.calls[0])
            dtypes = [self.calls[0].outputs[member.first + i].dtype for i in range(member.output.count)]
            chain = torch_export.Chain([member.flattened], [()], dtypes).eval()
            exported = torch_export.export(member.name, chain, inputs, specs, _least(specs, seen))
            found.append(exported_segment(exported, specs))
        return found

    def conditions(self, member: Member) -> list[tuple[str, str]]:
        """Returns the conditions of a member's TorchScript on its input sizes, beyond their ranges.

        See :func:`hybrid_rt.capture.torch_export.conditions`. The head checks them at each call. Conditions that a
        recorded call violates are left out, because the example's branch is right for that call too (e.g. padding by
        0).

        Args:
            member: one of ``members``.
        """
        if not self.by_export:
            return []
        seen = [[tensor.shape for tensor in self.inputs_of(member, call)] for call in (*self.calls, *self.sizes)]
        found = self._exported_members[self.members.index(member)].conditions
        return [(text, words) for text, words in found if all(holds(words, shapes) for shapes in seen)]

    @property
    def has_float_sizes(self) -> bool:
        """Returns true if it is known to compute sizes from fractions, which requires 64-bit floats."""
        return self.by_export and any(segment.float_sizes for segment in self._exported_members)

    @staticmethod
    def inputs_of(member: Member, call: FlatCall) -> tuple[Tensor, ...]:
        """Returns the inputs of a member in a call.

        Args:
            member: one of ``members``.
            call: a call of the whole program.
        """
        return tuple(call.outputs[i] for i in member.sources) if member.sources else call.inputs

    @property
    def counts(self) -> list[int]:
        """Returns the number of tensors that each member returns."""
        return [member.output.count for member in self.members]

    def traced(self) -> torch.jit.ScriptModule:
        """Returns the program as a TorchScript module, recorded on the examples at the first call.

        It takes the inputs one by one and returns a tuple; ``member_0``, ``member_1``, ... are the segments in it,
        each frozen, as functions of flat tensors.
        """
        return self._traced

    def operations(self) -> list[tuple[str, str, str]]:
        """Returns torch's operations in the traced module, in order: name, calling submodule, line."""
        return [
            operation
            for i, member in enumerate(self.members)
            for operation in jit.operations_of(getattr(self.traced(), f"member_{i}"), member.name)
        ]

    def wide_numbers(self) -> str:
        """Returns the operation that needs 64-bit numbers, with its line; empty if there is none."""
        for spec in (*self.inputs, *self.outputs):
            if spec.dtype == "float64":
                return f"'{spec.name}' in float64"
        if self.has_float_sizes:
            return _FLOAT_SIZES
        return wide_integers(self.run, (call.inputs for call in self.calls), [spec.name for spec in self.outputs])

    def onnx(self) -> bytes:
        """Returns the traced module as a serialized ONNX model with its weights (:func:`onnx_export.export_to_onnx`).

        Raises:
            CaptureError: ONNX lacks an operation, or would compute sizes in 32 bits.
        """
        if self.has_float_sizes:
            raise CaptureError.make(
                "capture",
                f"segment '{self.name}'",
                expected="sizes that ONNX computes as torch does",
                got=_FLOAT_SIZES,
                remedy="Compute them in the detector and pass them on, or use an engine with 64-bit arithmetic "
                "(aot_inductor, torchscript).",
                code="dtype-not-in-engine",
            )
        return onnx_export.export_to_onnx(self.traced(), self.examples, self.inputs, self.outputs, self.name)

    def chain(self, inside: torch.dtype | None = None) -> torch_export.Chain:
        """Returns the program as a Python module of flat tensors.

        Args:
            inside: see :meth:`exported`.
        """
        chain: torch_export.Chain = torch_export.Chain(
            [member.flattened for member in self.members],
            [member.sources for member in self.members],
            [tensor.dtype for tensor in self.calls[0].outputs],
            inside,
        ).eval()
        return chain

    def exported(self, inside: torch.dtype | None = None) -> torch.export.ExportedProgram:
        """Returns the program, exported at each call, as a function of flat tensors with symbolic free dimensions.

        Args:
            inside: the dtype that replaces float32 inside, including the weights; inputs and outputs keep theirs.

        Raises:
            CaptureError: torch.export refuses the segment, or fixes a free dimension.
        """
        least = _least(self.inputs, [call.inputs for call in self.calls])
        return torch_export.export(self.name, self.chain(inside), self.examples, self.inputs, least)

    @functools.cached_property
    def digest(self) -> str:
        """Returns the digest of the traced graph and the weights, see :func:`graph_digest`."""
        return graph_digest(self.traced())

    @functools.cached_property
    def calibration_digest(self) -> str:
        """Returns the digest of the calibration inputs."""
        digest = hashlib.sha256()
        for tensor in itertools.chain.from_iterable(self.calibration):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the outputs of the detector's own segments.

        Args:
            inputs: the first member's tensors, on the CPU.
        """
        return _run(self.members, inputs)


def _least(specs: Sequence[TensorSpec], seen: Sequence[tuple[Tensor, ...]]) -> list[list[int]]:
    """Returns the smallest size of each dimension that must work.

    A minimum of 0 or 1 may be a guess (see _specs), so a segment may refuse sizes below those that were observed.
    """
    return [
        [low if low > 1 else max(low, min(inputs[i].shape[d] for inputs in seen)) for d, low in enumerate(spec.min)]
        for i, spec in enumerate(specs)
    ]


def _run(members: Sequence[Member], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] = ()
    with torch.no_grad():
        for member in members:
            outputs += member.flattened(*([outputs[i] for i in member.sources] if member.sources else inputs))
    return outputs


def capture(
    observation: Observation,
    names: Sequence[str],
    runs: Sequence[Recorded],
    ranges: Sequence[Ranges] | None = None,
    calibration: Sequence[Recorded] = (),
    sizes: Sequence[Recorded] = (),
) -> Program:
    """Captures segments that feed each other directly as one program.

    Args:
        observation: the detector's run on its example; compilers optimize for its sizes.
        names: the segments, in the order in which they are called: one, or several as :func:`segments.fuse_groups`
            grouped them.
        runs: recorded calls at other sizes. Those outside ``ranges`` are left out.
        ranges: (min, max) of each dimension of each input, or of the first inputs only. For the others, or for all
            if None, dimensions that vary between the calls are free, and the others are fixed.
        calibration: recorded calls for a compiler that calibrates int8. Those outside ``ranges`` are left out.
        sizes: recorded calls at further sizes, for comparisons. Those outside ``ranges`` are left out.

    Raises:
        CaptureError: The structure of inputs or outputs differs between calls, or no call is inside the ranges.
    """
    members = members_of(observation, names)
    calls = [call for run in runs for call in _flat_calls(members, run) if _inside(call, ranges)]
    if ranges is not None:
        calls += _calls_at_second_size(members, calls, ranges)
    if not calls:
        raise CaptureError.make(
            "capture",
            f"segment '{'+'.join(names)}'",
            expected="a call within the ranges of shapes=",
            got="none",
            remedy="Widen the ranges, or use an example inside them.",
            code="sizes-not-taken",
        )
    further = [call for run in sizes for call in _flat_calls(members, run) if _inside(call, ranges)]
    on_example = [observation.calls(name) for name in names]
    seen_inputs = [call.input_tensors for call in on_example[0]] + [_meta(call.inputs) for call in (*calls, *further)]
    # A program of several segments has one call per run; a program of one segment may have more.
    seen_outputs = [
        list(itertools.chain.from_iterable(call.output_tensors for call in each))
        for each in zip(*on_example, strict=True)
    ] + [_meta(call.outputs) for call in (*calls, *further)]
    input_names = [label for key, structure in members[0].inputs.items() for label in structure.names(key)]
    inputs = _specs(input_names, seen_inputs, ranges)
    free = any(not spec.is_static for spec in inputs)
    return Program(
        name="+".join(names),
        members=members,
        inputs=inputs,
        outputs=_specs(_output_names(members), seen_outputs, None, free),
        calls=tuple(sorted(calls, key=_cost)),
        calibration=tuple(
            call.inputs for run in calibration for call in _flat_calls(members, run) if _inside(call, ranges)
        ),
        sizes=_telling(further, calls),
    )


_MOST_ALIKE = 2
"""Maximum number of further calls that differ only in the number of rows, such as one row per object."""


def _telling(further: Sequence[FlatCall], calls: Sequence[FlatCall]) -> tuple[FlatCall, ...]:
    """Drops further calls that differ from others only in the number of rows, such as one row per object.

    Two of them stay, or none if ``calls``, on which every engine is compared, have three such numbers already.
    """
    rows: dict[tuple[torch.Size, ...], set[tuple[int, ...]]] = {}
    for call in calls:
        rows.setdefault(_row(call), set()).add(tuple(len(tensor) for tensor in call.inputs if tensor.dim()))
    kept: dict[tuple[torch.Size, ...], list[FlatCall]] = {}
    for call in further:
        if len(rows.get(_row(call), ())) <= _MOST_ALIKE:
            kept.setdefault(_row(call), []).append(call)
    return tuple(call for call in further if any(call is one for alike in kept.values() for one in alike[:_MOST_ALIKE]))


def varies_in_rows_alone(observation: Observation, names: Sequence[str], runs: Sequence[Recorded]) -> bool:
    """Returns true if the segments of an engine had calls that differ in the number of rows alone, and enough of them.

    Further calls that differ in nothing else are dropped, see :func:`capture`.
    """
    members = members_of(observation, names)
    try:
        calls = [call for run in runs for call in _flat_calls(members, run)]
    except CaptureError:  # capture() raises it again
        return False
    return len({_row(call) for call in calls}) == 1 and not _telling(calls[:1], calls)


def _row(call: FlatCall) -> tuple[torch.Size, ...]:
    """Returns the shapes of the inputs without their first dimensions."""
    return tuple(tensor.shape[1:] for tensor in call.inputs)


def _cost(call: FlatCall) -> tuple[bool, int]:
    """Returns a sort key: the cheapest call first, calls with an empty tensor last."""
    sizes = [tensor.numel() for tensor in call.inputs]
    return 0 in sizes, sum(sizes)


def members_of(observation: Observation, names: Sequence[str]) -> tuple[Member, ...]:
    """Returns the segments of one engine, in the order in which they are called, as they were on the example."""
    members: list[Member] = []
    places: dict[tuple[str, int], int] = {}
    first = 0
    for name in names:
        call = observation.calls(name)[0]
        module = observation.detector.get_submodule(name)
        assert call.output is not None
        # If several segments returned the same tensor, use the one that was called first.
        sources = [min((places[source] for source in found if source in places), default=-1) for found in call.sources]
        fed_by = tuple(sources) if members else ()
        members.append(Member(name, module, call.inputs, call.output, fed_by, first, call.returned))
        for i in range(call.output.count):
            places[(observation.first_name(name), i)] = first + i
        first += call.output.count
    return tuple(members)


def _flat_calls(members: Sequence[Member], run: Recorded) -> list[FlatCall]:
    """Returns the program's calls in one run; with several members, their calls form one call of the program."""
    calls = []
    for each in zip(*(run[member.name] for member in members), strict=True):
        flat = [_flat(member, arguments, result) for member, (arguments, result) in zip(members, each, strict=True)]
        calls.append(FlatCall(flat[0].inputs, tuple(itertools.chain.from_iterable(call.outputs for call in flat))))
    return calls


def is_fed_directly(observation: Observation, names: Sequence[str], runs: Sequence[Recorded]) -> bool:
    """Returns true if the later segments got the tensors of earlier ones in every run, not only on the example."""
    members = members_of(observation, names)
    for run in runs:
        if any(len(run[name]) != 1 for name in names):
            return False
        outputs: list[Tensor] = []
        for member in members:
            ((arguments, result),) = run[member.name]
            flat = _flat(member, arguments, result)
            for tensor, source in zip(flat.inputs, member.sources, strict=False):
                if not torch.equal(tensor, outputs[source]):
                    return False
            outputs += flat.outputs
    return True


def _flat(member: Member, arguments: dict[str, Any], result: Any) -> FlatCall:
    where = f"segment '{member.name}'"
    inputs = structures_of(arguments, member.name)
    if inputs != member.inputs or structure_of(result, f"{where}, output") != member.output:
        raise CaptureError.make(
            "capture",
            where,
            expected="the same structure of inputs and outputs in every call",
            got="two calls that differ",
            remedy="Name a smaller submodule in segments=.",
            code="calls-differ",
        )
    return FlatCall(
        tuple(t.detach() for key, structure in inputs.items() for t in structure.flatten(arguments[key])),
        tuple(t.detach() for t in member.output.flatten(result)),
    )


def _inside(call: FlatCall, ranges: Sequence[Ranges] | None) -> bool:
    return all(
        low <= size and (high == UNBOUNDED or size <= high)
        for tensor, limits in zip(call.inputs, ranges or [], strict=False)
        for size, (low, high) in zip(tensor.shape, limits, strict=True)
    )


def _calls_at_second_size(
    members: Sequence[Member], calls: Sequence[FlatCall], ranges: Sequence[Ranges]
) -> list[FlatCall]:
    """Runs the segments at another size within the ranges; returns nothing if the calls differ in size or no size may.

    Raises:
        CaptureError: The segments refuse that size.
    """
    sizes = {tuple(tuple(tensor.shape) for tensor in call.inputs) for call in calls}
    if len(sizes) != 1 or len(ranges) < len(calls[0].inputs):
        return []
    (shapes,) = sizes
    found = second_shapes(shapes, ranges)
    if found is None:
        return []
    inputs = tuple(tile_to_shape(tensor, shape) for tensor, shape in zip(calls[0].inputs, found, strict=True))
    try:
        return [FlatCall(inputs, _run(members, inputs))]
    except Exception as error:  # whatever the user's code raises
        raise CaptureError.make(
            "capture",
            f"segment '{'+'.join(member.name for member in members)}'",
            expected=f"it to take {' and '.join('x'.join(map(str, shape)) for shape in found)}, which its ranges allow",
            got=described(error),
            remedy="Narrow them: shapes={'height': (min, max), 'width': (min, max)}.",
            code="sizes-not-taken",
        ) from error


def _output_names(members: Sequence[Member]) -> list[str]:
    """Names each output by its keys and indices, with the member's name as a prefix if there are several members."""
    names = []
    for member in members:
        prefix = f"{member.name}." if len(members) > 1 else ""
        own = list(member.output.names("")) if member.output.count > 1 else ["output"]
        names += [prefix + name for name in own]
    return names


def _meta(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def _specs(
    names: Sequence[str],
    calls: Sequence[Sequence[tuple[torch.Size, torch.dtype]]],
    ranges: Sequence[Ranges] | None,
    free: bool = True,
) -> tuple[TensorSpec, ...]:
    """Derives specs from the observed sizes; ``free``: a dimension that varied between calls has no fixed range."""
    specs = []
    for i, name in enumerate(names):
        shape, dtype = calls[0][i]
        seen = [call[i][0] for call in calls]
        if any(len(other) != len(shape) for other in seen):
            raise CaptureError.make(
                "capture",
                f"tensor '{name}'",
                expected="the same rank in every call",
                got=f"shapes {[*map(tuple, seen)]}",
                code="calls-differ",
            )
        low = list(shape)
        high = list(shape)
        for d in range(len(shape)):
            sizes = {other[d] for other in seen}
            if ranges is not None and i < len(ranges):
                low[d], high[d] = ranges[i][d]
            elif free and len(sizes) > 1:
                # The first dimension may count objects, of which there may be none.
                low[d], high[d] = 0 if d == 0 else min(1, *sizes), UNBOUNDED
        specs.append(TensorSpec(name, dtype_name(dtype), tuple(low), tuple(shape), tuple(high)))
    return tuple(specs)


def capture_alone(
    detector: nn.Module,
    name: str,
    inputs: Sequence[tuple[Any, ...]],
    ranges: Ranges | None = None,
    calibration: Sequence[tuple[Any, ...]] = (),
    sizes: Sequence[Recorded] = (),
) -> Program:
    """Captures one segment as a program, by running the detector on each of ``inputs``.

    ``ranges`` are those of the segment's first input, see :func:`capture`. ``calibration`` holds arguments of the
    detector, and ``sizes`` recorded runs at further sizes.
    """
    observation = observe(detector, inputs[0])
    runs = record_runs(detector, [name], inputs)
    calibrated = record_calibration(detector, [name], calibration, [name])
    return capture(observation, [name], runs, None if ranges is None else [ranges], calibrated, sizes)
