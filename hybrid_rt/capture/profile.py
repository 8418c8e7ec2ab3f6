"""The first half of a conversion: profile a detector, choose its segments, capture them as programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..common.errors import CaptureError, FusionError, OptionError, SegmentError
from ..common.image_inputs import ImageInputs
from ..common.progress import Steps
from .calibration import record_calibration
from .detector_errors import NamingTheLine
from .export_head import ExportedHead
from .find_images import Images, find_images
from .observe import Observation, observe
from .probe_inputs import Sample, samples_of
from .program import Program, capture, is_fed_directly
from .recordings import Recorded, record_first, record_samples, varying_constants
from .segments import Share, candidate_segments, fuse_groups, resolve_names, shares_of
from .shapes import Shapes, input_ranges
from .side_effects import ITSELF
from .size_checks import right_at_sizes
from .size_samples import Effort, record_sizes, sized_runs
from .state import StateWatch

AUTO = "auto"
"""In the place of names: segments are chosen."""

GRAPH = "graph"
"""In the place of names: the segment is the largest part of the exported graph that an engine takes."""


@dataclass(frozen=True)
class SegmentOptions:
    """Options for choosing segments and the sizes at which they run.

    Attributes:
        names: dotted names; :data:`AUTO`: the ones that are worth compiling, by profiling; or :data:`GRAPH`.
        fuse: make one engine of segments that feed each other directly.
        shapes: see :data:`hybrid_rt.capture.shapes.Shapes`.
        images: which inputs are images, see :data:`hybrid_rt.capture.find_images.Images`; None: found out.
    """

    names: str | Sequence[str] = AUTO
    fuse: bool = True
    shapes: Shapes | None = None
    images: Images | None = None


@dataclass(frozen=True)
class Profile:
    """The results of profiling a detector.

    Attributes:
        observation: the run on its example.
        images: which of its arguments are images.
        samples: further inputs, made from the example.
        first: the recording of the candidates on the first sample.
        shares: each submodule that was looked at, the greatest fraction of the work first.
        groups: the chosen segments; those of one group feed each other directly on the example.
        state: what the detector could keep from call to call, as it was before its first run.
        named: whether the user named the segments.
        findings: what submodules, and the detector itself, do that an engine can't repeat, by their first names.
        fuse: see :class:`SegmentOptions`.
        nothing: why no submodule was chosen, if so.
        drawn: the operator of the detector that draws random numbers, with its line; empty: none does.
        whole: whether the one segment is the detector itself, see :mod:`hybrid_rt.capture.whole`.
        cut: the exported graph that the one segment was cut out of, see :mod:`hybrid_rt.capture.cut_detector`.
        original: the detector, if ``detector`` is a graph that was made of it.
        head_refused: why heads were ruled out that come before the one of ``cut``.
    """

    observation: Observation
    images: ImageInputs
    samples: Sequence[Sample]
    first: Recorded
    shares: list[Share]
    groups: list[list[str]]
    state: StateWatch
    named: bool = False
    findings: Mapping[str, str] = field(default_factory=dict)
    fuse: bool = True
    nothing: OptionError | None = None
    drawn: str = ""
    whole: bool = False
    cut: ExportedHead | None = None
    original: nn.Module | None = None
    head_refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def obstacle(self) -> str:
        """Returns the operation of the detector that an engine cannot repeat, or an empty string."""
        return self.findings.get(ITSELF, "")

    @property
    def detector(self) -> nn.Module:
        """The detector."""
        return self.observation.detector

    @property
    def truth(self) -> nn.Module:
        """Returns the detector that the hybrid is compared with: the user's."""
        return self.original or self.detector

    @property
    def example(self) -> tuple[Any, ...]:
        """Its positional arguments."""
        return self.observation.example


def profile_detector(detector: nn.Module, example: tuple[Any, ...], options: SegmentOptions, steps: Steps) -> Profile:
    """Runs the detector on its example and chooses segments.

    Raises:
        OptionError: a name that does not exist, or one inside another. If no submodule is worth compiling, the
            profile's ``nothing`` says so: the detector as a whole may be.
        CaptureError: a named segment that is not called, or does what an engine can't repeat.
    """
    names = None if options.names in (AUTO, GRAPH) else resolve_names(detector, options.names)
    state = StateWatch(detector)
    try:
        return _profile(detector, example, options, names, steps, state)
    except BaseException:
        state.restore()
        raise


