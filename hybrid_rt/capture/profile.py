"""The first half of a conversion: profiles a detector, chooses its segments, and captures them as programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..common.errors import CaptureError, FusionError, OptionError, SegmentError
from ..common.image_inputs import ImageInputs
from ..common.progress import Steps
from .calibration import record_calibration
from .call_recording import Recorded, record_first, record_samples, varying_constants
from .detector_errors import NamingTheLine
from .export_head import ExportedHead
from .find_images import Images, find_images
from .observe import Observation, observe
from .probe_inputs import Sample, samples_of
from .program import Program, capture, is_fed_directly, varies_in_rows_alone
from .segments import Share, candidate_segments, fuse_groups, resolve_names, shares_of
from .shapes import Shapes, input_ranges
from .side_effects import ITSELF
from .size_checks import right_at_sizes
from .size_samples import Effort, Unneeded, record_sizes, sized_runs
from .state import StateWatch

AUTO = "auto"
"""Value of ``segments`` that chooses the segments by profiling."""

GRAPH = "graph"
"""Value of ``segments`` that makes the largest part of the exported graph that an engine supports the segment."""


@dataclass(frozen=True)
class SegmentOptions:
    """Options for choosing segments and the sizes at which they run.

    Attributes:
        names: dotted names; or :data:`AUTO` for the submodules that are worth compiling; or :data:`GRAPH`.
        fuse: share one engine among segments that feed each other directly.
        shapes: see :data:`hybrid_rt.capture.shapes.Shapes`.
        images: which inputs are images, see :data:`hybrid_rt.capture.find_images.Images`; None: determine them.
        further: arguments of the detector with other sizes of inputs that are not images, such as numbers of points.
    """

    names: str | Sequence[str] = AUTO
    fuse: bool = True
    shapes: Shapes | None = None
    images: Images | None = None
    further: Sequence[tuple[Any, ...]] = ()


@dataclass(frozen=True)
class Profile:
    """The results of profiling a detector.

    Attributes:
        observation: the run on its example.
        images: which of its arguments are images.
        samples: further inputs, derived from the example.
        first: the recording of the candidates on the first sample.
        shares: the submodules that were considered, the largest fraction of the work first.
        groups: the chosen segments; those of one group feed each other directly on the example.
        state: buffers and attributes of the detector, as they were before its first run.
        named: true if the user named the segments.
        findings: operations of submodules and of the detector itself that an engine can't repeat, by first names.
        fuse: see :class:`SegmentOptions`.
        nothing: the error that explains why no submodule was chosen; None if one was.
        drawn: the operator of the detector that draws random numbers, with its line; empty: none does.
        whole: true if the only segment is the detector itself, see :mod:`hybrid_rt.capture.whole_detector`.
        cut: the exported graph that the only segment was cut out of, see :mod:`hybrid_rt.capture.cut_detector`.
        original: the user's detector, if ``detector`` is a graph that was exported from it.
        head_refused: reasons against the modes of the head that precede the one of ``cut``, by mode.
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
        """Returns the user's detector, with which the hybrid is compared."""
        return self.original or self.detector

    @property
    def example(self) -> tuple[Any, ...]:
        """Its positional arguments."""
        return self.observation.example


def profile_detector(detector: nn.Module, example: tuple[Any, ...], options: SegmentOptions, steps: Steps) -> Profile:
    """Runs the detector on its example and chooses segments.

    Raises:
        OptionError: A name does not exist, or is inside another. If no submodule is worth compiling, nothing is raised
            and the profile's ``nothing`` holds the error, because the detector as a whole may be worth it.
        CaptureError: A named segment is not called, or does something that an engine can't repeat.
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
        samples = samples_of(detector, example, images, options.shapes, options.further)
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
    ready: Callable[[Program], None] = lambda _: None,
) -> list[Program]:
    """Runs the detector on further inputs and captures its segments, one program per engine.

    Segments that feed each other directly on the example, but not on all inputs, get one program each.

    Args:
        profile: the detector and its segments.
        shapes: see :data:`hybrid_rt.capture.shapes.Shapes`.
        calibration_data: arguments of the detector, for int8.
        steps: shows the progress.
        effort: budget for checks at further sizes; None: no checks.
        ready: called with the first of several programs before they are checked. Most recordings are right, and then
            this is the program that is returned.

    Raises:
        FusionError: Several segments can't be one program; each alone may be.
        SegmentError: A segment can't be captured, or its code is right only at the example's size.
        CaptureError: The detector keeps state from call to call.
    """
    try:
        return _checked(_capture(profile, shapes, calibration_data, steps, effort), steps, effort, ready)
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
            sizes = record_sizes(sized, names, effort, _unneeded(profile, runs))
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
        return programs


def _unneeded(profile: Profile, runs: Sequence[Recorded]) -> Unneeded:
    """Returns the segments that need not be recorded at further sizes; none if another one is called after them."""
    observation = profile.observation
    by_rows = [group for group in profile.groups if varies_in_rows_alone(observation, group, runs)]
    names = [name for group in by_rows for name in group]
    others = [name for group in profile.groups for name in group if name not in names]
    if not others:
        return Unneeded()
    return Unneeded(
        names,
        {name: len(observation.calls(name)) for name in others},
        sum(observation.uses[observation.first_name(name)].work.cost for name in names),
    )


def _checked(
    programs: Sequence[Program], steps: Steps, effort: Effort | None, ready: Callable[[Program], None]
) -> list[Program]:
    with steps.step("check the segments at other sizes"):
        if len(programs) > 1:
            ready(programs[0])
        right: list[Program] = []
        for program in programs:
            with _naming(program.segments):
                right.append(right_at_sizes(program, effort))
        return right


@contextmanager
def _naming(segments: Sequence[str]) -> Iterator[None]:
    """Converts a CaptureError within the block to one that names the segments."""
    try:
        yield
    except CaptureError as error:
        if len(segments) > 1:
            raise FusionError.of(segments, error) from error
        raise SegmentError.of(segments[0], error) from error


def without_segment(profile: Profile, name: str, reason: str) -> Profile | None:
    """Returns the profile with one segment replaced by those inside it that are worth compiling.

    Returns None if the user named the segments, or if no segment is left.
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
