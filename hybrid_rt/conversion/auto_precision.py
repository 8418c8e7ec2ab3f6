"""Chooses a precision for precision="auto": the fastest on this machine among those that pass verification."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .. import _native
from ..common.error_text import described
from ..common.errors import BackendError, HybridRTError, OptionError
from ..common.latency import benchmark
from ..common.progress import Steps
from ..common.specs import PRECISIONS, REFERENCE_PRECISION
from ..common.tensor_tree import map_tensors
from .options import EngineOptions
from .report.data import PrecisionTrial

MARGIN = 0.05
"""Fraction by which a precision with fewer bits has to be faster; smaller differences are noise."""

_ORDER = ("fp32", "fp16", "bf16", "int8")
"""The precisions, those with the most accurate results first."""

_BF16_FLAGS = ("avx512_bf16", "amx_bf16")

_SECONDS = 5.0
"""Time budget in seconds for timing all candidates together."""

_FEWEST, _MOST = 5, 30
"""Minimum and maximum number of timing rounds."""

Built = TypeVar("Built")


def candidates(engines: EngineOptions) -> tuple[list[EngineOptions], list[PrecisionTrial]]:
    """Returns the engines in each precision that is worth a try, and a record with the reason for each other one.

    Raises:
        OptionError: An engine's name sets a precision, an option does not fit, or this machine lacks the GPU.
        BackendError: An engine is not installed.
    """
    named = [engines.engine] if isinstance(engines.engine, str) else list(engines.engine)
    own = [name for name in named if ":" in name]
    if own:
        raise OptionError.make(
            engines.scope,
            "engine",
            expected="names without a precision, since precision='auto' chooses it",
            got=", ".join(own),
            remedy="Name the engines without precisions, or omit precision='auto'.",
        )
    if engines.device == "cuda" and not _native.cuda_devices()[0]:
        raise OptionError.make(
            engines.scope,
            "precision",
            expected="the name of a precision, since 'auto' is measured on the target device",
            got="'auto' for 'cuda' on a machine without a GPU",
            remedy="Use precision='fp16' or 'fp32', or convert on a machine with the GPU.",
            code="no-gpu-here",
        )
    found: list[EngineOptions] = []
    left_out: list[PrecisionTrial] = []
    for precision in _ORDER:
        needs_data = PRECISIONS[precision].needs_calibration
        reason = _obstacle(precision, engines)
        if not reason:
            data = engines.calibration_data if needs_data else ()
            candidate = replace(engines, precision=precision, calibration_data=data)
            try:
                lowered = [variant for variant in candidate.variants if variant.precision == precision]
                reason = "" if lowered else "no engine that was named has it"
            except (OptionError, BackendError) as error:
                if precision == REFERENCE_PRECISION:
                    raise
                reason = "no engine that was named has it" if error.code == "precision-not-in-engine" else str(error)
        if reason:
            left_out.append(PrecisionTrial(precision, None, reason))
        else:
            found.append(candidate)
    return found, left_out


def _obstacle(precision: str, engines: EngineOptions) -> str:
    """Returns why a precision can't be used, as far as that is known before compilation, or an empty string."""
    if PRECISIONS[precision].needs_calibration and not engines.calibration_data:
        return "no calibration_data was given"
    if precision == "bf16" and engines.device == "cpu" and not _native.cpu_flags().intersection(_BF16_FLAGS):
        return f"this CPU has no instructions for it ({' or '.join(_BF16_FLAGS)})"
    return ""


class Timed(Protocol):
    """Something that can be timed: a hybrid, or one engine."""

    def in_promised_precision(self) -> AbstractContextManager[Callable[..., Any]]:
        """Yields the callable to time; it takes the example's arguments."""


@dataclass(frozen=True)
class Candidate:
    """A hybrid in one precision; ``failure`` is why it did not pass verification, or empty."""

    hybrid: Timed
    failure: str


def choose(
    engines: EngineOptions,
    build: Callable[[EngineOptions], Built],
    candidate_of: Callable[[Built], Candidate],
    example: tuple[Any, ...],
    steps: Steps,
) -> tuple[Built, EngineOptions, list[PrecisionTrial]]:
    """Builds the hybrid in each precision, and chooses the fastest that passes verification.

    Args:
        engines: the engines, with precision="auto".
        build: builds the hybrid with engines in one precision.
        candidate_of: converts the result of ``build`` to a candidate.
        example: the detector's arguments to time the hybrids on.
        steps: shows progress.

    Returns:
        The result of ``build``, the engines in the chosen precision, and a record of each precision.

    Raises:
        HybridRTError: fp32 can't be built, and no other precision passes.
    """
    tried, trials = candidates(engines)
    built: dict[str, Built] = {}
    hybrids: dict[str, Timed] = {}
    first_error: HybridRTError | None = None
    for candidate in tried:
        try:
            result = build(candidate)
        except HybridRTError as error:
            first_error = first_error or error
            trials.append(PrecisionTrial(candidate.precision, None, described(error)))
            continue
        judged = candidate_of(result)
        built[candidate.precision] = result
        if judged.failure:
            trials.append(PrecisionTrial(candidate.precision, None, f"not verified: {judged.failure}"))
        else:
            hybrids[candidate.precision] = judged.hybrid
    if not built:
        assert first_error is not None
        raise first_error
    if not hybrids:  # the caller refuses it, and shows what differs
        taken = next(iter(built))
    else:
        with steps.step("find the fastest precision"):
            times = _times(hybrids, example)
        taken, timed = fastest(times)
        trials += timed
    chosen = next(candidate for candidate in tried if candidate.precision == taken)
    return built[taken], chosen, sorted(trials, key=lambda trial: _ORDER.index(trial.precision))


def fastest(times: Mapping[str, float]) -> tuple[str, list[PrecisionTrial]]:
    """Chooses a precision by the milliseconds of one call; returns it and a record of each precision.

    A precision with fewer bits is chosen only if it is faster by ``MARGIN``.
    """
    order = [precision for precision in _ORDER if precision in times]
    taken = order[0]
    for precision in order[1:]:
        if times[precision] < (1 - MARGIN) * times[taken]:
            taken = precision
    trials = []
    for precision in order:
        share = times[precision] / times[taken]
        is_slower = share >= 1
        reason = f"{share:.2f} times as long as {taken}" if is_slower else f"less than {MARGIN:.0%} faster than {taken}"
        measured = None if math.isnan(times[precision]) else times[precision]
        trials.append(PrecisionTrial(precision, measured, "" if precision == taken else reason))
    return taken, trials


def _times(hybrids: Mapping[str, Timed], example: tuple[Any, ...]) -> dict[str, float]:
    """Returns the median milliseconds of a call of each hybrid on the example, called alternately."""
    if len(hybrids) == 1:
        return dict.fromkeys(hybrids, math.nan)
    with ExitStack() as prepared, torch.no_grad():
        modules = {name: prepared.enter_context(hybrid.in_promised_precision()) for name, hybrid in hybrids.items()}
        cases = {
            name: lambda *arguments, module=module: module(*map_tensors(arguments, Tensor.clone))
            for name, module in modules.items()
        }
        once = benchmark(cases, example, repeat=1, warm_up=1)
        total = sum(latency.median for latency in once.values()) / 1e3
        rounds = max(_FEWEST, min(_MOST, int(_SECONDS / max(total, 1e-6))))
        return {name: latency.median for name, latency in benchmark(cases, example, repeat=rounds, warm_up=0).items()}
