"""The last step of a conversion: write the bundle, and time it beside its detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..bundle import archive
from ..bundle.manifest import Detector, Golden, Head, Manifest, Member
from ..bundle.manifest import Engine as StoredEngine
from ..capture.profile import Profile
from ..common.progress import Steps
from ..common.version import __version__
from ..verification import golden
from .assemble.builds import EngineBuild
from .assemble.hybrid import Hybrid
from .checks import Checks
from .options import OutputOptions
from .report.measurement import Measurement, measure_hybrid


@dataclass(frozen=True)
class Saved:
    """The outcome of saving a bundle; the defaults stand for a conversion that saved nothing.

    Attributes:
        golden: what to say of the golden sample.
        file_size: in bytes.
        measurement: the latencies; None: see ``not_measured``.
        not_measured: why there are none.
        signed_with: the keys that have signed the bundle.
        signatures_dropped: the keys that had signed what stood in its place.
    """

    golden: str = ""
    file_size: int = 0
    measurement: Measurement | None = None
    not_measured: str = "not asked for"
    signed_with: list[str] = field(default_factory=list)
    signatures_dropped: list[str] = field(default_factory=list)


def save_hybrid(
    hybrid: Hybrid,
    profile: Profile,
    checks: Checks,
    output: OutputOptions,
    class_names: Sequence[str],
    inputs: Sequence[tuple[Any, ...]],
    steps: Steps,
) -> Saved:
    """Writes the bundle, then times it on the example, if that was asked for.

    Args:
        hybrid: the hybrid.
        profile: the detector.
        checks: the comparison, which passed.
        output: where to, and what else.
        class_names: by label; none: the bundle says nothing of them.
        inputs: tuples of arguments that were compared besides the example.
        steps: shows the progress.

    Raises:
        BundleError: the file can't be written.
    """
    with steps.step("save"):
        description, record = golden.pack(checks.golden, golden.NOT_REPEATED) if output.golden else golden.pack(None)
        manifest = _manifest(hybrid, profile, checks, Golden.from_json(description), class_names)
        change = archive.save(hybrid.module, output.path, manifest, record, sign=output.sign)
    measurement, reason = None, "not asked for"
    if output.measure:
        with steps.step("measure"):
            programs = [build.program for build in hybrid.builds]
            measurement, reason = measure_hybrid(
                profile.truth,
                output.path,
                [profile.example, *inputs],
                profile.images,
                programs,
                profile.observation.seconds,
            )
    return Saved(
        golden.describe(description),
        output.path.stat().st_size,
        measurement,
        reason,
        signed_with=list(change.signed),
        signatures_dropped=list(change.dropped),
    )


def _manifest(
    hybrid: Hybrid, profile: Profile, checks: Checks, golden_sample: Golden, class_names: Sequence[str]
) -> Manifest:
    detector = type(profile.truth)
    return Manifest(
        engines=tuple(_stored(build) for build in hybrid.builds),
        versions={"hybrid_rt": __version__, "torch": torch.__version__},
        detector=Detector(f"{detector.__module__}.{detector.__qualname__}"),
        class_names=tuple(class_names) or None,
        head=Head(tuple(hybrid.operators)),
        verification=checks.verification.to_json() if checks.verification else None,
        golden=golden_sample,
    )


def _stored(build: EngineBuild) -> StoredEngine:
    return build.packed.engine(
        [Member(member.name, member.first, member.output.count) for member in build.program.members]
    )
