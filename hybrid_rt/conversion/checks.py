"""Compares the hybrid with the detector: outputs of every variant, boxes and mAP. Chooses the golden sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..capture.profile import Profile
from ..common.progress import Steps
from ..common.specs import ArtifactSpec
from ..verification import coco
from ..verification.golden import GoldenSample, SampleChoice
from ..verification.verify import TensorError, Thresholds, Verification, compare_modules
from .assemble.hybrid import Hybrid
from .assemble.variant_trials import compare_variants, variant_findings
from .options import CheckOptions
from .report.images import ImageReport, ImageSamples


@dataclass(frozen=True)
class Checks:
    """The comparison of hybrid and detector, and its result.

    Attributes:
        precision: precision whose thresholds apply to the boxes.
        thresholds: limits for equality.
        verification: the comparison; None if it was switched off.
        images: the first images, with the boxes of detector and hybrid.
        golden: sample for a comparison on the target; None if a stored result can't serve as its reference.
    """

    precision: str
    thresholds: Thresholds
    verification: Verification | None
    images: list[ImageReport]
    golden: GoldenSample | None

    @property
    def passed(self) -> bool:
        """Returns true if nothing failed."""
        return self.verification is None or self.verification.passed


def check_hybrid(hybrid: Hybrid, profile: Profile, options: CheckOptions, precision: str, steps: Steps) -> Checks:
    """Compares the hybrid with the detector as the options ask.

    Raises:
        BackendError: No variant of an engine can run here, though one is for the CPU.
        OptionError: The detector's results do not fit the dataset.
    """
    limits = options.limits(precision)
    samples = ImageSamples(limits, profile.images)
    choice = SampleChoice(profile.example, profile.observation.result, limits)
    watchers = (samples, choice)
    try:
        verification = _verify(hybrid, profile, options, precision, watchers, steps) if options.verify else None
    finally:
        profile.state.restore()
    if options.truth is not None:
        verification = verification or Verification(precision)
        with (
            steps.step(f"mean average precision on {len(options.truth.files)} images"),
            hybrid.in_promised_precision() as module,
        ):
            accuracy = coco.compare(profile.truth, module, options.truth, options.max_map_drop)
        verification = verification.with_dataset(accuracy)
    return Checks(precision, limits, verification, samples.images, choice.sample(precision))


def _verify(
    hybrid: Hybrid,
    profile: Profile,
    options: CheckOptions,
    precision: str,
    watchers: Sequence[Callable[[tuple[Any, ...], Any, Any], None]],
    steps: Steps,
) -> Verification:
    """Compares every variant's outputs on the recorded calls, then the results of the hybrid with the best variants.

    Everything runs in the precision that the file promises, even where this CPU can only emulate it.
    """
    inputs = [profile.example, *options.inputs]
    variants = sum(len(build.variants) for build in hybrid.builds)
    with steps.step("verify", total=variants + len(inputs)) as advance:
        compared: list[tuple[ArtifactSpec, list[TensorError]]] = []
        not_run: list[str] = []
        for build in hybrid.builds:
            errors, refusals = compare_variants(build, options.thresholds, advance)
            compared += errors
            not_run += refusals

        def compared_one(arguments: tuple[Any, ...], expected: Any, found: Any) -> None:
            for watch in watchers:
                watch(arguments, expected, found)
            advance()

        with hybrid.in_promised_precision() as module:
            verification = compare_modules(
                profile.truth,
                module,
                inputs,
                precision=precision,
                thresholds=options.limits(precision),
                known=[profile.observation.result],
                watch=compared_one,
            )
        return verification.with_findings(variant_findings(compared, not_run, options.thresholds))
