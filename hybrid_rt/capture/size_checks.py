"""Checks a captured segment at sizes other than the example's, because Python code may compute from sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import _native
from ..common.errors import CaptureError, split_code
from .program import FlatCall, Program
from .size_samples import Effort

_ALLOWED = 1e-3
"""Largest relative error; TorchScript and the segment differ only in the order of additions."""

_EXAMPLES = 3
"""Maximum number of examples to export with, to find one that takes the right branches on sizes; each costs seconds."""


def right_at_sizes(program: Program, effort: Effort | None) -> Program:
    """Returns the program in a form that is right at further sizes: recorded, else by torch.export.

    Args:
        program: the program.
        effort: budget for checks at further sizes; None: accept any recording without checks.

    Raises:
        CaptureError: It is right only at the example's size, and the text names a size at which it is wrong; or it
            can't be captured in either way.
    """
    if program.by_export:  # it comes from torch.export already
        found, reason = _exported(program)
        if found is None:
            raise CaptureError(reason)
        return found
    try:
        if effort is None:
            program.traced()
            return program
        return _recorded(program)
    except CaptureError as error:
        found, reason = _exported(program)
        if found is None:
            raise error.extended(f"torch.export does not help: {split_code(reason)[0]}") from error
        return found


def _exported(program: Program) -> tuple[Program | None, str]:
    """Exports the program, with other examples if the first one takes the wrong branches on sizes.

    Returns None and the reason if it is wrong with every example.
    """
    calls = [*program.calls, *program.sizes]
    reason = ""
    for _ in range(_EXAMPLES):
        exported = replace(program, by_export=True)
        try:
            wrong = _first_wrong_call(exported.traced(), calls)
        except CaptureError as error:
            reason = str(error)
            break
        if wrong is None:
            return exported, ""
        call, reason = wrong
        program = replace(program, calls=(call, *(other for other in program.calls if other is not call)))
    return None, reason


def _recorded(program: Program) -> Program:
    """Returns the program if its recording is right at further sizes.

    Raises:
        CaptureError: see :func:`right_at_sizes`.
    """
    if all(spec.is_static for spec in program.inputs):
        program.traced()
        return program
    calls = _at_other_sizes(program)
    wrong = first_wrong(program.traced(), calls)
    if not wrong:
        return program
    if calls:
        # A grid that the module caches for the size of its last call is a constant in a recording at that size, but is
        # computed in a recording at another size.
        program.run(calls[0].inputs)
        program = replace(program)
        if not first_wrong(program.traced(), calls):
            return program
    raise CaptureError.make(
        "capture",
        f"segment '{program.name}'",
        expected="a recording on " + _sizes(program.calls[0]) + " that is right for every size of its ranges",
        got=wrong,
        remedy="Its Python code computes from sizes (such as max(height, width), padding behind an 'if', a factor as "
        "a number) or keeps an attribute, such as a grid, for one size. Narrow the sizes with shapes=, leave that code "
        "to the head by naming smaller submodules in segments=, or compute sizes in the detector and pass them on.",
        code="sizes-in-python",
    )


def _at_other_sizes(program: Program) -> list[FlatCall]:
    """Returns the calls at other sizes than the recording's; of those that differ in the number of rows alone, one."""
    first, *others = (*program.calls, *program.sizes)
    found: list[FlatCall] = []
    has_rows = False
    for call in others:
        is_longer = all(a.shape[1:] == b.shape[1:] for a, b in zip(call.inputs, first.inputs, strict=True))
        if _sizes(call) != _sizes(first) and not (is_longer and has_rows):
            found.append(call)
            has_rows = has_rows or is_longer
    return found


def first_wrong(module: torch.jit.ScriptModule, calls: Sequence[FlatCall]) -> str:
    """Returns the first difference between a module of flat tensors and the recorded calls, with the size; else ""."""
    wrong = _first_wrong_call(module, calls)
    return wrong[1] if wrong else ""


def _first_wrong_call(module: torch.jit.ScriptModule, calls: Sequence[FlatCall]) -> tuple[FlatCall, str] | None:
    for call in calls:
        try:
            with torch.no_grad():
                found = module(*(tensor.clone() for tensor in call.inputs))
        except RuntimeError as error:
            return call, f"at {_sizes(call)} {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
        for i, (wanted, had) in enumerate(zip(call.outputs, found, strict=True)):
            difference = _difference(wanted, had)
            if difference:
                return call, f"at {_sizes(call)} another result, output {i}: {difference}"
    return None


def _difference(wanted: Tensor, had: Tensor) -> str:
    if wanted.shape != had.shape:
        return f"size {_written(had)} instead of {_written(wanted)}"
    error = _native.output_error("", wanted, had, _ALLOWED).relative_error
    return "" if error <= _ALLOWED else f"relative error {error:.3g}"


def _sizes(call: FlatCall) -> str:
    return ", ".join(map(_written, call.inputs))


def _written(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
