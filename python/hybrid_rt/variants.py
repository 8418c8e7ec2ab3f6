"""What every way to an engine shares: checks of the module, the choice of backends, the comparison of variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from . import registry
from .backends.base import Backend
from .capture import Program
from .engine_module import EngineModule, prepare, run_flat
from .errors import CaptureError, OptionError, VerificationError
from .observe import watch
from .specs import Artifact
from .verify import TensorError, Thresholds, Verification, add_tensor_failures, compare_tensors


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


def choose_backends(engine: str | Sequence[str], fallback: bool, scope: str = "convert") -> list[Backend]:
    """The backends that the user named, best first.

    Args:
        engine: a backend's name, a list of names, or "auto".
        fallback: add TorchScript as the last one.
        scope: of the error's text.

    Raises:
        OptionError: no name, one twice, an unknown one.
        BackendError: one whose compiler is not installed.
    """
    names = ["openvino"] if engine == "auto" else [engine] if isinstance(engine, str) else list(engine)
    if not names:
        raise OptionError.make(scope, "engine", expected="'auto' or at least one backend", got="an empty list")
    if fallback and "torchscript" not in names:
        names.append("torchscript")
    if len(set(names)) < len(names):
        raise OptionError.make(scope, "engine", expected="each backend once", got=", ".join(names))
    chosen = [registry.backend(name) for name in names]
    for backend in chosen:
        availability = backend.availability()
        if not availability.available:
            raise registry.unavailable(backend.name, availability.reason)
    return chosen


def precision_of(backend: Backend, precision: str, scope: str = "convert") -> str:
    """What a backend compiles in: the precision that was asked for; TorchScript falls back to fp32.

    Raises:
        OptionError: the backend does not have it.
    """
    if precision in backend.precisions:
        return precision
    if backend.name == "torchscript":
        return "fp32"
    raise OptionError.make(
        scope,
        f"precision for {backend.name}",
        expected=f"one of {', '.join(backend.precisions)}",
        got=f"'{precision}'",
        remedy="Take one that it has, or another engine.",
    )


def compare_variants(
    program: Program,
    engine: Any,
    artifacts: Sequence[Artifact],
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[TensorError], list[str]]:
    """Each variant's outputs on the program's calls, in the precision that it promises, even if only emulated here.

    Args:
        program: the segment; its calls hold what is expected.
        engine: see :func:`hybrid_rt.engine_module.make_engine`. It is left on its best variant.
        artifacts: its variants, best first.
        advance: called before each variant.

    Returns:
        The errors of each output, and for each variant that can't run here the reason.

    Raises:
        RuntimeError: no variant can run here; the text lists each one's reason.
    """
    names = [spec.name for spec in program.outputs]
    compared: dict[str, list[TensorError]] = {}
    not_run: list[str] = []
    for artifact in reversed(artifacts):  # the best one last: the engine stays on it
        backend = artifact.spec.backend
        advance()
        try:
            prepare(engine, backend, emulate_precision=True)
        except RuntimeError as error:  # what TorchScript makes of a BackendError
            not_run.append(f"segment '{program.name}', {backend}: {error}")
            continue
        compared[backend] = [
            error
            for call in program.calls
            for error in compare_tensors(program.name, names, call.outputs, run_flat(engine, call.inputs), backend)
        ]
    if not compared:
        prepare(engine, emulate_precision=True)  # raises, with every variant's reason
    return [error for errors in reversed(compared.values()) for error in errors], not_run


def require_same_outputs(
    program: Program, engine: Any, artifacts: Sequence[Artifact], precision: str, thresholds: Thresholds, scope: str
) -> Verification:
    """:func:`compare_variants`, where nothing but the module itself says what is right.

    Raises:
        VerificationError: a variant is further off than ``thresholds.relative_error``.
    """
    verification = Verification(precision)
    verification.tensors, verification.not_run = compare_variants(program, engine, artifacts)
    add_tensor_failures(verification, verification.tensors, thresholds)
    if not verification.passed:
        raise VerificationError.make(
            scope,
            f"segment '{program.name}' in {precision}",
            expected="the outputs of the module",
            got="\n  " + "\n  ".join(verification.failures) + "\n",
            remedy="Nothing was saved. Take precision='fp32' or another engine, or loosen thresholds= if it is meant.",
        )
    return verification
