"""From a profiled detector to a hybrid: what fails is tried again with less, and what was given up is noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..capture.profile import Profile, capture_programs
from ..capture.segments import LEAST_SHARE
from ..capture.shapes import Shapes
from ..common.errors import FusionError
from ..common.progress import Steps
from .assemble.builds import EngineBuild, compile_programs
from .assemble.given_up import GivenUp, engine_given_up, fused_given_up
from .assemble.head import assemble
from .assemble.hybrid import Hybrid
from .assemble.variant_trials import order_by_speed
from .options import EngineOptions


def build_hybrid(
    profile: Profile, engines: EngineOptions, head: str, shapes: Shapes | None, steps: Steps
) -> tuple[Hybrid, list[GivenUp]]:
    """Captures and compiles the segments of a detector, and puts the engines into their places.

    Segments that can't be one engine become one each.

    Raises:
        CaptureError: a segment that can't be captured, or a head that can't be compiled.
        BackendError: no compiler takes a segment.
    """
    given_up: list[GivenUp] = []
    while True:
        try:
            programs = capture_programs(profile, shapes, engines.calibration_data, steps)
            builds = compile_programs(programs, engines, steps)
            if engines.is_fastest:
                builds = order_by_speed(builds, engines.device, steps)
            with steps.step(f"{head} and freeze the head"):
                hybrid = assemble(profile, builds, head, engines.device)
            return hybrid, given_up + _engines_given_up(profile, builds)
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
    shares: dict[str, Any] = {share.name: share.share for share in profile.shares}
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
