"""What every way to an engine shares: checks of the module, the choice of backends, the comparison of variants."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import cache, registry
from .backends.base import Backend
from .capture import FlatCall, Program
from .engine_module import EngineModule, make_engine, prepare, run_flat
from .errors import BackendError, CaptureError, HybridRTError, OptionError, VerificationError
from .measure import benchmark
from .observe import watch
from .packing import pack
from .second_size import tiled
from .specs import Artifact, ArtifactSpec
from .steps import Steps
from .verify import TensorError, Thresholds, Verification, add_tensor_failures, compare_tensors, thresholds_of


def check_module(module: nn.Module, scope: str, subject: str) -> None:
    """Finds out before long work whether a detector, or a part of one, can be captured.

    Args:
        module: what the user gave.
        scope: of the error's text, e.g. "convert".
        subject: the argument's name.

    Raises:
        OptionError: no module in Python code, in training mode, with weights elsewhere than on the CPU, or with a part
            that is compiled already.
    """
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise OptionError.make(
            scope,
            subject,
            expected="an nn.Module in Python code",
            got=type(module).__name__,
            remedy=f"Pass the {subject} before scripting.",
        )
    training = [name or type(module).__name__ for name, child in module.named_modules() if child.training]
    if training:
        raise OptionError.make(
            scope,
            subject,
            expected="eval mode",
            got=f"training mode in {', '.join(training[:3])}",
            remedy=f"Call {subject}.eval() first.",
        )
    elsewhere = {str(tensor.device) for tensor in [*module.parameters(), *module.buffers()]} - {"cpu"}
    if elsewhere:
        raise OptionError.make(
            scope,
            subject,
            expected="all weights on the cpu",
            got=f"weights on {', '.join(sorted(elsewhere))}",
            remedy=f"Call {subject}.cpu() first; load(device=) says where the bundle will run.",
        )
    compiled = [name or subject for name, child in module.named_modules() if isinstance(child, EngineModule)]
    if compiled:
        raise OptionError.make(
            scope,
            subject,
            expected="modules of torch's operators",
            got=f"an engine in the place of {', '.join(compiled)}",
            remedy="Put the module back that compile_segment was given: it is compiled here.",
        )


class Alone(nn.Module):
    """A detector that is nothing but one segment, named after the module's class."""

    def __init__(self, module: nn.Module) -> None:
        """``module``: the segment."""
        super().__init__()
        self.name = type(module).__name__
        self.add_module(self.name, module)

    def forward(self, *arguments: Any) -> Any:
        """As the module."""
        return self.get_submodule(self.name)(*arguments)


def check_repeatable(module: nn.Module, arguments: tuple[Any, ...], scope: str) -> None:
    """Finds out whether an engine can do what a module does: the same operations in every call, on its inputs alone.

    Raises:
        CaptureError: it can't; the text says what the module does.
    """
    alone = Alone(module)
    findings = watch(alone, arguments)
    if alone.name in findings:
        raise CaptureError.make(
            scope,
            f"module {alone.name}",
            expected="the same operations in every call, on its inputs alone",
            got=findings[alone.name],
            remedy="An engine can't repeat that: change the module, or take a smaller one.",
        )


@dataclass(frozen=True)
class Wanted:
    """A variant to compile."""

    backend: Backend
    precision: str

    @property
    def name(self) -> str:
        """As :func:`hybrid_rt.load` takes it: "openvino:bf16"."""
        return f"{self.backend.name}:{self.precision}"

    def compiled(self, program: Program, steps: Steps, *, total: int = 1, done: int = 0) -> tuple[Artifact, bool]:
        """The artifact, and whether the cache had it; a step, ``done`` of ``total`` of its kind being over.

        Raises:
            BackendError: the compiler refuses.
            CaptureError: the segment can't be captured in the form that the compiler needs.
        """
        with steps.step(f"compile {program.name} with {self.backend.name}", total=total, done=done) as advance:
            backend = self.backend.configured(self.backend.target, self.backend.given)
            backend.progress = advance.part
            return cache.compiled(backend, program, self.precision)


