"""The one call: a detector becomes a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import bundle, cache, coco, registry, torchscript
from . import golden as golden_sample
from .backends.base import Backend
from .capture import Program, Recorded, capture, flows_straight
from .coco import CocoDataset
from .engine_module import engine_modules, make_engine, prepare, run_flat
from .errors import CaptureError, OptionError
from .exact_transform import exact_transform
from .files import check_writable
from .measure_hybrid import measure_hybrid
from .observe import Observation, observe, recording, watch
from .report import ConversionReport, report_path
from .report_data import SegmentReport
from .report_pictures import PictureSamples
from .report_terminal import shares_table
from .samples import Sample, samples_of
from .segments import ENGINE_SPEEDUP, group, named, possible, predicted_gain, replace, shares_of, use_of
from .shapes import Shapes, check_shapes, ranges_of
from .specs import PRECISIONS, Artifact, pack
from .steps import Steps
from .verify import (
    THRESHOLDS,
    TensorError,
    Thresholds,
    Verification,
    add_tensor_failures,
    compare_dataset,
    compare_modules,
    compare_tensors,
    require,
    thresholds_of,
)

HEADS = ("script", "trace")


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
        engine: a backend's name; a list of names puts several variants into the file, best first; "auto": OpenVINO.
        precision: "fp32", or "bf16" for the engines that have it (TorchScript variants stay in fp32).
        shapes: picture sizes [(height, width), ...] that the detector will be given, or ranges of the backbone's
            input {"batch": (min, max), "height": ..., "width": ...}. None: all that the detector's own transform can
            produce; the example's size if it has none.
        fallback: add a TorchScript variant as the last one, which runs wherever torch does.
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
    backends = _choose_backends(engine, fallback)
    precisions = {backend.name: _precision_of(backend, precision) for backend in backends}
    limits = thresholds or thresholds_of(precision)
    truth = coco.read(dataset, max_map_drop) if dataset is not None else None
    steps = Steps(progress)

    with steps.step("run the detector on the example"):
        observation = observe(detector, example_inputs)
    with steps.step("look for what pays"):
        samples = samples_of(detector, example_inputs, shapes)
        with recording(samples[0].detector, chosen or possible(detector, observation)) as first:
            findings = watch(samples[0].detector, samples[0].arguments)
        shares = shares_of(detector, observation, findings, chosen, fuse=fuse)
    gain = predicted_gain(shares, ENGINE_SPEEDUP[precision])
    steps.show(shares_table(shares, gain, ENGINE_SPEEDUP[precision], precision))
    groups = group(detector, [share.name for share in shares if share.chosen], observation, fuse=fuse)
    with steps.step("run it on other pictures, to see which dimensions vary"):
        runs = _record(detector, example_inputs, samples, groups, first)
        programs = [
            capture(
                detector,
                members,
                observation,
                runs,
                _ranges(detector, example_inputs, observation, members[0], shapes),
            )
            for whole in groups
            for members in (
                [whole] if flows_straight(detector, whole, observation, runs) else [[name] for name in whole]
            )
        ]
    artifacts: dict[str, list[Artifact]] = {program.name: [] for program in programs}
    cached: dict[tuple[str, str], bool] = {}
    variants = [(program, backend) for program in programs for backend in backends]
    for i, (program, backend) in enumerate(variants):
        with steps.step(f"compile {program.name} with {backend.name}", total=len(variants), done=i):
            artifact, hit = cache.compiled(backend, program, precisions[backend.name])
            artifacts[program.name].append(artifact)
            cached[program.name, backend.name] = hit
    engines = {program.name: make_engine(program.name, artifacts[program.name]) for program in programs}
    with steps.step(f"{head} and freeze the head"):
        frozen, operators = _frozen_head(detector, example_inputs, samples, programs, engines, head)
    verification = None
    inputs = [example_inputs, *verify_inputs]
    pictures = PictureSamples(limits)
    if verify:
        with steps.step("verify", total=len(variants) + len(inputs)) as advance:
            verification = _verify(
                detector, frozen, programs, engines, artifacts, inputs, precision, limits, pictures, advance
            )
    if truth is not None:
        verification = verification or Verification(precision)
        with steps.step(f"mean average precision on {len(truth.files)} pictures"), _emulated(engines):
            compare_dataset(verification, detector, frozen, truth, max_map_drop)
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
    sample = golden_sample.sample(detector, example_inputs, verification, precision, limits) if golden else None
    described, record_bytes = golden_sample.pack(sample)
    result.golden = golden_sample.describe(described)
    with steps.step("save"):
        manifest = {**_manifest(detector, programs, artifacts, operators, verification), "golden": described}
        bundle.save(frozen, path, manifest, record_bytes)
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
    if not isinstance(detector, nn.Module) or isinstance(detector, torch.jit.ScriptModule):
        raise OptionError.make(
            "convert",
            "detector",
            expected="an nn.Module in Python code",
            got=type(detector).__name__,
            remedy="Pass the detector before scripting.",
        )
    training = [name or type(detector).__name__ for name, module in detector.named_modules() if module.training]
    if training:
        raise OptionError.make(
            "convert",
            "detector",
            expected="eval mode",
            got=f"training mode in {', '.join(training[:3])}",
            remedy="Call detector.eval() first.",
        )
    if not isinstance(example_inputs, tuple):
        raise OptionError.make(
            "convert",
            "example_inputs",
            expected="the tuple of the detector's positional arguments",
            got=type(example_inputs).__name__,
            remedy="For torchvision's detectors: ([image],).",
        )
    elsewhere = {str(tensor.device) for tensor in [*detector.parameters(), *detector.buffers()]} - {"cpu"}
    if elsewhere:
        raise OptionError.make(
            "convert",
            "detector",
            expected="all weights on the cpu",
            got=f"weights on {', '.join(sorted(elsewhere))}",
            remedy="Call detector.cpu() first; load(device=) says where the bundle will run.",
        )
    if precision not in PRECISIONS:
        raise OptionError.make("convert", "precision", expected=f"one of {', '.join(PRECISIONS)}", got=f"'{precision}'")
    if head not in HEADS:
        raise OptionError.make("convert", "head", expected=f"one of {', '.join(HEADS)}", got=f"'{head}'")


def _choose_backends(engine: str | Sequence[str], fallback: bool) -> list[Backend]:
    names = ["openvino"] if engine == "auto" else [engine] if isinstance(engine, str) else list(engine)
    if not names:
        raise OptionError.make("convert", "engine", expected="'auto' or at least one backend", got="an empty list")
    if fallback and "torchscript" not in names:
        names.append("torchscript")
    if len(set(names)) < len(names):
        raise OptionError.make("convert", "engine", expected="each backend once", got=", ".join(names))
    chosen = [registry.backend(name) for name in names]
    for backend in chosen:
        availability = backend.availability()
        if not availability.available:
            raise registry.unavailable(backend.name, availability.reason)
    return chosen


def _precision_of(backend: Backend, precision: str) -> str:
    if precision in backend.precisions:
        return precision
    if backend.name == "torchscript":
        return "fp32"
    raise OptionError.make(
        "convert",
        f"precision for {backend.name}",
        expected=f"one of {', '.join(backend.precisions)}",
        got=f"'{precision}'",
        remedy="Take one that it has, or another engine.",
    )


def _ranges(
    detector: nn.Module, example_inputs: tuple[Any, ...], observation: Observation, name: str, shapes: Shapes | None
) -> list[tuple[int, int]] | None:
    """The ranges of the segment's input if it is fed with pictures: one tensor, one call a forward."""
    use = use_of(detector, observation, name)
    calls = use.calls if use else []
    if len(calls) != 1 or calls[0] is None or len(calls[0].input_tensors) != 1:
        return None
    ((shape, _),) = calls[0].input_tensors
    if shapes is not None and not hasattr(detector, "transform"):
        pictures = [value for entry in example_inputs for value in (entry if isinstance(entry, list) else [entry])]
        channels = {value.shape[-3] for value in pictures if isinstance(value, Tensor) and value.dim() >= 3}
        if len(shape) == 4 and shape[1] not in channels:
            return None  # features: their sizes follow from the pictures'
    return ranges_of(detector, shape, shapes)


