"""Compiles one module into an engine that replaces it in Python, for experiments."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import _native
from ..backends import registry
from ..backends.selection import Options, VariantRequest, check_device, engines_for
from ..capture.derived_shapes import second_shapes, tile_to_shape
from ..capture.detector_errors import NamingTheLine
from ..capture.observe import arguments_of
from ..capture.program import Program, Ranges, capture_alone
from ..capture.shapes import Shapes, check_shapes, ranges_of
from ..capture.size_checks import right_at_sizes
from ..capture.size_samples import Effort, record_sizes, sized_inputs
from ..capture.working_copy import working_copy
from ..common.errors import BackendError, OptionError
from ..common.progress import Steps
from ..common.specs import REFERENCE_PRECISION
from ..common.structure import structure_of
from ..verification.verify import Thresholds, thresholds_of
from .assemble.builds import EngineBuild, compile_program
from .assemble.engine_module import EngineModule, prepare, single_module
from .assemble.module_checks import Alone, check_module, check_repeatable
from .assemble.variant_trials import fastest_first, require_same_outputs
from .calibration import calibration_samples, warn_of_few
from .engine_precision import build_in_precision
from .options import AUTO_PRECISION, EngineOptions, check_precision, effort_of

_SCOPE = "compile_segment"


class CompiledSegment(EngineModule):
    """Result of :func:`compile_segment`: has no weights or gradients, and ignores the training mode.

    It has the inputs and outputs of the compiled module, and can be scripted as a part of a detector.
    """

    def running(self) -> dict[str, Any]:
        """Returns a description of the variant that runs: "backend", "precision", "description".

        "variants" lists all variants, with the reasons against those that can't run.
        """
        choice: dict[str, Any] = json.loads(self.hybrid_rt_engine.choice())
        return choice

    def _get_name(self) -> str:
        return "CompiledSegment"

    def extra_repr(self) -> str:
        """Returns the segment and what runs it, for ``repr``."""
        choice = self.running()
        return f"{choice['engine']} on {choice['description'] or 'an engine that is not prepared yet'}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompiledSegment:
        """Implements ``.to()`` and similar methods: accepts a device on which a variant runs, but no other dtype."""
        after = fn(torch.empty(0))
        if after.dtype != torch.float32:
            raise OptionError.make(
                _SCOPE,
                f"engine '{self.running()['engine']}'",
                expected="no change of its dtype, which was fixed when it was compiled",
                got=f"a conversion to {after.dtype}",
                remedy="Convert the other modules one by one, or compile with precision=.",
            )
        if after.device != self._device:
            self.place(after.device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def place(self, device: str | torch.device, backend: str = "") -> None:
        """Chooses a variant that runs on a device.

        Args:
            device: the device, e.g. "cpu" or "cuda:0".
            backend: name of the backend to use; empty: the best one that can run there.

        Raises:
            BackendError: No variant can run there; the text lists the reason for each.
        """
        prepare(self.hybrid_rt_engine, backend, device=device)
        self._device = torch.device(device)

    _device = torch.device("cpu")


def compile_segment(
    module: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    engine: str | Sequence[str] = "auto",
    precision: str = "fp32",
    device: str = "cpu",
    options: Options | None = None,
    calibration_data: Iterable[tuple[Any, ...]] = (),
    shapes: Shapes | None = None,
    fallback: bool = True,
    strict: bool = False,
    verify: bool | str = True,
    thresholds: Thresholds | None = None,
    progress: bool | None = None,
) -> CompiledSegment:
    """Compiles a module, for example a backbone, into one that runs in an engine and replaces it.

    Use it as ``detector.backbone = compile_segment(detector.backbone, example)``.

    Args:
        module: the module, in eval mode, on the CPU. It takes and returns tensors in lists, tuples and dicts. It is
            not changed.
        example: its positional arguments as a tuple, or its one tensor.
        engine: name of a backend, or several, see :func:`hybrid_rt.convert`.
        precision: "fp32", or "bf16", "fp16", "int8" for the engines that have it, or "auto", see
            :func:`hybrid_rt.convert`.
        device: "cpu" or "cuda": target of engines that support several devices, and the device of the result until
            ``.to()`` moves it. With ``strict`` and an engine for one kind of device, the result is on that device.
        options: options of the compilers, see :func:`hybrid_rt.convert`.
        calibration_data: tuples of the module's arguments on further images, for "int8"; at most 300 are used.
        shapes: ranges of the first input [N, C, H, W]: {"batch": (min, max), "height": ..., "width": ...}, or sizes
            [(height, width), ...]. A dimension that is not named keeps the example's size.
        fallback: add a TorchScript variant as the last one. If an engine is not installed or its compiler refuses, a
            warning is given instead of an error.
        strict: use only the first engine, and raise an error if it can't run here.
        verify: compare the outputs with the module's at some sizes in the ranges; "thorough": at many.
        thresholds: limits for equality, of which only ``relative_error`` is used; None: those of the precision.
        progress: show each step on stderr; None: if it is a terminal.

    Returns:
        A module that takes and returns what ``module`` does, can be scripted, and has its plain attributes, such as
        ``out_channels``. It has no gradients.

    Raises:
        OptionError: an argument can't be used; the text says what was expected.
        CaptureError: the module can't be captured.
        BackendError: no engine compiles it, or none runs here.
        VerificationError: an engine's outputs differ from the module's.

    Examples:
        >>> backbone = hybrid_rt.compile_segment(detector.backbone, image[None])
        >>> backbone.running()["backend"]
        'openvino'
        >>> detector.backbone = backbone  # the detector's own code calls it as before
    """
    check_module(module, _SCOPE, "module")
    module = working_copy(module)
    check_shapes(shapes)
    check_precision(precision, _SCOPE, auto=True)
    effort = effort_of(verify, _SCOPE)
    if thresholds is None and precision != AUTO_PRECISION:
        thresholds_of(precision)  # there are some
    arguments = example if isinstance(example, tuple) else (example,)
    calibration = calibration_samples(module, calibration_data, _SCOPE)
    named = EngineOptions(engine, precision, device, options, fallback and not strict, calibration, _SCOPE)
    engines = _installed(named, strict=strict)
    warn_of_few(calibration, _SCOPE)
    if strict:
        plain: dict[str, Any] = (
            {"precision": REFERENCE_PRECISION, "calibration_data": ()} if engines.is_auto_precision else {}
        )
        _check_place(replace(engines, **plain).variants[0])
    steps = Steps(progress)
    with steps.step("run the module on the example"):
        program = _program(module, arguments, shapes, calibration, effort)

    def compile_in(engines: EngineOptions) -> EngineBuild:
        build = compile_program(program, engines, steps, skip_refused=fallback and not strict)
        if engines.is_fastest:
            build, line = fastest_first(build, device)
            steps.show(line)
        if effort:
            with steps.step("verify"):
                require_same_outputs(build, engines.precision, thresholds, _SCOPE)
        return build

    build, _, _ = build_in_precision(engines, program, compile_in, lambda *_: "", steps)
    compiled = single_module(program, build.engine, CompiledSegment)
    best = build.artifacts[0].spec
    compiled.place(best.device if strict else device, f"{best.backend}:{best.precision}" if strict else "")
    return compiled


def _installed(options: EngineOptions, *, strict: bool) -> EngineOptions:
    """Returns the options with the installed engines; with ``strict``, only the first one.

    With a fallback, engines that are not installed are left out with a warning.

    Raises:
        OptionError, BackendError: see :attr:`EngineOptions.variants`.
    """
    if options.is_auto_precision:
        found = _installed(replace(options, precision=REFERENCE_PRECISION, calibration_data=()), strict=strict)
        return replace(found, precision=AUTO_PRECISION, calibration_data=options.calibration_data)
    if options.is_fastest:
        _ = options.variants
        return options
    check_device(options.device, _SCOPE)
    engine = engines_for(options.device) if options.engine == "auto" else options.engine
    names = [engine] if isinstance(engine, str) else list(engine)
    named = replace(options, engine=names[:1] if strict else names)
    try:
        _ = named.variants
        return named
    except BackendError as error:
        if not options.fallback:
            raise
        warnings.warn(f"{error} Falling back to the next engine.", RuntimeWarning, stacklevel=3)
    backends = {name: name.partition(":")[0] for name in names}
    installed = [
        name
        for name, backend in backends.items()
        if registry.backend(backend).configured(options.device).availability().available
    ]
    left = {backends[name] for name in installed}
    kept = {backend: given for backend, given in (options.options or {}).items() if backend in left}
    remaining = replace(options, engine=installed or [registry.fallback().name], options=kept)
    _ = remaining.variants
    return remaining


def _check_place(wanted: VariantRequest) -> None:
    """Checks before the engine is built that this machine has a device that it can run on.

    Raises:
        BackendError: There is none.
    """
    devices, reason = _native.cuda_devices()
    if wanted.backend.target == "cuda" and not devices:
        raise BackendError.make(
            _SCOPE,
            "strict",
            expected=f"a CUDA device, on which {wanted.name} runs",
            got=f"none: {reason}",
            remedy="Pass strict=False to run another engine.",
            code="no-gpu-here",
        )


def _program(
    module: nn.Module,
    arguments: tuple[Any, ...],
    shapes: Shapes | None,
    calibration_data: Sequence[tuple[Any, ...]] = (),
    effort: Effort | None = None,
) -> Program:
    """Captures a module as a program of one segment, named after its class; calls it at two sizes if sizes may vary."""
    name = type(module).__name__
    try:
        named = arguments_of(module, arguments, {})
    except TypeError as error:
        raise OptionError.make(
            _SCOPE,
            "example",
            expected=f"the positional arguments of {name}.forward",
            got=f"different ones ({error})",
            code="example-not-arguments",
        ) from error
    structures = {key: structure_of(value, f"segment '{name}', input '{key}'") for key, value in named.items()}
    tensors = [tensor for key, structure in structures.items() for tensor in structure.flatten(named[key])]
    with torch.no_grad(), NamingTheLine(module, arguments, "example", _SCOPE):
        structure_of(module(*arguments), f"segment '{name}', output")
    check_repeatable(module, arguments, _SCOPE)
    alone = Alone(module)
    ranges: Ranges | None = ranges_of(alone, tensors[0].shape, shapes)
    if ranges is None:
        if shapes is not None:
            raise OptionError.make(
                _SCOPE,
                "shapes",
                expected="a first input [N, C, H, W], to which the sizes apply",
                got=f"one with {tensors[0].dim()} dimensions",
                remedy="Omit shapes= to use the example's sizes.",
                code="sizes-not-taken",
            )
        ranges = [(size, size) for size in tensors[0].shape]
    calls = [arguments]
    limits = [ranges, *([(1, -1)] * tensor.dim() for tensor in tensors[1:])]
    other = second_shapes([tensor.shape for tensor in tensors], limits)
    if other is not None:
        remaining = map(tile_to_shape, tensors, other)
        calls.append(tuple(structure.unflatten(remaining) for structure in structures.values()))

    def arguments_of_sizes() -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
        for inputs in sized_inputs(tensors, limits, effort.most if effort else 0):
            remaining = iter(inputs)
            yield alone, tuple(structure.unflatten(remaining) for structure in structures.values())

    sizes = record_sizes(arguments_of_sizes(), [name], effort) if effort else []
    program = capture_alone(alone.eval(), name, calls, ranges, calibration_data, sizes)
    return right_at_sizes(program, effort)
