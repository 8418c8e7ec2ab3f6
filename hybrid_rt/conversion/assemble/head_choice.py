"""Chooses how to convert the head: the first of script, export and trace that gives the detector's results."""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...capture.profile import Profile
from ...capture.value_samples import with_other_values
from ...common.error_text import described
from ...common.errors import (
    CaptureError,
    FusionError,
    HybridRTError,
    SegmentError,
    VerificationError,
    common_code,
    split_code,
)
from ...common.tensor_tree import tensors_in
from ...verification.verify import Thresholds, compare_modules
from ..options import AUTO_HEAD, HEADS
from .builds import EngineBuild
from .head import assemble
from .hybrid import Hybrid

CUT_HEAD = "export"
"""The only head of a detector whose segment was cut out of its exported graph."""

RECORDED_HEAD = "trace"
"""The head that keeps the branches and loops that the example takes."""

_LONGEST_REASON = 400

_OTHERS = "Or take head='export' or head='trace'; head='auto', the default, tries them in this order."


@dataclass(frozen=True)
class HeadChoice:
    """The head that was chosen.

    Attributes:
        hybrid: the detector with this head and the engines.
        mode: one of :data:`HEADS`.
        refused: the reasons against the modes that were tried before, by mode.
    """

    hybrid: Hybrid
    mode: str
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Limits for comparing a head with the detector."""

    precision: str
    thresholds: Thresholds


def head_choices(
    profile: Profile, builds: Sequence[EngineBuild], head: str, device: str, limits: Limits
) -> Generator[HeadChoice, str | None, None]:
    """Yields the heads that can be used, best first; each is built on demand. Takes the reason against the last one.

    With "auto", an exported or recorded head is compared with the detector before it is yielded: on the example, and on
    the further inputs that were derived from it (the sizes of ``shapes=``, black images), a recorded one also on other
    values. A scripted head is compared later, with the whole hybrid.

    Args:
        profile: the detector.
        builds: the engines.
        head: "auto" or one of :data:`HEADS`.
        device: the kind of device that the engines are for.
        limits: limits of the comparison.

    Raises:
        CaptureError: The named mode can't convert the detector; with "auto", no mode is left, and the text lists the
            reason for each.
    """
    if head != AUTO_HEAD and profile.cut is None:
        try:
            hybrid = assemble(profile, builds, head, device)
        except CaptureError as error:
            if error.code != "head-not-scriptable":
                raise
            raise error.extended(_OTHERS) from error
        yield HeadChoice(hybrid, head)
        return
    reasons: dict[str, str] = {} if profile.cut is None else dict(profile.head_refused)
    for mode in HEADS if profile.cut is None else (CUT_HEAD,):
        try:
            hybrid = assemble(profile, builds, mode, device)
            difference = "" if mode == HEADS[0] else _difference_on_all(profile, hybrid, limits, mode)
        except (FusionError, SegmentError):
            raise  # with other engines the same mode may take it
        except CaptureError as error:
            reasons[mode] = str(error)
            continue
        if difference:
            reasons[mode] = difference
            continue
        refused = {name: _short(reason) for name, reason in reasons.items()}
        failure = yield HeadChoice(hybrid, mode, refused)
        reasons[mode] = failure or "its results differ from the detector's"
    raise CaptureError.make(
        "capture",
        "the detector's head",
        expected="code that torch.jit.script compiles, torch.export takes, or torch.jit.trace records",
        got="\n  " + "\n  ".join(f"{mode}: {reason}" for mode, reason in reasons.items()) + "\n",
        remedy="Change a line that is named, or put it into a segment.",
        code=common_code(reasons.values(), "no-head-fits"),
    )


_REFUSED_SIZE = re.compile(
    r"hybrid_rt\[\w+\]: (?P<input>engine '.*', input '.*', dimension \d+): "
    r"expected (?P<expected>.*), got (?P<got>[\dx]+)\."
)


def input_refused(error: BaseException, inputs: Sequence[tuple[Any, ...]]) -> VerificationError | None:
    """Returns the error for an input whose size an engine refuses, which no head can change; None for other errors.

    Args:
        error: what the hybrid raised.
        inputs: the arguments on which it was compared.
    """
    found = _REFUSED_SIZE.search(_last_line(error))
    sizes = {"x".join(map(str, tensor.shape)) for tensor in tensors_in(inputs)}
    if found is None or found["got"] not in sizes:
        return None
    return VerificationError.make(
        "verify",
        f"the hybrid, {found['input']}",
        expected=f"{found['expected']} in every input that is compared",
        got=found["got"],
        remedy="Pass shapes= that cover this size, or leave the input out of verify_inputs=.",
        code="sizes-not-taken",
    )


def head_fails(error: BaseException) -> VerificationError:
    """Returns the error for a head that raises one where the detector does not."""
    return VerificationError.make(
        "verify",
        "the hybrid",
        expected="it to run on every input that the detector runs on",
        got=f"{_last_line(error)}:\n{described(error)}\n",  # the interpreter's frames stand on lines of their own
        remedy="Change the line that it names, or take another head, e.g. head='export'.",
        code="results-differ",
    )


def warn_of_recorded_sizes(profile: Profile, hybrid: Hybrid, limits: Limits) -> None:
    """Warns about a recorded head that is not right for every size of ``shapes=``; it was asked for by its name."""
    asked = [sample.arguments for sample in profile.samples if sample.required]
    difference = _difference(profile, hybrid, limits, [], asked) if asked else ""
    if difference:
        warnings.warn(
            "hybrid_rt[convert]: head='trace': expected a recording that is right for every size of shapes=, got "
            f"one that is not: {difference}. The head keeps what its code computed from the example's size. Omit "
            "head=, or omit shapes=.",
            RuntimeWarning,
            stacklevel=2,
        )


def _difference_on_all(profile: Profile, hybrid: Hybrid, limits: Limits, mode: str) -> str:
    """Returns how the hybrid differs from the detector on the example and the inputs derived from it, or nothing."""
    known = [(profile.example, profile.observation.result)]
    if mode == RECORDED_HEAD:
        known += with_other_values(profile.truth, profile.example)
    return _difference(profile, hybrid, limits, known, [sample.arguments for sample in profile.samples])


def _difference(
    profile: Profile,
    hybrid: Hybrid,
    limits: Limits,
    known: Sequence[tuple[tuple[Any, ...], Any]],
    further: Sequence[tuple[Any, ...]],
) -> str:
    """Returns how the hybrid differs from the detector, or an empty string.

    Args:
        profile: the detector.
        hybrid: the hybrid.
        limits: what counts as equal.
        known: arguments, each with the detector's result.
        further: arguments whose results are not known.
    """
    inputs = [arguments for arguments, _ in known]
    inputs += [_as_many(arguments, profile.example) for arguments in further]
    try:
        with hybrid.in_promised_precision() as module:
            compared = compare_modules(
                profile.truth,
                module,
                inputs,
                precision=limits.precision,
                thresholds=limits.thresholds,
                known=[result for _, result in known],
                require_detections=False,
            )
    except HybridRTError as error:
        return str(error)
    except Exception as error:  # whatever the hybrid raises where the detector does not
        return f"it fails on inputs of other sizes or values: {_last_line(error)}"
    return "" if compared.passed else f"it finds something else: {compared.failures[0]}"


def _as_many(arguments: Sequence[Any], example: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the arguments with each list cut to the example's length, because torch.export fixes that length."""
    return tuple(
        argument[: len(like)] if isinstance(argument, list) and isinstance(like, list) else argument
        for argument, like in zip(arguments, example, strict=True)
    )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _short(reason: str) -> str:
    """Returns a reason on one line, up to the line of code that it points to, with its code."""
    reason, code = split_code(reason)
    if reason.startswith("hybrid_rt["):
        reason = reason.partition(", got ")[2] or reason
    message = " ".join(reason.partition("<--- HERE")[0].replace("~", " ").split())
    message = message if len(message) <= _LONGEST_REASON else f"{message[:_LONGEST_REASON]} ..."
    return f"{message} [{code}]" if code else message
