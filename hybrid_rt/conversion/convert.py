"""The one call: a detector becomes a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backends.selection import FASTEST, Options, check_calibration, choose_variants, settle
from ..bundle import archive
from ..bundle.blob_table import Packed, pack
from ..capture.observe import observe
from ..capture.probe_inputs import samples_of
from ..capture.program import Program, capture, flows_straight, record_runs
from ..capture.recordings import ranges_on, recorded, watched
from ..capture.segments import ENGINE_SPEEDUP, group, named, possible, predicted_gain, shares_of
from ..capture.shapes import Shapes, check_shapes
from ..common.atomic_files import check_writable
from ..common.errors import BackendError, CaptureError, HybridRTError, OptionError
from ..common.progress import Steps
from ..common.specs import PRECISIONS, Artifact, ArtifactSpec
from ..verification import coco
from ..verification import golden as golden_sample
from ..verification.coco import CocoDataset
from ..verification.verify import (
    TensorError,
    Thresholds,
    Verification,
    compare_dataset,
    compare_modules,
    require,
    thresholds_of,
)
from .assemble.engine_module import make_engine, prepare
from .assemble.head import HEADS, OnDevice, frozen_head
from .assemble.module_checks import check_module
from .assemble.variant_trials import add_variants, compare_variants, fastest_first
from .report.data import SegmentReport
from .report.images import PictureSamples
from .report.measurement import measure_hybrid
from .report.report import ConversionReport, report_path
from .report.terminal import shares_table


@dataclass(frozen=True)
class ConversionResult:
    """What :func:`convert` returns: the hybrid as it was saved, and the report."""

    module: torch.jit.ScriptModule
    report: ConversionReport


def convert(
    detector: nn.Module,
    example_inputs: tuple[Any, ...],
    output: str | os.PathLike[str],
    *,
    segments: str | Sequence[str] = "auto",
    fuse: bool = True,
    head: str = "script",
    engine: str | Sequence[str] = "auto",
    precision: str = "fp32",
    device: str = "cpu",
    options: Options | None = None,
    calibration_data: Sequence[tuple[Any, ...]] = (),
    shapes: Shapes | None = None,
    fallback: bool = True,
    verify: bool = True,
    verify_inputs: Sequence[tuple[Any, ...]] = (),
    thresholds: Thresholds | None = None,
    dataset: CocoDataset | None = None,
    max_map_drop: float = 0.005,
    golden: bool = True,
    measure: bool = True,
    report: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> ConversionResult:
    """Compiles the dense part of a detector, leaves the rest in TorchScript, saves both as one `.pt`.

    Args:
        detector: the detector, in eval mode, on the CPU. It is not changed.
        example_inputs: the tuple of its positional arguments, e.g. ``([image],)`` for torchvision; image: [3, H, W]
            in 0..1. The boxes found on it are compared, so give a picture with objects.
        output: the `.pt` to write; its folder must exist.
        segments: dotted names of the submodules to compile, or "auto": the outermost ones that have weights, take and
            return tensors, do the same in every call, and take at least 1 % of the time on the example.
        fuse: make one engine of segments between which data flows straight, e.g. "backbone+rpn.head".
        head: "script", or "trace": what is left is recorded on the example, with its branches and loops as they went
            there. For a head that does not script; it is right for such inputs only.
        engine: a backend's name; a list of names puts several variants into the file, best first, "openvino:bf16"
            names one with its precision; "auto": OpenVINO for the CPU, TensorRT for CUDA (AOTInductor where no
            TensorRT is installed); "fastest": all that are installed but tvm, in the order of what is measured here;
            one that can't compile a segment is a warning.
        precision: "fp32", or "bf16", "fp16", "int8" for the engines that have it ("torchscript" stays in fp32,
            "torchscript:bf16" does not).
        device: "cpu" or "cuda": what engines of several kinds are compiled for, and where the hybrid is compared, if
            there is one here.
        options: of the compilers, by the engine's name: ``{"tensorrt": {"tf32": False}}``; the engine's page lists
            them.
        calibration_data: for "int8": tuples of arguments, some tens of pictures of the kind that will be seen.
        shapes: picture sizes [(height, width), ...] that the detector will be given, or ranges of the backbone's
            input {"batch": (min, max), "height": ..., "width": ...}. None: all that the detector's own transform can
            produce; the example's size if it has none.
        fallback: add a TorchScript variant in fp32 as the last one, which runs wherever torch does.
        verify: compare segment outputs and boxes with the detector's, and refuse to save what differs.
        verify_inputs: further tuples of arguments to compare on.
        thresholds: what counts as equal, see :class:`hybrid_rt.Thresholds`; None: by precision.
        dataset: annotated pictures: the mAP of detector and hybrid on them is reported, and nothing is saved if the
            hybrid's is too far below. With verify=False it is the only gate.
        max_map_drop: by how much (mAP is in 0..1) the hybrid's may be below the detector's.
        golden: put the example and what the detector found on it into the bundle, for ``hybrid-rt verify``.
            With verify=False too: the sample then says that nobody has compared it yet.
        measure: time detector and hybrid on the example, and the hybrid's first call at a size that is new to it:
            a few seconds, see docs/report.md.
        report: where to write the report too: a `.html` page or `.json`. It is also written if the verification
            fails, and then shows what differs.
        progress: show each step on stderr; None: if it is a terminal.

    Returns:
        The hybrid and the report.

    Raises:
        OptionError: an argument, or a data set that can't be used; the text names what was expected.
        CaptureError: a segment that can't be captured, or a head that TorchScript can't compile.
        BackendError: an engine that is not installed, or whose compiler refuses.
        VerificationError: the hybrid finds something else; nothing was saved.
        BundleError: the file can't be written.
    """
    path = Path(output)
    _check_arguments(detector, example_inputs, precision, head)
    check_shapes(shapes)
    check_writable(path)
    if report is not None:
        check_writable(report_path(report))
    chosen = None if segments == "auto" else named(detector, segments)
    wanted = choose_variants(engine, precision, fallback, device=device, options=options)
    check_calibration(wanted, calibration_data)
    best = engine if isinstance(engine, str) else engine[0]
    precision = best.partition(":")[2] or precision  # of what runs where all can
    limits = thresholds or thresholds_of(precision)
    truth = coco.read(dataset, max_map_drop) if dataset is not None else None
    steps = Steps(progress)

    with steps.step("run the detector on the example"):
        observation = observe(detector, example_inputs)
    with steps.step("look for what pays"):
        samples = samples_of(detector, example_inputs, shapes)
        first, findings = watched(detector, example_inputs, samples, chosen or possible(detector, observation))
        shares = shares_of(detector, observation, findings, chosen, fuse=fuse)
    gain = predicted_gain(shares, ENGINE_SPEEDUP[precision])
    steps.show(shares_table(shares, gain, ENGINE_SPEEDUP[precision], precision))
    groups = group(detector, [share.name for share in shares if share.chosen], observation, fuse=fuse)
    with steps.step("run it on other pictures, to see which dimensions vary"):
        runs = recorded(detector, example_inputs, samples, groups, first)
        calibration = record_runs(detector, [name for members in groups for name in members], calibration_data)
        programs = [
            capture(
                detector,
                members,
                observation,
                runs,
                ranges_on(detector, example_inputs, observation, members[0], shapes),
                calibration,
            )
            for whole in groups
            for members in (
                [whole] if flows_straight(detector, whole, observation, runs) else [[name] for name in whole]
            )
        ]
    artifacts: dict[str, list[Artifact]] = {program.name: [] for program in programs}
    refusals: dict[str, list[HybridRTError]] = {program.name: [] for program in programs}
    cached: dict[tuple[str, str], bool] = {}
    variants = [(program, variant) for program in programs for variant in wanted]
    for i, (program, variant) in enumerate(variants):
        try:
            artifact, hit = variant.compiled(program, steps, total=len(variants), done=i)
        except (BackendError, CaptureError) as error:
            if engine != FASTEST:
                raise
            refusals[program.name].append(error)
            continue
        artifacts[program.name].append(artifact)
        cached[program.name, variant.name] = hit
    for program in programs:
        settle(program.name, len(artifacts[program.name]), refusals[program.name], "convert")
    if engine == FASTEST:
        with steps.step("see which engine is the fastest"):
            for program in programs:
                artifacts[program.name], line = fastest_first(program, artifacts[program.name], device)
                steps.show(line)
    with steps.step(f"{head} and freeze the head"):
        packed = {program.name: pack(artifacts[program.name]) for program in programs}
        engines = {program.name: make_engine(program.name, packed[program.name]) for program in programs}
        frozen, operators = frozen_head(detector, example_inputs, samples, programs, engines, head)
    verification = None
    inputs = [example_inputs, *verify_inputs]
    pictures = PictureSamples(limits)
    if verify:
        with steps.step("verify", total=len(variants) + len(inputs)) as advance:
            verification = _verify(
                detector,
                frozen,
                programs,
                engines,
                artifacts,
                inputs,
                observation.result,
                precision,
                thresholds,
                pictures,
                advance,
                device,
            )
    if truth is not None:
        verification = verification or Verification(precision)
        with (
            steps.step(f"mean average precision on {len(truth.files)} pictures"),
            _emulated(frozen, engines, device) as hybrid,
        ):
            compare_dataset(verification, detector, hybrid, truth, max_map_drop)
    result = ConversionReport(
        detector=type(detector).__name__,
        path=str(path),
        segments=[SegmentReport.of(program, artifacts[program.name], cached, shares) for program in programs],
        head_operators=operators,
        verification=verification,
        precision=precision,
        shares=shares,
        predicted_gain=gain,
        thresholds=limits if verify else None,
        pictures=pictures.pictures,
        seconds=steps.seconds,
    )
    if verification is not None:
        if report is not None and not verification.passed:
            result.save(report)  # it shows what differs
        require(verification)
    sample = (
        golden_sample.sample(example_inputs, observation.result, verification, precision, limits) if golden else None
    )
    described, record_bytes = golden_sample.pack(sample)
    result.golden = golden_sample.describe(described)
    with steps.step("save"):
        manifest = {**_manifest(detector, programs, packed, operators, verification), "golden": described}
        archive.save(frozen, path, manifest, record_bytes)
    result.file_size = path.stat().st_size
    if measure:
        with steps.step("measure"):
            result.measurement, result.not_measured = measure_hybrid(
                detector, path, inputs, programs, observation.seconds
            )
    if report is not None:
        result.save(report)
    return ConversionResult(frozen, result)


def _check_arguments(detector: nn.Module, example_inputs: tuple[Any, ...], precision: str, head: str) -> None:
    check_module(detector, "convert", "detector")
    if not isinstance(example_inputs, tuple):
        raise OptionError.make(
            "convert",
            "example_inputs",
            expected="the tuple of the detector's positional arguments",
            got=type(example_inputs).__name__,
            remedy="For torchvision's detectors: ([image],).",
        )
    if precision not in PRECISIONS:
        raise OptionError.make("convert", "precision", expected=f"one of {', '.join(PRECISIONS)}", got=f"'{precision}'")
    if head not in HEADS:
        raise OptionError.make("convert", "head", expected=f"one of {', '.join(HEADS)}", got=f"'{head}'")


def _verify(
    detector: nn.Module,
    hybrid: torch.jit.ScriptModule,
    programs: Sequence[Program],
    engines: Mapping[str, Any],
    artifacts: Mapping[str, list[Artifact]],
    inputs: Sequence[tuple[Any, ...]],
    result: Any,
    precision: str,
    thresholds: Thresholds | None,
    watch: Callable[[tuple[Any, ...], Any, Any], None],
    advance: Callable[[], None],
    device: str,
) -> Verification:
    """Every variant's outputs on the recorded calls, then what the hybrid with the best variants finds.

    ``result``: what the detector found on the first input. ``thresholds``: None means by precision.
    All in the precision that the file promises, even where this CPU can only emulate it.
    """
    compared: list[tuple[ArtifactSpec, list[TensorError]]] = []
    not_run: list[str] = []
    for program in programs:
        errors, refusals = compare_variants(program, engines[program.name], artifacts[program.name], advance)
        compared += errors
        not_run += refusals

    def compared_one(arguments: tuple[Any, ...], expected: Any, found: Any) -> None:
        watch(arguments, expected, found)
        advance()

    with _emulated(hybrid, engines, device) as module:
        verification = compare_modules(
            detector,
            module,
            inputs,
            precision=precision,
            thresholds=thresholds or thresholds_of(precision),
            known=[result],
            watch=compared_one,
        )
    verification.not_run = not_run
    add_variants(verification, compared, thresholds)
    return verification


@contextmanager
def _emulated(hybrid: torch.jit.ScriptModule, engines: Mapping[str, Any], device: str) -> Iterator[nn.Module]:
    """The hybrid in the precision that the file promises, even where this CPU can only emulate it.

    On the device that it is for, if there is one here: it takes and returns tensors on the CPU all the same.
    """
    place = device if device != "cuda" or torch.cuda.is_available() else "cpu"
    for engine in engines.values():
        prepare(engine, device=place, emulate_precision=True)
    yield hybrid if place == "cpu" else OnDevice(hybrid, place)
    for engine in engines.values():
        prepare(engine, device=place)


def _manifest(
    detector: nn.Module,
    programs: Sequence[Program],
    packed: Mapping[str, Packed],
    operators: list[str],
    verification: Verification | None,
) -> dict[str, Any]:
    from ..common.version import __version__

    return {
        "versions": {"hybrid_rt": __version__, "torch": torch.__version__},
        "detector": {"class": f"{type(detector).__module__}.{type(detector).__qualname__}"},
        "segments": [
            packed[program.name].segment(
                program.name,
                members=[
                    {"name": member.name, "first": member.first, "count": member.output.count}
                    for member in program.members
                ],
            )
            for program in programs
        ],
        "head": {"operators": operators},
        "verification": verification.to_json() if verification else None,
    }
