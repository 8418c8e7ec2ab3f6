"""Builds the hybrid from a profiled detector: after a failure, it tries a lesser way and records what was given up."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from ..capture.cut_detector import GraphCutter, is_better
from ..capture.profile import Profile, capture_programs, without_segment
from ..capture.program import Program
from ..capture.segments import LEAST_SHARE
from ..capture.shapes import Shapes
from ..capture.size_samples import Effort
from ..capture.whole_detector import whole_profile
from ..common.error_text import described
from ..common.errors import FusionError, HybridRTError, SegmentError, VariantError
from ..common.progress import Steps
from ..common.specs import REFERENCE_PRECISION
from .assemble.builds import EngineBuild, compile_programs
from .assemble.given_up import (
    GivenUp,
    cut_given_up,
    engine_given_up,
    fused_given_up,
    segment_given_up,
    smaller_cut,
    whole_given_up,
)
from .assemble.variant_trials import order_by_speed
from .options import EngineOptions

Finished = TypeVar("Finished")


@dataclass(frozen=True)
class Attempt(Generic[Finished]):
    """The attempt that succeeded.

    Attributes:
        finished: the value that ``finish`` returned.
        profile: the detector with the segments that became engines.
        given_up: the attempts that failed before.
    """

    finished: Finished
    profile: Profile
    given_up: list[GivenUp]


@dataclass(frozen=True)
class Work(Generic[Finished]):
    """Describes how to compile the engines of a profile and how to finish the hybrid.

    Attributes:
        engines: the engines.
        shapes: the image sizes to support.
        effort: number of sizes to compare; None: only the example's.
        steps: shows progress.
        finish: converts the head and compares the hybrid.
        failure_of: returns why the result of ``finish`` can't be used, or an empty string.
    """

    engines: EngineOptions
    shapes: Shapes | None
    effort: Effort | None
    steps: Steps
    finish: Callable[[Profile, Sequence[EngineBuild]], Finished]
    failure_of: Callable[[Finished], str]

    def programs(self, profile: Profile) -> list[Program]:
        """Captures the segments of a profile.

        Args:
            profile: the detector with the segments.

        Raises:
            CaptureError: A segment can't be captured.
        """
        return capture_programs(profile, self.shapes, self.engines.calibration_data, self.steps, self.effort)

    def finished_with_all(self, profile: Profile) -> Finished:
        """Compiles the engines of a profile into every named variant, and finishes the hybrid.

        Args:
            profile: the detector with the segments.

        Raises:
            HybridRTError: A segment can't be captured, an engine does not compile it, or ``finish`` fails.
        """
        builds = compile_programs(self.programs(profile), self.engines, self.steps, require_all=True)
        return self.finish(profile, self.ordered(builds))

    def ordered(self, builds: list[EngineBuild]) -> list[EngineBuild]:
        """Returns the engines with their variants in the order of their speed if the user asked for the fastest.

        Args:
            builds: the engines.
        """
        return order_by_speed(builds, self.engines.device, self.steps) if self.engines.is_fastest else builds


def attempt_whole(profile: Profile, work: Work[Finished]) -> Attempt[Finished] | GivenUp | None:
    """Compiles a whole detector into one engine, unless its profile already rules that out.

    Args:
        profile: the detector.
        work: every named one of its engines has to compile the detector.

    Returns:
        The attempt, or the record of its failure, or None if nothing was attempted.
    """
    detector = type(profile.detector).__name__
    try:
        whole = whole_profile(profile)
        if whole is None:
            return None
        finished = work.finished_with_all(whole)
        reason = work.failure_of(finished)
        if not reason:
            return Attempt(finished, whole, [])
    except HybridRTError as error:
        reason = str(error)
    except Exception as error:  # whatever the user's code or torch raises where the pieces may do
        reason = described(error)
    given_up = whole_given_up(detector, reason)
    work.steps.show(given_up.summary)
    return given_up


_CUTS = 4
"""Maximum number of attempts with different parts of the graph; each costs a compilation."""

_OPERATOR = re.compile(r"\baten::\w+")


def attempt_cut(profile: Profile, work: Work[Finished], *, wanted: bool) -> Attempt[Finished] | list[GivenUp]:
    """Compiles the largest part of the exported graph that the engines accept into one engine.

    After a refusal, the next part leaves out the operator that the refusal names, or else ends at the last layer with
    weights.

    Args:
        profile: the detector.
        work: every named one of its engines has to compile the part.
        wanted: the user asked for this part, so it is used even where segments at module borders cover as much.

    Returns:
        The attempt, or the records of the failed ones.
    """
    given_up: list[GivenUp] = []
    detector = type(profile.detector).__name__
    excluded: frozenset[str] = frozenset()
    dense_only = work.engines.first_precision != REFERENCE_PRECISION  # boxes are computed in fp32
    cutter: GraphCutter | None = None
    for _ in range(_CUTS):
        operators: frozenset[str] = frozenset()
        try:
            with work.steps.step("cut the dense part out of the exported graph"):
                cutter = cutter or GraphCutter(profile)
                cut, part = cutter.profile(excluded, dense_only=dense_only)
            operators = part.operators
            if not wanted and not is_better(cut, profile):
                return given_up
            finished = work.finished_with_all(cut)
            reason = work.failure_of(finished)
            if not reason:
                return Attempt(finished, cut, [*map(smaller_cut, given_up)])
        except HybridRTError as error:
            reason = str(error)
        except Exception as error:  # whatever the user's code or torch raises where the pieces may do
            reason = described(error)
        named = frozenset(_OPERATOR.findall(reason)) & operators
        is_last = cutter is None or not operators or (not named and dense_only)
        given_up.append(cut_given_up(detector, reason))
        work.steps.show(given_up[-1].summary)
        if is_last:
            break
        excluded |= named
        dense_only = dense_only or not named
    return given_up


def build_hybrid(profile: Profile, work: Work[Finished]) -> Attempt[Finished]:
    """Captures and compiles the segments of a detector, and finishes the hybrid with the engines.

    Segments that can't share one engine get one engine each. A segment that can't be captured is replaced by those
    inside it, unless the user named it. A variant that fails when it runs is replaced by the next one.

    Args:
        profile: the detector.
        work: if its ``finish`` raises FusionError, SegmentError or VariantError, it is called again with other engines.

    Raises:
        CaptureError: A segment can't be captured, or the head can't be compiled.
        BackendError: No compiler accepts a segment.
    """
    engines = work.engines
    given_up: list[GivenUp] = []
    failures: list[VariantError] = []
    while True:
        try:
            compiled = compile_programs(work.programs(profile), engines, work.steps)
            builds = work.ordered([_without(build, failures) for build in compiled])
            return Attempt(work.finish(profile, builds), profile, given_up + _engines_given_up(profile, builds))
        except FusionError as error:
            split = _split(profile, error.segments)
            if split is None:
                raise
            profile = split
            given_up.append(fused_given_up(error.segments, str(error)))
            work.steps.show(given_up[-1].summary)
        except VariantError as error:
            left = [_without(build, [*failures, error]) for build in builds]
            if not (engines.fallback or engines.is_fastest) or not all(build.variants for build in left):
                raise
            failures.append(error)
            warnings.warn(f"{error} Falling back to the next engine.", RuntimeWarning, stacklevel=2)
        except SegmentError as error:
            without = without_segment(profile, error.segment, _why(error))
            if without is None:
                raise
            given_up.append(segment_given_up(error.segment, _shares(profile).get(error.segment, 0.0), str(error)))
            profile = without
            work.steps.show(given_up[-1].summary)


def _without(build: EngineBuild, failures: Sequence[VariantError]) -> EngineBuild:
    own = [failure for failure in failures if failure.engine == build.name]
    return build.without(own) if own else build


def _split(profile: Profile, segments: Sequence[str]) -> Profile | None:
    """Returns the profile with one group split into its segments; None if it has no such group.

    Segments that were chosen only because they add no cost to a shared engine stay in the head.
    """
    shares = {share.name: share.share for share in profile.shares}
    groups: list[list[str]] = []
    for group in profile.groups:
        if group != list(segments):
            groups.append(group)
            continue
        worth = [name for name in group if profile.named or shares.get(name, 0.0) >= LEAST_SHARE]
        groups += [[name] for name in worth or group[:1]]
    return None if groups == profile.groups else replace(profile, groups=groups)


def _why(error: SegmentError) -> str:
    """Returns the reason for the table of shares."""
    return str(error).partition(" got ")[2].partition(". ")[0] or str(error)


def _shares(profile: Profile) -> dict[str, float]:
    """Returns each segment's part of the detector's time, 0..1."""
    return {share.name: share.measured for share in profile.shares}


def _engines_given_up(profile: Profile, builds: Sequence[EngineBuild]) -> list[GivenUp]:
    shares = _shares(profile)
    return [
        engine_given_up(
            build.name,
            engine,
            build.artifacts[0].spec.backend,
            min(1.0, sum(shares.get(name, 0.0) for name in build.program.segments)),
            reason,
        )
        for build in builds
        for engine, reason in build.refusals
    ]
