"""From a profiled detector to a hybrid: what fails is tried again with less, and what was given up is noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..capture.profile import Profile, capture_programs
from ..capture.segments import LEAST_SHARE
from ..capture.shapes import Shapes
from ..capture.size_samples import Effort
from ..common.errors import FusionError
from ..common.progress import Steps
from .assemble.builds import EngineBuild, compile_programs
from .assemble.given_up import GivenUp, engine_given_up, fused_given_up
from .assemble.variant_trials import order_by_speed
from .options import EngineOptions

Finished = TypeVar("Finished")


def build_hybrid(
    profile: Profile,
    engines: EngineOptions,
    shapes: Shapes | None,
    effort: Effort | None,
    steps: Steps,
    finish: Callable[[Profile, Sequence[EngineBuild]], Finished],
) -> tuple[Finished, list[GivenUp]]:
    """Captures and compiles the segments of a detector, and finishes the hybrid with the engines.

    Segments that can't be one engine become one each.

    Args:
        profile: the detector.
        engines: the engines.
        shapes: the sizes that they take.
        effort: how many sizes are looked at; None: the example's alone.
        steps: shows progress.
        finish: takes the head; it is called again, with other engines, where it raises FusionError.

    Raises:
        CaptureError: a segment that can't be captured, or a head that can't be compiled.
        BackendError: no compiler takes a segment.
    """
    given_up: list[GivenUp] = []
    while True:
        try:
            programs = capture_programs(profile, shapes, engines.calibration_data, steps, effort)
            builds = compile_programs(programs, engines, steps)
            if engines.is_fastest:
                builds = order_by_speed(builds, engines.device, steps)
            return finish(profile, builds), given_up + _engines_given_up(profile, builds)
        except FusionError as error:
            apart = _apart(profile, error.segments)
            if apart is None:
                raise
            profile = apart
            given_up.append(fused_given_up(error.segments, str(error)))
            steps.show(given_up[-1].summary)


def _apart(profile: Profile, segments: Sequence[str]) -> Profile | None:
    """The profile with one group in pieces; None if it has no such group.

    Pieces that were chosen only because they cost nothing in one engine stay in the head.
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


def _engines_given_up(profile: Profile, builds: Sequence[EngineBuild]) -> list[GivenUp]:
    shares: dict[str, Any] = {share.name: share.measured for share in profile.shares}
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