FASTEST = "fastest"

DEVICES = ("cpu", "cuda")
"""The kinds of device that engines are compiled for."""

_ROUNDS = 5

Options = Mapping[str, Mapping[str, Any]]
"""Options of compilers, by the backend's name: ``{"tensorrt": {"tf32": False}}``."""


def engines_for(device: str) -> list[str]:
    """What engine="auto" stands for: TensorRT on CUDA where its builder is installed, else AOTInductor; OpenVINO."""
    if device == "cpu":
        return ["openvino"]
    return ["tensorrt" if registry.backend("tensorrt").availability().available else "aot_inductor"]


def check_device(device: str, scope: str) -> None:
    """Finds out before long work whether variants can be compiled for a kind of device.

    Raises:
        OptionError: it is none that an engine has.
    """
    if device not in DEVICES:
        raise OptionError.make(
            scope,
            "device",
            expected=f"what the engines are compiled for, one of {', '.join(DEVICES)}",
            got=f"'{device}'",
            remedy="Which of several GPUs a bundle runs on is said to hybrid_rt.load(device=).",
        )


def choose_variants(
    engine: str | Sequence[str],
    precision: str,
    fallback: bool,
    scope: str = "convert",
    *,
    device: str = "cpu",
    options: Options | None = None,
) -> list[Wanted]:
    """The variants that the user named, best first.

    Args:
        engine: a backend's name, a list of names, "auto", or "fastest": all that are installed and may win (not
            tvm). A name may say its precision, "openvino:bf16".
        precision: of the others but TorchScript: without a precision of its own it is the segment as it was captured.
        fallback: add TorchScript in fp32 as the last one.
        scope: of the error's text.
        device: the kind that is compiled for, where a backend has several; "auto" and "fastest" go by it.
        options: of the compilers.

    Raises:
        OptionError: no name, one twice, an unknown one, a precision or an option that a backend does not have.
        BackendError: one whose compiler is not installed.
    """
    check_device(device, scope)
    if engine == FASTEST:
        names = [
            f"{info.name}:{precision}"
            for info in registry.backends()
            if info.available and _is_candidate(registry.backend(info.name).configured(device), precision, device)
        ]
    else:
        names = engines_for(device) if engine == "auto" else [engine] if isinstance(engine, str) else list(engine)
    if not names:
        raise OptionError.make(scope, "engine", expected="'auto' or at least one backend", got="an empty list")
    if fallback and not {"torchscript", "torchscript:fp32"}.intersection(names):
        names.append("torchscript")
    wanted = [_wanted(name, precision, scope, device, options or {}) for name in names]
    if precision not in ("fp32", "bf16") and not any(variant.precision == precision for variant in wanted):
        raise OptionError.make(
            scope,
            "precision",
            expected="an engine that computes in it",
            got=f"'{precision}' for {', '.join(variant.name for variant in wanted)}",
            remedy="Name one, e.g. engine='tensorrt'; `hybrid-rt doctor` lists the precisions of each.",
        )
    compiled = dict.fromkeys(variant.backend.name for variant in wanted)
    unused = set(options or {}) - set(compiled)
    if unused:
        raise OptionError.make(
            scope,
            "options",
            expected=f"those of the engines that are compiled ({', '.join(compiled)})",
            got=f"some for {', '.join(sorted(unused))}",
            remedy="Name that engine in engine=, or leave its options out.",
        )
    if len({variant.name for variant in wanted}) < len(wanted):
        raise OptionError.make(scope, "engine", expected="each backend once in a precision", got=", ".join(names))
    for variant in wanted:
        availability = variant.backend.availability()
        if not availability.available:
            raise registry.unavailable(variant.backend.name, availability.reason)
    return wanted


