"""The one call: a detector becomes a bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import bundle, cache, registry, torchscript
from .backends.base import Backend
from .capture import Calls, Program, capture, record
from .engine_module import EngineModule, engine_module
from .errors import OptionError
from .exact_transform import exact_transform
from .files import check_writable
from .report import ConversionReport, SegmentReport, Steps, VariantReport
from .segments import replace, resolve
from .shapes import Shapes, ranges_of
from .specs import PRECISIONS, Artifact, pack
from .verify import (
    TensorError,
    Thresholds,
    Verification,
    add_tensor_failures,
    compare_modules,
    compare_tensors,
    require,
    thresholds_of,
)


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
    engine: str | Sequence[str] = "auto",
    precision: str = "fp32",
    shapes: Shapes | None = None,
    fallback: bool = True,
    verify: bool = True,
    verify_inputs: Sequence[tuple[Any, ...]] = (),
    thresholds: Thresholds | None = None,
    progress: bool | None = None,
) -> ConversionResult:
    """Compiles the dense part of a detector, leaves the rest in TorchScript, saves both as one `.pt`.

    Args:
        detector: the detector, in eval mode, on the CPU. It is not changed.
        example_inputs: the tuple of its positional arguments, e.g. ``([image],)`` for torchvision; image: [3, H, W]
            in 0..1. The boxes found on it are compared, so give a picture with objects.
        output: the `.pt` to write; its folder must exist.
        segments: dotted names of the submodules to compile, or "auto": the backbone.
        engine: a backend's name; a list of names puts several variants into the file, best first; "auto": OpenVINO.
        precision: "fp32", or "bf16" for the engines that have it (TorchScript variants stay in fp32).
        shapes: picture sizes [(height, width), ...] that the detector will be given, or ranges of the backbone's
            input {"batch": (min, max), "height": ..., "width": ...}. None: all that the detector's own transform can
            produce; the example's size if it has none.
        fallback: add a TorchScript variant as the last one, which runs wherever torch does.
        verify: compare segment outputs and boxes with the detector's, and refuse to save what differs.
        verify_inputs: further tuples of arguments to compare on.
        thresholds: what counts as equal, see :class:`hybrid_rt.Thresholds`; None: by precision.
        progress: show each step on stderr; None: if it is a terminal.

    Returns:
        The hybrid and the report.

    Raises:
        OptionError: an argument; the text names what was expected.
        CaptureError: a segment that can't be captured, or a head that TorchScript can't compile.
        BackendError: an engine that is not installed, or whose compiler refuses.
        VerificationError: the hybrid finds something else; nothing was saved.
        BundleError: the file can't be written.
    """
    path = Path(output)
    _check_arguments(detector, example_inputs, precision)
    check_writable(path)
    names = resolve(detector, segments)
    backends = _choose_backends(engine, fallback)
    precisions = {backend.name: _precision_of(backend, precision) for backend in backends}
    limits = thresholds or thresholds_of(precision)
    steps = Steps(progress)

    with steps.step("run the detector on the example"):
        calls = record(detector, names, [example_inputs])
        ranges = {name: _ranges(detector, example_inputs, calls[name], shapes) for name in names}
    unknown = [name for name in names if ranges[name] is None]
    if unknown:
        with steps.step("run it at other sizes, to see which dimensions vary"):
            calls |= record(detector, unknown, [example_inputs, *_other_sizes(example_inputs)])
    programs = [capture(detector, name, calls[name], ranges[name]) for name in names]
    artifacts: dict[str, list[Artifact]] = {program.name: [] for program in programs}
    cached: dict[tuple[str, str], bool] = {}
    for program in programs:
        for backend in backends:
            with steps.step(f"compile {program.name} with {backend.name}"):
                artifact, hit = cache.compiled(backend, program, precisions[backend.name])
                artifacts[program.name].append(artifact)
                cached[program.name, backend.name] = hit
    modules = {program.name: engine_module(program, artifacts[program.name]) for program in programs}
    with steps.step("script and freeze the head"):
        hybrid = _scripted(replace(detector, {**exact_transform(detector), **modules}))
        frozen = torchscript.freeze(hybrid)
        operators = torchscript.rewrite_head_operators(frozen)
    verification = None
    if verify:
        with steps.step("verify"):
            verification = _verify(
                detector, frozen, programs, modules, artifacts, [example_inputs, *verify_inputs], precision, limits
            )
            require(verification)
    report = _report(detector, path, programs, artifacts, cached, operators, verification)
    with steps.step("save"):
        bundle.save(frozen, path, _manifest(detector, artifacts, operators, verification))
    report.file_size = path.stat().st_size
    report.seconds = steps.seconds
    return ConversionResult(frozen, report)


def _check_arguments(detector: nn.Module, example_inputs: tuple[Any, ...], precision: str) -> None:
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
    detector: nn.Module, example_inputs: tuple[Any, ...], calls: Calls, shapes: Shapes | None
) -> list[tuple[int, int]] | None:
    """The ranges of the segment's input if it is fed with pictures: one tensor, one call a forward."""
    arguments = list(calls.arguments[0].values())
    if len(calls.arguments) > 1 or len(arguments) != 1 or not isinstance(arguments[0], Tensor):
        return None
    if shapes is not None and not hasattr(detector, "transform"):
        pictures = [value for entry in example_inputs for value in (entry if isinstance(entry, list) else [entry])]
        channels = {value.shape[-3] for value in pictures if isinstance(value, Tensor) and value.dim() >= 3}
        if arguments[0].dim() == 4 and arguments[0].shape[1] not in channels:
            return None  # features: their sizes follow from the pictures'
    return ranges_of(detector, arguments[0], shapes)


