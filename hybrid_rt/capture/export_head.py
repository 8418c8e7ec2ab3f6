"""A whole detector by torch.export, its sizes free: what is left of it around its segments."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ..common.errors import CaptureError, HybridRTError
from ..common.specs import TensorSpec
from ..common.value_tree import ValueTree, tree_of
from .export_conditions import holds
from .export_stand_in import stand_ins
from .program import Member
from .torch_export import conditions, free_sizes, input_specs

SUBJECT = "the detector's head"

_OURS = Path(__file__).parents[1]


@dataclass(frozen=True)
class ExportedHead:
    """A detector as torch.export saw it.

    Attributes:
        program: takes the tensors of the arguments, and returns the computed values of the result.
        arguments: by forward's parameters, what was passed in the example.
        specs: the sizes that it takes, one per tensor of the arguments.
        conditions: further ones, see :func:`hybrid_rt.capture.torch_export.conditions`.
        result: what it returns.
    """

    program: ExportedProgram
    arguments: dict[str, ValueTree]
    specs: list[TensorSpec]
    conditions: list[tuple[str, str]]
    result: ValueTree

    def takes(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Tells whether tensors of these shapes may be given."""
        fits = all(spec.holds(shape) for spec, shape in zip(self.specs, shapes, strict=True))
        return fits and all(holds(words, shapes) for _, words in self.conditions)


class _Raised(Exception):
    """The detector raised its cause. torch.export prints the graph that it notes at an error: not at this one."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "partial_fx_graph":
            super().__setattr__(name, value)


class _Flat(nn.Module):
    """A detector as a function of flat tensors; ``results`` gets what its results are made of."""

    def __init__(self, detector: nn.Module, arguments: Sequence[ValueTree], results: list[ValueTree]) -> None:
        super().__init__()
        self.detector = detector
        self.arguments = tuple(arguments)
        self.note = results.append

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        remaining = iter(tensors)
        try:
            found = self.detector(*(argument.build(remaining) for argument in self.arguments))
        except Exception as error:
            raise _Raised from error
        remedy = "Wrap the detector in a module that returns such values."
        tree, computed = tree_of(found, f"{SUBJECT}, its result", remedy, is_result=True)
        self.note(tree)
        return tuple(computed)


def export_head(detector: nn.Module, example: tuple[Any, ...], members: Sequence[Member]) -> ExportedHead:
    """Exports a detector with an operator in the place of each segment.

    Args:
        detector: it stays as it is.
        example: its positional arguments. Every size of a tensor is free unless the code fixes it; numbers, texts and
            None are constants.
        members: the segments, in the order of their engines.

    Raises:
        CaptureError: torch.export refuses; the text has the detector's line. Or an argument or result of a kind that
            TorchScript has no type for.
    """
    arguments: dict[str, ValueTree] = {}
    tensors: list[Tensor] = []
    for name, value in zip(_parameters(detector, len(example)), example, strict=True):
        arguments[name], found = tree_of(value, f"{SUBJECT}, argument '{name}'", "Pass such values as the example.")
        tensors += found
    names = [
        path.replace("'", "")
        for name, argument in arguments.items()
        for path, node in argument.paths(name)
        if node.kind == "tensor"
    ]

    def exported(inputs: Sequence[Tensor]) -> ExportedHead:
        program, result = _exported(detector, members, list(arguments.values()), inputs)
        specs = input_specs(program, names)
        return ExportedHead(program, arguments, specs, conditions(program, specs), result)

    return _with_free_batch(exported, tensors)


def _with_free_batch(exported: Callable[[Sequence[Tensor]], ExportedHead], tensors: Sequence[Tensor]) -> ExportedHead:
    """Exports with a batch of two where the example has one: torch fixes sizes of 1 at many an operator.

    Where the program takes two or more only, the export with the example itself is what counts.
    """
    if tensors and all(tensor.dim() > 1 and tensor.shape[0] == 1 for tensor in tensors):
        with contextlib.suppress(CaptureError):
            head = exported([torch.cat([tensor, tensor]) for tensor in tensors])
            if head.takes([tensor.shape for tensor in tensors]):
                return head
    return exported([tensor.clone() for tensor in tensors])


def _parameters(detector: nn.Module, count: int) -> list[str]:
    """The names of forward's first parameters."""
    names: list[str] = []
    for name, parameter in inspect.signature(detector.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(count - len(names))]
        elif parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            names.append(name)
    return names[:count]


def _exported(
    detector: nn.Module, members: Sequence[Member], arguments: Sequence[ValueTree], tensors: Sequence[Tensor]
) -> tuple[ExportedProgram, ValueTree]:
    shapes = tuple(dict.fromkeys(range(tensor.dim()), Dim.AUTO) for tensor in tensors)
    results: list[ValueTree] = []
    try:
        with stand_ins(detector, members) as copied, torch.no_grad(), free_sizes(), _quiet():
            flat = _Flat(copied, arguments, results).eval()
            given = tuple(tensor.detach() for tensor in tensors)
            program = torch.export.export(flat, given, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # whatever the user's code and torch's raise
        causes = [cause for cause in _causes(error) if not isinstance(cause, _Raised)]
        ours = [cause for cause in causes if isinstance(cause, HybridRTError)]
        raise ours[0] if ours else _refusal(causes) from error
    return program, results[-1]


def _refusal(causes: Sequence[BaseException]) -> CaptureError:
    """``causes``: the error and what it came from."""
    place = f" at {where}" if (where := _line_of(causes)) else ""
    if any(isinstance(cause, GuardOnDataDependentSymNode) for cause in causes):
        return CaptureError.make(
            "capture",
            SUBJECT,
            expected="code that torch.export takes, without branches on the values of tensors",
            got=f"one{place}" if place else _first_line(causes[-1]),
            remedy="Write it without a branch (torch.where, clamp, torch.sym_min for a count), put it into a segment's "
            "module, or let head='trace' record the branch that the example takes.",
        )
    return CaptureError.make(
        "capture",
        SUBJECT,
        expected="code that torch.export takes",
        got=f"{type(causes[-1]).__name__}{place}: {_first_line(causes[-1])}",
        remedy="Change the line that it names, or try head='trace'.",
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "no message")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line_of(causes: Sequence[BaseException]) -> str:
    """``head.py:12 in forward: 'if scores.max() > 0.5:'``, of the innermost frame that is the user's; else empty."""
    torch_code = Path(torch.__file__).parent
    for cause in reversed(causes):
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            path = Path(frame.filename)
            if not path.is_relative_to(torch_code) and not path.is_relative_to(_OURS) and path.suffix == ".py":
                code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
                return f"{path.name}:{frame.lineno} in {frame.name}: '{code}'"
    return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch logs of an export that fails is told by our error."""
    loggers = [logging.getLogger(name) for name in ("torch._export", "torch.fx.experimental", "torch._logging")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
