"""Exports the head of a detector by torch.export with free sizes: the whole detector around its segments."""

from __future__ import annotations

import contextlib
import dataclasses
import linecache
import logging
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ..common.error_text import causes_of
from ..common.errors import CaptureError, HybridRTError, SegmentError, split_code
from ..common.silenced import silenced
from ..common.specs import TensorSpec
from ..common.value_tree import ValueTree
from ..torchscript.function_caches import without_function_caches
from .export_conditions import holds
from .export_stand_in import stand_ins
from .flat_detector import SUBJECT, FlatDetector, flat_arguments
from .program import Member
from .size_caches import symbolic_keys
from .symbolic_numbers import symbolic_numbers
from .torch_export import conditions, free_sizes, input_specs

_NEAR = 1e-3
"""Limit of the relative error: a wrong branch on the batch exceeds it, rounding does not."""

Numbers = Callable[[nn.Module], contextlib.AbstractContextManager[None]]
"""Context in which a module's code uses other types for numbers, see :mod:`.symbolic_numbers`."""

_LOGGERS = ("torch._export", "torch.fx.experimental", "torch._logging", "torch._subclasses")
"""They log a failed export, whose cause our error contains."""

_OURS = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class ExportedHead:
    """A detector as torch.export recorded it.

    Attributes:
        program: the exported program, which takes the arguments' tensors and returns the computed values of the result.
        arguments: structures of the example's arguments, by forward's parameters.
        specs: supported sizes, one spec per tensor of the arguments.
        conditions: further conditions on sizes, see :func:`hybrid_rt.capture.torch_export.conditions`.
        result: structure of the result.
        fixed: why the sizes are those of the example; empty if they are free where the code leaves them free.
    """

    program: ExportedProgram
    arguments: dict[str, ValueTree]
    specs: list[TensorSpec]
    conditions: list[tuple[str, str]]
    result: ValueTree
    fixed: str = ""

    def takes(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Returns true if the program supports tensors of these shapes."""
        fits = all(spec.holds(shape) for spec, shape in zip(self.specs, shapes, strict=True))
        return fits and all(holds(words, shapes) for _, words in self.conditions)


class _Raised(Exception):
    """Wraps an error of the detector's own code, and keeps torch.export from adding its graph to the text."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "partial_fx_graph":
            super().__setattr__(name, value)


class _Exported(FlatDetector):
    """Raises errors of the detector as :class:`_Raised`."""

    def run(self, tensors: Sequence[Tensor]) -> Any:
        try:
            return super().run(tensors)
        except Exception as error:
            raise _Raised from error


def export_head(detector: nn.Module, example: tuple[Any, ...], members: Sequence[Member]) -> ExportedHead:
    """Exports a detector with one operator in the place of each segment.

    Args:
        detector: the detector, which is not changed.
        example: its positional arguments. Every size of a tensor is free unless the code fixes it, or fails with a free
            one, as numpy does; numbers, strings and None are constants.
        members: the segments, in the order of their engines.

    Raises:
        CaptureError: torch.export refuses the detector, and the text names the line; or an argument or result has a
            type that TorchScript lacks.
    """
    arguments, tensors = flat_arguments(detector, example)
    names = [
        path.replace("'", "")
        for name, argument in arguments.items()
        for path, node in argument.paths(name)
        if node.kind == "tensor"
    ]

    def exported_with(inputs: Sequence[Tensor], numbers: Numbers, fixed: str = "") -> ExportedHead:
        program, result = _exported(detector, members, list(arguments.values()), inputs, numbers, is_free=not fixed)
        specs = input_specs(program, names)
        return ExportedHead(program, arguments, specs, conditions(program, specs, fractions=True), result, fixed)

    def exported(inputs: Sequence[Tensor]) -> ExportedHead:
        try:
            return exported_with(inputs, symbolic_numbers)
        except SegmentError:
            raise
        except CaptureError as error:
            # With sizes that int() fixes, or with all sizes fixed, it may be right for the example's.
            fails_anyhow = error.code == "branch-on-values"
            for fixed in ("",) if fails_anyhow else ("", split_code(str(error))[0].partition(", got ")[2]):
                with contextlib.suppress(CaptureError):
                    return exported_with(inputs, lambda _: contextlib.nullcontext(), fixed)
            raise error from error.__cause__

    if not _are_batches(tensors):
        return exported(tensors)
    ones = [tensor[:1] for tensor in tensors]
    if tensors[0].shape[0] > 1:
        head = exported(tensors)
        any_batch = _of_any_batch(head, ones)
        return any_batch if _finds_the_same(any_batch, detector, members, ones) else head
    with contextlib.suppress(CaptureError):
        head = _of_any_batch(exported([torch.cat([tensor, tensor]) for tensor in tensors]), ones)
        if _finds_the_same(head, detector, members, ones):
            return head
    return exported(tensors)


def _are_batches(tensors: Sequence[Tensor]) -> bool:
    """Returns true if the first dimension of every tensor may be the batch."""
    sizes = {tensor.shape[0] if tensor.dim() > 1 else 0 for tensor in tensors}
    return len(sizes) == 1 and sizes != {0}


def _of_any_batch(head: ExportedHead, tensors: Sequence[Tensor]) -> ExportedHead:
    """Returns the head that was exported with a batch of two, without the conditions that exclude a batch of one.

    With a batch of one, torch fixes that size at many operators. With two, it records that the batch is not 1 wherever
    it checks for contiguous memory. The caller has to check that the program is right for a batch of one.
    """
    shapes = [tensor.shape for tensor in tensors]
    kept = [(text, words) for text, words in head.conditions if holds(words, shapes) or not words.endswith(" 1 !=")]
    return dataclasses.replace(head, conditions=kept)


def _finds_the_same(
    head: ExportedHead, detector: nn.Module, members: Sequence[Member], tensors: Sequence[Tensor]
) -> bool:
    """Returns true if the program accepts the inputs and computes the detector's result."""
    if not head.takes([tensor.shape for tensor in tensors]):
        return False
    signature = head.program.graph_signature
    held = {**head.program.state_dict, **head.program.constants}
    given = iter([tensor.clone() for tensor in tensors])
    inputs = [
        next(given) if spec.kind is InputKind.USER_INPUT else held[str(spec.target)] for spec in signature.input_specs
    ]
    results: list[ValueTree] = []
    try:
        with stand_ins(detector, members) as copied, torch.no_grad():
            found = torch.fx.Interpreter(head.program.graph_module).run(*inputs)
            expected = _Exported(copied, list(head.arguments.values()), results)(
                *[tensor.clone() for tensor in tensors]
            )
            numbers_aside = ([value for value in each if isinstance(value, Tensor)] for each in (expected, found))
            for one, other in zip(*numbers_aside, strict=True):
                torch.testing.assert_close(other, one, rtol=_NEAR, atol=_NEAR, equal_nan=True)
    except Exception:  # whatever the detector raises; and a difference
        return False
    return True


def _exported(
    detector: nn.Module,
    members: Sequence[Member],
    arguments: Sequence[ValueTree],
    tensors: Sequence[Tensor],
    numbers: Numbers,
    *,
    is_free: bool,
) -> tuple[ExportedProgram, ValueTree]:
    shapes = tuple(dict.fromkeys(range(tensor.dim()), Dim.AUTO if is_free else Dim.STATIC) for tensor in tensors)
    results: list[ValueTree] = []
    try:
        with (
            silenced(*_LOGGERS, level=logging.CRITICAL),
            stand_ins(detector, members) as copied,
            numbers(copied),
            symbolic_keys(copied),
            without_function_caches(copied),
            torch.no_grad(),
            free_sizes(),
        ):
            flat = _Exported(copied, arguments, results).eval()
            given = tuple(tensor.detach() for tensor in tensors)
            program = torch.export.export(flat, given, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # whatever the user's code and torch's raise
        causes = [cause for cause in causes_of(error) if not isinstance(cause, _Raised)]
        ours = [cause for cause in causes if isinstance(cause, HybridRTError)]
        raise ours[0] if ours else _refusal(causes) from error
    return program, results[-1]


def _refusal(causes: Sequence[BaseException]) -> CaptureError:
    """Returns the error for a failed export; ``causes``: the exception and its causes."""
    place = f" at {where}" if (where := _line_of(causes)) else ""
    if any(isinstance(cause, GuardOnDataDependentSymNode) for cause in causes):
        return CaptureError.make(
            "capture",
            SUBJECT,
            expected="code that torch.export takes, without branches on the values of tensors",
            got=f"one{place}" if place else _first_line(causes[-1]),
            remedy="Write it without a branch (torch.where, clamp, torch.sym_min for a count), put it into a segment's "
            "module, or use head='trace' to record the branch that the example takes.",
            code="branch-on-values",
        )
    return CaptureError.make(
        "capture",
        SUBJECT,
        expected="code that torch.export takes",
        got=f"{type(causes[-1]).__name__}{place}: {_first_line(causes[-1])}",
        remedy="Change the line that it names, or try head='trace'.",
        code="head-not-exportable",
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "no message")


def _line_of(causes: Sequence[BaseException]) -> str:
    """Returns the user's innermost frame, e.g. ``head.py:12 in forward: 'if x.max() > 0.5:'``, or an empty string."""
    others = (Path(torch.__file__).parent, Path(np.__file__).parent, _OURS)
    for cause in reversed(causes):
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            path = Path(frame.filename)
            if path.suffix == ".py" and not any(map(path.is_relative_to, others)):
                code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
                return f"{path.name}:{frame.lineno} in {frame.name}: '{code}'"
    return ""
