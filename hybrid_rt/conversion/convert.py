"""Implements :func:`convert`, which turns a detector into a bundle."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backends.selection import Options
from ..bundle.signing import Keys, signing_keys
from ..capture.call_arguments import positional
from ..capture.cut_detector import is_worth_cutting
from ..capture.find_images import Images, check_images
from ..capture.profile import GRAPH, Profile, SegmentOptions, profile_detector
from ..capture.segments import ENGINE_SPEEDUP, predicted_gain
from ..capture.shapes import Shapes, check_shapes
from ..capture.state import RESET, STATES, reset_before_each_call
from ..capture.working_copy import own_arguments, working_copy
from ..common.atomic_files import check_writable
from ..common.class_names import ClassNames
from ..common.errors import CaptureError, HybridRTError, OptionError, VerificationError, split_code
from ..common.progress import Steps
from ..common.specs import engine_name
from ..verification.coco import CocoDataset
from ..verification.latency import check_contract
from ..verification.verify import Thresholds, require
from .assemble.builds import EngineBuild
from .assemble.given_up import GivenUp
from .assemble.head import script_refusal
from .assemble.head_choice import (
    CUT_HEAD,
    RECORDED_HEAD,
    HeadChoice,
    Limits,
    head_choices,
    head_fails,
    input_refused,
    warn_of_recorded_sizes,
)
from .assemble.module_checks import check_module
from .assemble.variant_trials import require_running
from .attempts import Attempt, Work, attempt_cut, attempt_whole, build_hybrid
from .auto_precision import Candidate, candidates, choose
from .calibration import calibration_samples, warn_of_few
from .causes import explained, warn_of_random_numbers, warn_of_recorded_branches
from .checks import Checks, check_hybrid
from .class_names import check_labels, names_for
from .isolation.isolated_compiler import compiling_in_isolation, expect
from .options import AUTO_HEAD, HEADS, CheckOptions, EngineOptions, OutputOptions, check_precision
from .report.data import EngineReport, PrecisionTrial
from .report.report import ConversionReport, report_path
from .report.terminal import shares_table
from .saving import Saved, save_hybrid
from .tightening import build_until_right


@dataclass(frozen=True)
class ConversionResult:
    """Result of :func:`convert`.

    Attributes:
        module: the hybrid as it was saved, ready to run.
        report: what was compiled, verified and measured.
    """

    module: torch.jit.ScriptModule
    report: ConversionReport


@dataclass(frozen=True)
class ConvertOptions:
    """All options of :func:`convert`, in groups."""

    segments: SegmentOptions
    engines: EngineOptions
    head: str
    state: str
    checks: CheckOptions
    output: OutputOptions

    @property
    def takes_whole(self) -> bool:
        """Returns true if the detector may become a single engine.

        Precisions below fp32 are meant for layers with weights, while boxes are computed in fp32. Without a comparison,
        nothing would show whether the detector's own code, which is recorded, is right at other sizes.
        """
        is_alone = self.segments.names == "auto" and self.segments.fuse
        return is_alone and self.engines.first_precision == "fp32" and self.checks.effort is not None

    @property
    def wants_cut(self) -> bool:
        """Returns true if the user asked for the dense part of the exported graph."""
        return self.segments.names == GRAPH

    @property
    def takes_cut(self) -> bool:
        """Returns true if the dense part may be cut out of the exported graph."""
        return self.wants_cut or (self.takes_whole and self.head in (AUTO_HEAD, CUT_HEAD))

    def check(self, detector: nn.Module, example_inputs: tuple[Any, ...]) -> None:
        """Checks everything that can be checked before any work begins.

        Raises:
            HybridRTError: see :func:`convert`.
        """
        check_precision(self.engines.precision, "convert", auto=True)
        if self.head not in (AUTO_HEAD, *HEADS):
            names = ", ".join((AUTO_HEAD, *HEADS))
            raise OptionError.make("convert", "head", expected=f"one of {names}", got=f"'{self.head}'")
        if self.wants_cut and self.head not in (AUTO_HEAD, CUT_HEAD):
            raise OptionError.make(
                "convert",
                f"segments='{GRAPH}'",
                expected=f"head='{AUTO_HEAD}' or '{CUT_HEAD}'",
                got=f"'{self.head}'",
                remedy="Omit head=, or name submodules in segments=.",
            )
        if self.state not in STATES:
            raise OptionError.make("convert", "state", expected=f"one of {', '.join(STATES)}", got=f"'{self.state}'")
        check_shapes(self.segments.shapes)
        check_images(detector, example_inputs, self.segments.images)
        check_writable(self.output.path)
        if self.output.report is not None:
            check_writable(report_path(self.output.report))
        signing_keys(self.output.sign)
        if self.output.contract_sizes is not None:
            check_contract(example_inputs, self.output.contract_sizes, self.engines.device)
        tried = candidates(self.engines)[0] if self.engines.is_auto_precision else [self.engines]
        for engines in tried:
            _ = engines.variants
            self.checks.limits(engines.first_precision)
        _ = self.checks.effort
        _ = self.checks.truth


def convert(
    detector: nn.Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    segments: str | Sequence[str] = "auto",
    fuse: bool = True,
    head: str = "auto",
    engine: str | Sequence[str] = "auto",
    precision: str = "fp32",
    device: str = "cpu",
    options: Options | None = None,
    calibration_data: Iterable[tuple[Any, ...] | Mapping[str, Any]] = (),
    shapes: Shapes | None = None,
    images: Images | None = None,
    state: str = "refuse",
    fallback: bool = True,
    verify: bool | str = True,
    verify_inputs: Sequence[tuple[Any, ...]] = (),
    thresholds: Thresholds | None = None,
    dataset: CocoDataset | None = None,
    max_map_drop: float = 0.005,
    class_names: ClassNames | None = None,
    golden: bool = True,
    measure: bool = True,
    latency_contract: bool = False,
    report: str | os.PathLike[str] | None = None,
    sign: Keys = (),
    progress: bool | None = None,
) -> ConversionResult:
    """Compiles the dense part of a detector, keeps the rest in TorchScript, and saves both as one `.pt`.

    Args:
        detector: the detector, in eval mode, on the CPU. It is not changed.
        example_inputs: the tuple of its positional arguments, e.g. ``([image],)`` for torchvision; image: float32
            [3, H, W] in 0..1. Use an image with objects, because the boxes are compared. Or a dict of arguments by
            name, also in ``calibration_data`` and ``verify_inputs``.
        output: path of the `.pt` to write; its directory must exist.
        segments: dotted names of the submodules to compile, or "auto": the outermost ones that have weights, take and
            return tensors, do the same in every call, and account for at least 1 % of the counted work on the example;
            the whole detector, or the largest part of its exported graph, where that does more (docs/segments.md).
            "graph": that part in any case.
        fuse: share one engine among segments that feed each other directly, e.g. "backbone+rpn.head".
        head: conversion of the rest. "script" compiles its code; "export" uses torch.export with free sizes, for heads
            that do not script; "trace" records it on the example, which is right only for inputs that take the same
            branches and loops. "auto": the first of these that gives the detector's results; the report says which
            one, and why not the earlier ones.
        engine: name of a backend; a list of names stores several variants, best first, and "openvino:bf16" sets the
            precision of one. "auto": OpenVINO for the CPU, TensorRT for CUDA (AOTInductor without TensorRT).
            "fastest": all installed ones except tvm, ordered by their measured time; one that can't compile a segment
            gives a warning.
        precision: "fp32", or "bf16", "fp16", "int8" for the engines that support it ("torchscript" stays in fp32,
            "torchscript:bf16" does not). "auto": the fastest that passes verification on this machine, among those that
            the engine and the CPU support, int8 only with ``calibration_data``; the report names the choices.
        device: "cpu" or "cuda": target of engines that support several devices, and where the hybrid is compared, if
            this machine has one.
        options: options of the compilers by engine name: ``{"tensorrt": {"tf32": False}}``; see the engine's page.
        calibration_data: tuples of arguments for "int8", some tens of typical images; at most 300 are used, and at
            most 2 GiB of the values that they produce in the detector are kept.
        shapes: image sizes [(height, width), ...] to support, or ranges of the backbone's input {"batch": (min, max),
            "height": ..., "width": ...}. None: all sizes that the detector's own transform can produce, or the
            example's size if it has no transform.
        images: inputs that are images, by position, by name, or by the path into a nested argument, e.g. ``[0]``,
            ``["image", (1, "depth")]``; or with their layouts: ``{"image": "NHWC"}``, in letters from N, C, T,
            D, H, W. None: inputs whose pixels reach a convolution. Only images, and inputs that vary with them, are
            resized.
        state: treatment of a detector that keeps state in buffers or attributes, so that its results depend on earlier
            images. "refuse": raise an error that names them. "reset": start each call of the hybrid from their current
            values. A grid that is cached for the last size does not count as state.
        fallback: add a TorchScript variant in fp32 as the last one, which runs wherever torch does.
        verify: compare segment outputs and boxes with the detector's, at the example's size and at some drawn from
            ``shapes``, and save nothing that differs. "thorough": use many sizes, a minute or more per engine.
        verify_inputs: further tuples of arguments to compare on. Sizes of inputs that are not images, such as the
            number of points, are free if they differ here from the example's.
        thresholds: limits for equality, see :class:`hybrid_rt.Thresholds`; None: those of the precision.
        dataset: annotated images: reports the mAP of detector and hybrid, and saves nothing if the hybrid's is too
            low. With verify=False it is the only check.
        max_map_drop: largest allowed drop of the mAP, in 0..1.
        class_names: names of the labels, stored in the bundle for programs and pages. A list whose index is the label
            (torchvision's begins with "__background__"), {label: name}, or torchvision's weights, e.g.
            ``FasterRCNN_ResNet50_FPN_Weights.DEFAULT``, because a detector does not know its weights. None: the
            detector's attribute ``class_names``, or the category names of ``dataset``, if there are any.
        golden: store the example and the detector's result in the bundle, for ``hybrid-rt verify``. With verify=False,
            the sample says that it has not been compared.
        measure: measure the latencies of detector and hybrid on the example, and of the hybrid's first call at a new
            size: a few seconds, see docs/report.md.
        latency_contract: measure p50, p95 and p99 of 100 calls on this machine, at each size in ``shapes`` or else at
            the golden sample's, and store them in the bundle. `hybrid-rt verify --latency` and C++ check them on the
            target, see :func:`hybrid_rt.measure`.
        report: file for the report, `.html` or `.json`. It is also written if the verification fails, and then shows
            the differences.
        sign: one or more PEM files with Ed25519 private keys that sign the bundle before it is renamed to ``output``,
            see :func:`hybrid_rt.sign`. Replacing a bundle drops its signatures; the report lists them.
        progress: show each step on stderr; None: if it is a terminal.

    Returns:
        The hybrid and the report.

    Raises:
        OptionError: an argument or the dataset can't be used.
        CaptureError: a segment can't be captured, or the head can't be converted.
        BackendError: an engine is not installed, or its compiler refuses a segment.
        VerificationError: the hybrid's results differ from the detector's; nothing was saved.
        BundleError: the file can't be written.

    Examples:
        >>> result = hybrid_rt.convert(detector, ([image],), "detector.pt", segments="backbone")
        >>> result.report.verification.passed
        True
        >>> detections = result.module([image])
    """
    check_module(detector, "convert", "detector")
    example = positional(detector, example_inputs, "example_inputs")
    further = [positional(detector, arguments, "verify_inputs") for arguments in verify_inputs]
    calibration = calibration_samples(detector, calibration_data, "convert")
    wanted = ConvertOptions(
        segments=SegmentOptions(segments, fuse, shapes, images, further),
        engines=EngineOptions(engine, precision, device, options, fallback, calibration),
        head=head,
        state=state,
        checks=CheckOptions(verify, further, thresholds, dataset, max_map_drop),
        output=OutputOptions(
            Path(output), golden, measure, report, sign, _contract_sizes(shapes) if latency_contract else None
        ),
    )
    wanted.check(detector, example)
    warn_of_few(calibration, "convert")
    with torch.inference_mode(mode=False), torch.no_grad(), compiling_in_isolation():
        copied = working_copy(detector)
        if state == RESET:
            reset_before_each_call(copied)
        try:
            return _convert(copied, own_arguments(example), wanted, class_names, Steps(progress))
        except HybridRTError as error:
            raise explained(error, copied, own_arguments(example)) from error.__cause__


def _contract_sizes(shapes: Shapes | None) -> list[tuple[int, int]]:
    """Returns the sizes to measure a latency contract at; empty: the golden sample's."""
    return [] if shapes is None or isinstance(shapes, Mapping) else [(height, width) for height, width in shapes]


def _convert(
    detector: nn.Module,
    example_inputs: tuple[Any, ...],
    wanted: ConvertOptions,
    class_names: ClassNames | None,
    steps: Steps,
) -> ConversionResult:
    """Does the work of :func:`convert`, on a copy of the detector that may be changed."""
    names = names_for(class_names, detector, wanted.checks.truth)
    profile = profile_detector(detector, example_inputs, wanted.segments, steps)
    check_labels(class_names, names, profile.observation.result)
    built, wanted, trials = _built_in_precision(profile, wanted, steps)
    (taken, checks), profile, hybrid = built.finished, built.profile, built.finished[0].hybrid
    saved = Saved()
    if checks.passed:
        saved = save_hybrid(hybrid, profile, checks, wanted.output, names, wanted.checks.inputs, steps)
    result = ConversionReport(
        detector=type(detector).__name__,
        path=str(wanted.output.path),
        engines=[EngineReport.of(build, profile.shares) for build in hybrid.builds],
        head=taken.mode,
        head_refused=taken.refused,
        head_operators=hybrid.operators,
        verification=checks.verification,
        precision=checks.precision,
        shares=profile.shares,
        predicted_gain=predicted_gain(profile.shares, ENGINE_SPEEDUP[checks.precision]),
        thresholds=checks.thresholds if wanted.checks.verify else None,
        pictures=checks.images,
        class_names=names,
        seconds=steps.seconds,
        given_up=built.given_up,
        state=profile.state.kept,
        precisions=trials,
        **vars(saved),
    )
    if wanted.output.report is not None:
        result.save(wanted.output.report)  # of a hybrid that is refused too: it shows what differs
    require(checks.verification)
    warn_of_random_numbers(detector, profile.drawn)
    warn_of_recorded_branches(detector, taken.mode, taken.refused)
    return ConversionResult(hybrid.module, result)


_Built = Attempt[tuple[HeadChoice, Checks]]


def _built_in_precision(
    profile: Profile, wanted: ConvertOptions, steps: Steps
) -> tuple[_Built, ConvertOptions, list[PrecisionTrial]]:
    """Builds the hybrid in the requested precision, or for "auto" in each, and chooses the fastest.

    Raises:
        HybridRTError: see :func:`_built`.
    """

    def build(engines: EngineOptions) -> _Built:
        built, given_up = build_until_right(
            engines,
            lambda further: _built(profile, replace(wanted, engines=further), steps),
            lambda built: _failure_of(built.finished),
            steps,
        )
        return replace(built, given_up=[*given_up, *built.given_up])

    def candidate(built: _Built) -> Candidate:
        return Candidate(built.finished[0].hybrid, _failure_of(built.finished))

    if not wanted.engines.is_auto_precision:
        return build(wanted.engines), wanted, []
    chosen, engines, trials = choose(wanted.engines, build, candidate, profile.example, steps)
    return chosen, replace(wanted, engines=engines), trials


def _built(profile: Profile, wanted: ConvertOptions, steps: Steps) -> Attempt[tuple[HeadChoice, Checks]]:
    """Builds the hybrid: the whole detector as one engine if possible, else its segments.

    Raises:
        OptionError: It can't be one engine, and has no segment that is worth compiling.
    """

    def finish(profile: Profile, builds: Sequence[EngineBuild]) -> tuple[HeadChoice, Checks]:
        return _checked_head(profile, builds, wanted, steps)

    work = Work(wanted.engines, wanted.segments.shapes, wanted.checks.effort, steps, finish, _failure_of)
    given_up: list[GivenUp] = []
    if wanted.takes_whole:
        whole = attempt_whole(profile, work)
        if isinstance(whole, Attempt):
            return whole
        given_up += [whole] if whole else []
    if wanted.takes_cut:
        profile = _with_head_refused(profile, wanted)
        if wanted.wants_cut or _may_cut(profile, wanted):
            cut = attempt_cut(profile, work, wanted=wanted.wants_cut)
            if isinstance(cut, Attempt):
                return replace(cut, given_up=[*given_up, *cut.given_up])
            given_up += cut
    if profile.nothing is not None:
        raise _nothing(profile.nothing, given_up)
    steps.show(shares_table(profile.shares, wanted.engines.first_precision))
    expect([engine_name(group) for group in profile.groups], wanted.engines.variants)
    built = build_hybrid(profile, work)
    return replace(built, given_up=[*given_up, *built.given_up])


def _nothing(error: OptionError, given_up: Sequence[GivenUp]) -> OptionError:
    """Returns the error for a detector without a segment, with the reason why its exported graph has no engine."""
    if not given_up:
        return error
    return error.extended(f"Its exported graph has no part for an engine either: {split_code(given_up[-1].reason)[0]}")


def _with_head_refused(profile: Profile, wanted: ConvertOptions) -> Profile:
    """Returns the profile, with the reason why the head can't be scripted if other heads may be tried."""
    if wanted.head != AUTO_HEAD or not is_worth_cutting(profile):
        return profile
    reason = script_refusal(profile)
    return replace(profile, head_refused={HEADS[0]: reason}) if reason else profile


def _may_cut(profile: Profile, wanted: ConvertOptions) -> bool:
    """Returns true if cutting the exported graph is worth a try.

    A head that can be scripted is kept, because it supports lists of any length and branches on values.
    """
    is_scripted = wanted.head == AUTO_HEAD and not profile.head_refused and profile.nothing is None
    return is_worth_cutting(profile) and not is_scripted


def _failure_of(finished: tuple[HeadChoice, Checks]) -> str:
    verification = finished[1].verification
    return "" if verification is None or verification.passed else verification.failures[0]


def _checked_head(
    profile: Profile, builds: Sequence[EngineBuild], wanted: ConvertOptions, steps: Steps
) -> tuple[HeadChoice, Checks]:
    """Converts the head, and compares the hybrid with the detector.

    If the results of a scripted head differ although those of the engines do not, or if it raises an error where the
    detector does not, the next head is tried. If there is none, the scripted head and its comparison are returned.

    Raises:
        CaptureError: No head can be used.
        VerificationError: A head raises an error where the detector does not, and no other one can be used.
        VariantError: An engine fails at one of the sizes of its segment.
    """
    engines, precision = wanted.engines, wanted.engines.first_precision
    limits = Limits(precision, wanted.checks.limits(precision))
    choices = head_choices(profile, builds, wanted.head, engines.device, limits)
    found: tuple[HeadChoice, Checks] | None = None
    failed: VerificationError | None = None
    reason: str | None = None
    while True:
        try:
            with steps.step("script and freeze the head"):
                choice = choices.send(reason)
        except CaptureError:
            if found is not None:
                return found
            require_running(builds)  # a head that runs its engines may have met one that fails
            if failed is not None:
                raise failed from failed.__cause__
            raise
        try:
            checks = check_hybrid(choice.hybrid, profile, wanted.checks, precision, steps)
        except HybridRTError:
            raise
        except Exception as error:  # TorchScript's interpreter may raise anything in the head
            require_running(builds)
            refused = input_refused(error, wanted.checks.inputs)
            if refused is not None:
                raise refused from error
            failure = head_fails(error)
            failure.__cause__ = error
            if wanted.head != AUTO_HEAD:
                raise failure from error
            failed, reason = failed or failure, str(failure)
            continue
        reason = None
        found = found or (choice, checks)
        if checks.passed:
            if wanted.head == RECORDED_HEAD:
                warn_of_recorded_sizes(profile, choice.hybrid, limits)
            return choice, checks
        if wanted.head != AUTO_HEAD or not checks.verification or checks.verification.engines_failed:
            return found