def _other_sizes(example_inputs: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The example with other pictures in the place of its pictures: once higher than wide, once wider than high.

    A transform that fixes the short side makes both sides vary between these two. Where pictures are a list, one is
    added, so that what is counted by picture varies too.
    """

    def resized(picture: Tensor, height: int, width: int) -> Tensor:
        batched = picture if picture.dim() == 4 else picture[None]
        other = nn.functional.interpolate(batched, size=(height, width), mode="bilinear", align_corners=False)
        return other if picture.dim() == 4 else other[0]

    def tall(picture: Tensor) -> Tensor:
        side = min(picture.shape[-2:])
        return resized(picture, side, max(1, side * 2 // 3))

    def wide(picture: Tensor) -> Tensor:
        side = min(picture.shape[-2:])
        return resized(picture, max(1, side * 2 // 3), side)

    others = []
    for change in (tall, wide):
        changed: list[Any] = []
        for value in example_inputs:
            if isinstance(value, Tensor) and value.dim() in (3, 4) and value.is_floating_point():
                changed.append(change(value))
            elif isinstance(value, list) and all(isinstance(entry, Tensor) and entry.dim() == 3 for entry in value):
                changed.append([change(entry) for entry in [*value, value[0]]])
            else:
                changed.append(value)
        others.append(tuple(changed))
    return others


class _DetectionsOnly(nn.Module):
    """Unwraps torchvision's scripted pair (losses, detections) to what the detector returns in eager eval mode."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """images: [3, H, W] each, in 0..1; returns a dict of boxes, labels, scores, ... for each."""
        return self.detector(images)[1]  # type: ignore[no-any-return]


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
    modules: Mapping[str, EngineModule],
    artifacts: Mapping[str, list[Artifact]],
    inputs: Sequence[tuple[Any, ...]],
    precision: str,
    thresholds: Thresholds,
) -> Verification:
    """Every variant's outputs on the recorded calls, then what the hybrid with the best variants finds.

    All in the precision that the file promises, even where this CPU can only emulate it.
    """
    tensors: list[TensorError] = []
    not_run: list[str] = []
    for program in programs:
        module = modules[program.name]
        compared: dict[str, list[TensorError]] = {}
        for artifact in reversed(artifacts[program.name]):  # the best one last: the hybrid then runs on it
            backend = artifact.spec.backend
            try:
                module.prepare(backend, emulate_precision=True)
            except RuntimeError as error:  # what TorchScript makes of a BackendError
                not_run.append(f"segment '{program.name}', {backend}: {error}")
                continue
            compared[backend] = _compare_calls(program, module, backend)
        if not compared:
            module.prepare(emulate_precision=True)  # raises, with every variant's reason
        tensors += [error for errors in reversed(compared.values()) for error in errors]
    verification = compare_modules(detector, hybrid, inputs, precision=precision, thresholds=thresholds)
    verification.tensors = tensors + verification.tensors
    verification.not_run = not_run
    add_tensor_failures(verification, tensors, thresholds)
    for module in modules.values():
        module.prepare()
    return verification


def _compare_calls(program: Program, module: EngineModule, backend: str) -> list[TensorError]:
    names = [spec.name for spec in program.outputs]
    errors = []
    with torch.no_grad():
        for arguments, result in zip(program.calls.arguments, program.calls.results, strict=True):
            expected = list(program.output_structure.flatten(result))
            got = list(program.output_structure.flatten(module(**arguments)))
            errors += compare_tensors(program.name, names, expected, got, backend)
    return errors


def _manifest(
    detector: nn.Module,
    artifacts: Mapping[str, list[Artifact]],
    operators: list[str],
    verification: Verification | None,
) -> dict[str, Any]:
    from . import __version__

    return {
        "versions": {"hybrid_rt": __version__, "torch": torch.__version__},
        "detector": {"class": f"{type(detector).__module__}.{type(detector).__qualname__}"},
        "segments": [{"name": name, "variants": pack(variants)[0]} for name, variants in artifacts.items()],
        "head": {"operators": operators},
        "verification": verification.to_json() if verification else None,
    }


def _report(
    detector: nn.Module,
    path: Path,
    programs: Sequence[Program],
    artifacts: Mapping[str, list[Artifact]],
    cached: Mapping[tuple[str, str], bool],
    operators: list[str],
    verification: Verification | None,
) -> ConversionReport:
    return ConversionReport(
        detector=type(detector).__name__,
        path=str(path),
        segments=[
            SegmentReport(
                program.name,
                [str(spec) for spec in program.inputs],
                [
                    VariantReport(
                        artifact.spec.backend,
                        artifact.spec.precision,
                        artifact.size,
                        cached[program.name, artifact.spec.backend],
                    )
                    for artifact in artifacts[program.name]
                ],
            )
            for program in programs
        ],
        head_operators=operators,
        verification=verification,
    )