def check_calibration(wanted: Sequence[Wanted], calibration_data: Sequence[Any], scope: str = "convert") -> None:
    """Finds out before long work whether int8 has something to be calibrated on.

    Raises:
        OptionError: int8 without calibration data, data that nothing is calibrated on, or data that is no arguments.
    """
    in_int8 = [variant.name for variant in wanted if variant.precision == "int8"]
    if in_int8 and not calibration_data:
        raise OptionError.make(
            scope,
            "calibration_data",
            expected=f"some tens of tuples of arguments, on which {', '.join(in_int8)} is calibrated",
            got="none",
            remedy="Pictures of the kind that will be seen, e.g. [([picture],) for picture in pictures].",
        )
    if calibration_data and not in_int8:
        raise OptionError.make(
            scope,
            "calibration_data",
            expected="an engine in int8 with it",
            got=f"only {', '.join(variant.name for variant in wanted)}",
            remedy="Take precision='int8', or name an engine in int8: 'tensorrt:int8'.",
        )
    wrong = [type(arguments).__name__ for arguments in calibration_data if not isinstance(arguments, tuple)]
    if wrong:
        raise OptionError.make(
            scope,
            "calibration_data",
            expected="tuples of the detector's positional arguments",
            got=f"{wrong[0]} among them",
            remedy="For torchvision's detectors: [([image],), ...].",
        )


def _is_candidate(backend: Backend, precision: str, device: str) -> bool:
    return (
        backend.is_candidate
        and precision in backend.target_precisions
        and (device in backend.devices or backend.name == "torchscript")
        and backend.availability().available  # for that device
    )


def _wanted(name: str, precision: str, scope: str, device: str, options: Options) -> Wanted:
    backend_name, _, own = name.partition(":")
    backend = registry.backend(backend_name).configured(device, options.get(backend_name))
    if not own and backend.name == "torchscript":
        return Wanted(backend, "fp32")
    if own in backend.target_precisions or (not own and precision in backend.target_precisions):
        return Wanted(backend, own or precision)
    raise OptionError.make(
        scope,
        f"precision for {backend.name}",
        expected=f"one of {', '.join(backend.target_precisions)}",
        got=f"'{own or precision}'",
        remedy="Take one that it has, or another engine.",
    )


def settle(name: str, count: int, refusals: Sequence[HybridRTError], scope: str) -> None:
    """Warns of the candidates that could not compile a segment; that none could is an error.

    Args:
        name: the segment's.
        count: how many could.
        refusals: of those that could not.
        scope: of the error's text.

    Raises:
        BackendError: none could; the text has each one's reason.
    """
    if not count:
        raise BackendError.make(
            scope,
            f"segment '{name}'",
            expected="an engine that compiles it",
            got="\n  " + "\n  ".join(map(str, refusals)) + "\n",
            remedy="Do what one of them says, or name a smaller submodule in segments=.",
        )
    for error in refusals:
        warnings.warn(f"{error} It is left out.", RuntimeWarning, stacklevel=3)


def _finished(outputs: list[Tensor], device: str) -> list[Tensor]:
    """A GPU's work goes on after the call."""
    if device == "cuda":
        torch.cuda.synchronize()
    return outputs


def fastest_first(program: Program, artifacts: Sequence[Artifact], device: str = "cpu") -> tuple[list[Artifact], str]:
    """Variants in the order of how long they take on this machine, and a line that says it.

    Each runs on the device, at the size that the compiler was told to expect. One that can't run there comes last.
    """
    inputs = tuple(tiled(tensor, spec.opt) for tensor, spec in zip(program.examples, program.inputs, strict=True))
    cases: dict[str, Callable[..., Any]] = {}
    for i, artifact in enumerate(artifacts):
        engine = make_engine(program.name, pack([artifact]))
        try:
            prepare(engine, device=device)
        except BackendError:  # verification says it
            continue
        cases[str(i)] = lambda *tensors, engine=engine: _finished(run_flat(engine, tensors), device)
    inputs = tuple(tensor.to(device) for tensor in inputs) if cases else inputs
    medians = {int(i): latency.median for i, latency in benchmark(cases, inputs, repeat=_ROUNDS, warm_up=1).items()}
    order = sorted(range(len(artifacts)), key=lambda i: medians.get(i, math.inf))
    texts = [
        f"{artifacts[i].spec.backend} ({artifacts[i].spec.precision}) "
        + (f"{medians[i]:.1f} ms" if i in medians else "can't run here")
        for i in order
    ]
    return [artifacts[i] for i in order], f"{program.name}: {', '.join(texts)}"