def _record(
    detector: nn.Module,
    example_inputs: tuple[Any, ...],
    samples: Sequence[Sample],
    groups: Sequence[Sequence[str]],
    first: Recorded,
) -> list[Recorded]:
    """What goes in and out of the segments on each sample; ``first``: what was recorded on the first one already."""
    names = [name for members in groups for name in members]
    runs: list[Recorded] = [first] if set(names) <= set(first) else []
    for sample in samples[len(runs) :]:
        try:
            with torch.no_grad(), recording(sample.detector, names) as run:
                sample.detector(*sample.arguments)
        except Exception:
            # A size of ours, or a black picture, that the detector does not take: its own example will do.
            if sample.required:
                raise
            continue
        runs.append(run)
    if not any(all(run[name] for name in names) for run in runs):
        with torch.no_grad(), recording(detector, names) as run:
            detector(*example_inputs)
        runs.append(run)
    return runs


class _DetectionsOnly(nn.Module):
    """Unwraps torchvision's scripted pair (losses, detections) to what the detector returns in eager eval mode."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """images: [3, H, W] each, in 0..1; returns a dict of boxes, labels, scores, ... for each."""
        return self.detector(images)[1]  # type: ignore[no-any-return]


def _frozen_head(
    detector: nn.Module,
    example_inputs: tuple[Any, ...],
    samples: Sequence[Sample],
    programs: Sequence[Program],
    engines: Mapping[str, Any],
    head: str,
) -> tuple[torch.jit.ScriptModule, list[str]]:
    """The hybrid as frozen TorchScript, and the operators of ours that it calls."""
    modules: dict[str, nn.Module] = {}
    for program in programs:
        modules |= engine_modules(program, engines[program.name])
    hybrid = replace(detector, {**exact_transform(detector), **modules})
    if head == "trace":
        return _frozen(torchscript.trace_head(hybrid, example_inputs))
    try:
        scripted = _scripted(hybrid)
    except CaptureError as error:
        offer = _offer_to_trace(detector, hybrid, example_inputs, samples)
        raise CaptureError(f"{error} {offer}") from error
    return _frozen(scripted)


def _frozen(head: torch.jit.ScriptModule) -> tuple[torch.jit.ScriptModule, list[str]]:
    frozen = torchscript.freeze(head)
    torchscript.connect(frozen)
    return frozen, torchscript.rewrite_head_operators(frozen)


def _offer_to_trace(
    detector: nn.Module, hybrid: nn.Module, example_inputs: tuple[Any, ...], samples: Sequence[Sample]
) -> str:
    """What to know of head="trace" for a head that does not script: it was tried, not taken."""
    inputs = [example_inputs, *(sample.arguments for sample in samples)]
    try:
        traced, _ = _frozen(torchscript.trace_head(hybrid, example_inputs))
        compared = compare_modules(
            detector, traced, inputs, precision="fp32", thresholds=THRESHOLDS["fp32"], require_detections=False
        )
    except Exception as error:  # whatever the detector's own code raises when it is recorded
        return f"Recording it (head='trace') was tried and fails: {str(error).splitlines()[0]}"
    if not compared.passed:
        return f"Recording it (head='trace') was tried and is not right on other inputs: {compared.failures[0]}."
    return (
        f"Or record it, head='trace': that was tried, and finds the same on the example and {len(samples)} other "
        "inputs; branches and loops then stay as they went on the example."
    )


def _scripted(hybrid: nn.Module) -> torch.jit.ScriptModule:
    if hasattr(hybrid, "_has_warned"):
        # torchvision warns once that scripted detectors return a pair, which is unwrapped here.
        vars(hybrid)["_has_warned"] = True
    scripted = torchscript.script(hybrid)
    if torchscript.returns_losses_and_detections(scripted):
        scripted = torchscript.script(_DetectionsOnly(scripted).eval())
    return scripted


def _verify(
    detector: nn.Module,
    hybrid: torch.jit.ScriptModule,
    programs: Sequence[Program],
    engines: Mapping[str, Any],
    artifacts: Mapping[str, list[Artifact]],
    inputs: Sequence[tuple[Any, ...]],
    precision: str,
    thresholds: Thresholds,
    watch: Callable[[tuple[Any, ...], Any, Any], None],
    advance: Callable[[], None],
) -> Verification:
    """Every variant's outputs on the recorded calls, then what the hybrid with the best variants finds.

    All in the precision that the file promises, even where this CPU can only emulate it.
    """
    tensors: list[TensorError] = []
    not_run: list[str] = []
    for program in programs:
        engine = engines[program.name]
        compared: dict[str, list[TensorError]] = {}
        for artifact in reversed(artifacts[program.name]):  # the best one last: the hybrid then runs on it
            backend = artifact.spec.backend
            advance()
            try:
                prepare(engine, backend, emulate_precision=True)
            except RuntimeError as error:  # what TorchScript makes of a BackendError
                not_run.append(f"segment '{program.name}', {backend}: {error}")
                continue
            compared[backend] = _compare_calls(program, engine, backend)
        if not compared:
            prepare(engine, emulate_precision=True)  # raises, with every variant's reason
        tensors += [error for errors in reversed(compared.values()) for error in errors]

    def compared_one(arguments: tuple[Any, ...], expected: Any, found: Any) -> None:
        watch(arguments, expected, found)
        advance()

    verification = compare_modules(
        detector, hybrid, inputs, precision=precision, thresholds=thresholds, watch=compared_one
    )
    verification.tensors = tensors + verification.tensors
    verification.not_run = not_run
    add_tensor_failures(verification, tensors, thresholds)
    for engine in engines.values():
        prepare(engine)
    return verification


@contextmanager
def _emulated(engines: Mapping[str, Any]) -> Iterator[None]:
    """The segments in the precision that the file promises, even where this CPU can only emulate it."""
    for engine in engines.values():
        prepare(engine, emulate_precision=True)
    yield
    for engine in engines.values():
        prepare(engine)


def _compare_calls(program: Program, engine: Any, backend: str) -> list[TensorError]:
    names = [spec.name for spec in program.outputs]
    errors = []
    for call in program.calls:
        errors += compare_tensors(program.name, names, call.outputs, run_flat(engine, call.inputs), backend)
    return errors


def _manifest(
    detector: nn.Module,
    programs: Sequence[Program],
    artifacts: Mapping[str, list[Artifact]],
    operators: list[str],
    verification: Verification | None,
) -> dict[str, Any]:
    from . import __version__

    return {
        "versions": {"hybrid_rt": __version__, "torch": torch.__version__},
        "detector": {"class": f"{type(detector).__module__}.{type(detector).__qualname__}"},
        "segments": [
            {
                "name": program.name,
                "members": [
                    {"name": member.name, "first": member.first, "count": member.output.count}
                    for member in program.members
                ],
                "variants": pack(artifacts[program.name])[0],
            }
            for program in programs
        ],
        "head": {"operators": operators},
        "verification": verification.to_json() if verification else None,
    }
