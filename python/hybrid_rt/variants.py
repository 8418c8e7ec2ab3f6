"""What every way to an engine shares: checks of the module, the choice of backends, the comparison of variants."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import registry
from .backends.base import Backend
from .capture import Program
from .engine_module import EngineModule, make_engine, prepare, run_flat
from .errors import BackendError, CaptureError, HybridRTError, OptionError, VerificationError
from .measure import benchmark
from .observe import watch
from .packing import pack
from .second_size import tiled
from .specs import Artifact, ArtifactSpec
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


FASTEST = "fastest"

_ROUNDS = 5


def choose_variants(
    engine: str | Sequence[str], precision: str, fallback: bool, scope: str = "convert"
) -> list[Wanted]:
    """The variants that the user named, best first.

    Args:
        engine: a backend's name, a list of names, "auto", or "fastest": all that are installed and may win (not
            tvm). A name may say its precision, "openvino:bf16".
        precision: of the others but TorchScript: without a precision of its own it is the segment as it was captured.
        fallback: add TorchScript in fp32 as the last one.
        scope: of the error's text.

    Raises:
        OptionError: no name, one twice, an unknown one, a precision that a backend does not have.
        BackendError: one whose compiler is not installed.
    """
    if engine == FASTEST:
        names = [
            f"{info.name}:{precision}"
            for info in registry.backends()
            if info.available and precision in info.precisions and registry.backend(info.name).is_candidate
        ]
    else:
        names = ["openvino"] if engine == "auto" else [engine] if isinstance(engine, str) else list(engine)
    if not names:
        raise OptionError.make(scope, "engine", expected="'auto' or at least one backend", got="an empty list")
    if fallback and not {"torchscript", "torchscript:fp32"}.intersection(names):
        names.append("torchscript")
    wanted = [_wanted(name, precision, scope) for name in names]
    if len({variant.name for variant in wanted}) < len(wanted):
        raise OptionError.make(scope, "engine", expected="each backend once in a precision", got=", ".join(names))
    for variant in wanted:
        availability = variant.backend.availability()
        if not availability.available:
            raise registry.unavailable(variant.backend.name, availability.reason)
    return wanted


def _wanted(name: str, precision: str, scope: str) -> Wanted:
    backend_name, _, own = name.partition(":")
    backend = registry.backend(backend_name)
    if not own and backend.name == "torchscript":
        return Wanted(backend, "fp32")
    if own in backend.precisions or (not own and precision in backend.precisions):
        return Wanted(backend, own or precision)
    raise OptionError.make(
        scope,
        f"precision for {backend.name}",
        expected=f"one of {', '.join(backend.precisions)}",
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


def fastest_first(program: Program, artifacts: Sequence[Artifact]) -> tuple[list[Artifact], str]:
    """Variants in the order of how long they take on this machine, and a line that says it.

    Each runs at the size that the compiler was told to expect. One that can't run here comes last.
    """
    inputs = tuple(tiled(tensor, spec.opt) for tensor, spec in zip(program.examples, program.inputs, strict=True))
    cases: dict[str, Callable[..., Any]] = {}
    for i, artifact in enumerate(artifacts):
        engine = make_engine(program.name, pack([artifact]))
        try:
            prepare(engine)
        except BackendError:  # verification says it
            continue
        cases[str(i)] = lambda *tensors, engine=engine: run_flat(engine, tensors)
    medians = {int(i): latency.median for i, latency in benchmark(cases, inputs, repeat=_ROUNDS, warm_up=1).items()}
    order = sorted(range(len(artifacts)), key=lambda i: medians.get(i, math.inf))
    texts = [
        f"{artifacts[i].spec.backend} ({artifacts[i].spec.precision}) "
        + (f"{medians[i]:.1f} ms" if i in medians else "can't run here")
        for i in order
    ]
    return [artifacts[i] for i in order], f"{program.name}: {', '.join(texts)}"


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
        BackendError: no variant can run here; the text lists each one's reason.
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
            prepare(engine, name, emulate_precision=True)
        except BackendError as error:
            not_run.append(f"segment '{program.name}', {label}: {error}")
            continue
        errors = [
            error
            for call in program.calls
            for error in compare_tensors(program.name, names, call.outputs, run_flat(engine, call.inputs), label)
        ]
        compared.insert(0, (spec, errors))
    if not compared:
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