def _run_on(device: str, engine: Any, call: FlatCall) -> list[Tensor]:
    outputs = run_flat(engine, tuple(tensor.to(device) for tensor in call.inputs))
    return [tensor.cpu() for tensor in outputs]


def compare_variants(
    program: Program,
    engine: Any,
    artifacts: Sequence[Artifact],
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[tuple[ArtifactSpec, list[TensorError]]], list[str]]:
    """Each variant's outputs on the program's calls, in the precision that it promises, even if only emulated here.

    Args:
        program: the segment; its calls hold what is expected.
        engine: see :func:`hybrid_rt.engine_module.make_engine`. It is left on its best variant.
        artifacts: its variants, best first.
        advance: called before each variant.

    Returns:
        For each variant the errors of each output, and for each that can't run here the reason.

    Raises:
        BackendError: no variant can run here, though one is for the CPU; the text lists each one's reason. What is for
            a GPU alone may be made on a machine without.
    """
    names = [spec.name for spec in program.outputs]
    compared: list[tuple[ArtifactSpec, list[TensorError]]] = []
    not_run: list[str] = []
    backends = [artifact.spec.backend for artifact in artifacts]
    for artifact in reversed(artifacts):  # the best one last: the engine stays on it
        spec = artifact.spec
        name = f"{spec.backend}:{spec.precision}"
        label = name if backends.count(spec.backend) > 1 else spec.backend
        advance()
        try:
            prepare(engine, name, device=spec.device, emulate_precision=True)
        except BackendError as error:
            not_run.append(f"segment '{program.name}', {label}: {error}")
            continue
        errors = [
            error
            for call in program.calls
            for error in compare_tensors(program.name, names, call.outputs, _run_on(spec.device, engine, call), label)
        ]
        compared.insert(0, (spec, errors))
    if not compared and any(artifact.spec.device == "cpu" for artifact in artifacts):
        prepare(engine, emulate_precision=True)  # raises, with every variant's reason
    return compared, not_run


def add_variants(
    verification: Verification,
    compared: Sequence[tuple[ArtifactSpec, list[TensorError]]],
    thresholds: Thresholds | None,
) -> None:
    """Adds what :func:`compare_variants` found; ``thresholds``: None means by each variant's precision."""
    for spec, errors in compared:
        verification.tensors += errors
        add_tensor_failures(verification, errors, thresholds or thresholds_of(spec.precision))


def require_same_outputs(
    program: Program,
    engine: Any,
    artifacts: Sequence[Artifact],
    precision: str,
    thresholds: Thresholds | None,
    scope: str,
) -> Verification:
    """:func:`compare_variants`, where nothing but the module itself says what is right.

    Raises:
        VerificationError: a variant is further off than ``thresholds.relative_error`` (None: that of its precision).
    """
    verification = Verification(precision)
    compared, verification.not_run = compare_variants(program, engine, artifacts)
    add_variants(verification, compared, thresholds)
    if not verification.passed:
        raise VerificationError.make(
            scope,
            f"segment '{program.name}' in {precision}",
            expected="the outputs of the module",
            got="\n  " + "\n  ".join(verification.failures) + "\n",
            remedy="Nothing was saved. Take precision='fp32' or another engine, or loosen thresholds= if it is meant.",
        )
    return verification