def _profile(
    detector: nn.Module,
    example: tuple[Any, ...],
    options: SegmentOptions,
    names: list[str] | None,
    steps: Steps,
    state: StateWatch,
) -> Profile:
    with steps.step("run the detector on the example"):
        with NamingTheLine(detector, example, "example_inputs"):
            observation = observe(detector, example)
        images = find_images(detector, example, options.images)
    with steps.step("find the submodules worth compiling"):
        samples = samples_of(detector, example, images, options.shapes)
        candidates = names or candidate_segments(observation)
        samples, first, findings, drawn = record_first(observation, samples, candidates)
        findings = {**varying_constants(observation, first), **findings}
        shares: list[Share] = []
        nothing: OptionError | None = None
        try:
            shares = shares_of(observation, findings, names, fuse=options.fuse)
        except OptionError as error:
            nothing = error
        groups = fuse_groups(observation, [share.name for share in shares if share.chosen], fuse=options.fuse)
    return Profile(
        observation,
        images,
        samples,
        first,
        shares,
        groups,
        state,
        named=names is not None,
        findings=findings,
        fuse=options.fuse,
        nothing=nothing,
        drawn=drawn,
    )


def capture_programs(
    profile: Profile,
    shapes: Shapes | None,
    calibration_data: Sequence[tuple[Any, ...]],
    steps: Steps,
    effort: Effort | None = None,
) -> list[Program]:
    """Runs the detector on further inputs and captures its segments, one program per engine.

    Segments that fed each other directly on the example alone become a program each.

    Args:
        profile: the detector and its segments.
        shapes: see :data:`hybrid_rt.capture.shapes.Shapes`.
        calibration_data: arguments of the detector, for int8.
        steps: shows the progress.
        effort: how many further sizes are looked at; None: none.

    Raises:
        FusionError: segments that can't be one program; each of them may be.
        SegmentError: a segment that can't be captured, or one whose code is right at the example's size only.
        CaptureError: a detector that keeps state from call to call.
    """
    try:
        return _capture(profile, shapes, calibration_data, steps, effort)
    finally:
        profile.state.restore()


def _capture(
    profile: Profile,
    shapes: Shapes | None,
    calibration_data: Sequence[tuple[Any, ...]],
    steps: Steps,
    effort: Effort | None,
) -> list[Program]:
    observation = profile.observation
    names = [name for members in profile.groups for name in members]
    with steps.step("run it on other images to find the dimensions that vary"):
        runs = record_samples(observation, profile.samples, names, profile.first)
        sizes = []
        if effort:
            sized = sized_runs(profile.detector, profile.example, profile.images, shapes, effort.most)
            sizes = record_sizes(sized, names, effort)
        profile.state.require_none(profile.example, observation.result)
        engines = [
            members
            for group in profile.groups
            for members in ([group] if is_fed_directly(observation, group, runs) else [[name] for name in group])
        ]
        first = [members[0] for members in engines]
        calibration = record_calibration(profile.detector, names, calibration_data, first)
        programs = []
        for members in engines:
            with _naming(members):
                ranges = input_ranges(observation, members[0], profile.images, shapes)
                program = capture(observation, members, runs, ranges, calibration, sizes)
                programs.append(replace(program, by_export=profile.cut is not None))
    with steps.step("check the segments at other sizes"):
        right = []
        for program in programs:
            with _naming(program.segments):
                right.append(right_at_sizes(program, effort))
        return right


@contextmanager
def _naming(segments: Sequence[str]) -> Iterator[None]:
    """Makes an error within it say which segments it is about."""
    try:
        yield
    except CaptureError as error:
        if len(segments) > 1:
            raise FusionError.of(segments, error) from error
        raise SegmentError.of(segments[0], error) from error


def without_segment(profile: Profile, name: str, reason: str) -> Profile | None:
    """Returns the profile without one segment; those inside it are chosen in its place, as far as they are worth it.

    None if the user named the segments, or if none is left.
    """
    if profile.named:
        return None
    observation = profile.observation
    findings = {**profile.findings, observation.first_name(name): reason}
    try:
        shares = shares_of(observation, findings, None, fuse=profile.fuse)
    except OptionError:
        return None
    groups = fuse_groups(observation, [share.name for share in shares if share.chosen], fuse=profile.fuse)
    return replace(profile, shares=shares, groups=groups, findings=findings)
