"""Runs the variants of an engine on this machine: orders them by speed, compares their outputs with the segment's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...backends import registry
from ...capture.derived_shapes import tile_to_shape
from ...capture.program import FlatCall, Program
from ...common.errors import BackendError, VariantError, VerificationError
from ...common.latency import benchmark
from ...common.progress import Steps
from ...common.specs import Artifact, ArtifactSpec
from ...torchscript.engine import Engine
from ...verification.self_noise import with_noise
from ...verification.verify import (
    UNDETERMINED,
    Failure,
    Findings,
    TensorError,
    Thresholds,
    Verification,
    compare_tensors,
    tensor_failures,
    thresholds_of,
)
from .builds import BuiltVariant, EngineBuild
from .engine_module import prepare, run_flat

_ROUNDS = 5


def _finished(outputs: list[Tensor], device: str) -> list[Tensor]:
    """Waits for a GPU, whose work goes on after the call, and returns the outputs."""
    if device == "cuda":
        torch.cuda.synchronize()
    return outputs


def fastest_first(build: EngineBuild, device: str = "cpu") -> tuple[EngineBuild, str]:
    """Orders the variants by their time on this machine; returns the engine and one line with the times.

    Each variant runs on the device, at the size that the compiler optimized for. Those that can't run there come
    last.
    """
    program, artifacts = build.program, build.artifacts
    inputs = tuple(
        tile_to_shape(tensor, spec.opt) for tensor, spec in zip(program.examples, program.inputs, strict=True)
    )
    cases: dict[str, Callable[..., Any]] = {}
    for i, artifact in enumerate(artifacts):
        engine = EngineBuild(program, (BuiltVariant(artifact),)).engine
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
    return build.ordered(order), f"{program.name}: {', '.join(texts)}"


def order_by_speed(builds: Sequence[EngineBuild], device: str, steps: Steps) -> list[EngineBuild]:
    """Applies :func:`fastest_first` to each engine, and shows the times."""
    with steps.step("find the fastest engine"):
        ordered = []
        for build in builds:
            fastest, line = fastest_first(build, device)
            steps.show(line)
            ordered.append(fastest)
        return ordered


def _run_on(device: str, engine: Engine, call: FlatCall) -> list[Tensor]:
    outputs = run_flat(engine, tuple(tensor.to(device) for tensor in call.inputs))
    return [tensor.cpu() for tensor in outputs]


_CONDITIONS = "conditions"
"""Name of the blob with the further conditions on sizes that an engine checks at each call (docs/format.md)."""


def _with_expected_values(artifact: Artifact, call: FlatCall, got: list[Tensor]) -> list[Tensor]:
    """Replaces outputs that the artifact does not write with the expected ones, if their shapes and dtypes are equal.

    Nothing reads the values of these outputs, so only their sizes have to match.
    """
    unwritten = registry.outputs_without_values(artifact)
    return [
        wanted if i in unwritten and (wanted.shape, wanted.dtype) == (had.shape, had.dtype) else had
        for i, (wanted, had) in enumerate(zip(call.outputs, got, strict=True))
    ]


def _compare_call(
    program: Program, artifact: Artifact, engine: Engine, call: FlatCall, label: str, limit: float
) -> list[TensorError]:
    def rerun(seed: int) -> Sequence[Tensor]:
        return program.run(with_noise(call.inputs, seed))

    names = [output.name for output in program.outputs]
    size = ", ".join("x".join(map(str, tensor.shape)) for tensor in call.inputs)
    spec = artifact.spec
    try:
        got = _run_on(spec.device, engine, call)
    except RuntimeError as error:
        is_known = any(call is known for known in program.calls)
        if not is_known and artifact.blobs.get(_CONDITIONS) is not None and artifact.blobs[_CONDITIONS].numel():
            return []  # the variant refuses some sizes within the ranges, with an error at each such call
        raise VariantError.of(program.name, spec.backend, spec.precision, size, error) from error
    got = _with_expected_values(artifact, call, got)
    is_tighter = limit < thresholds_of(spec.precision).relative_error
    noise = None if is_tighter else rerun  # what the user asks for beyond the usual is asked of the engine alone
    errors = compare_tensors(program.name, names, call.outputs, got, label, noise, limit)
    return [
        error if error.relative_error <= limit else replace(error, backend=f"{label} at {size}") for error in errors
    ]


def compare_variants(
    build: EngineBuild,
    thresholds: Thresholds | None = None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[tuple[ArtifactSpec, list[TensorError]]], list[str]]:
    """Compares each variant's outputs with the segment's, in the promised precision, even if it is emulated here.

    Args:
        build: the engine, whose best variant is prepared again afterwards; its program's calls hold the expected
            outputs.
        thresholds: limits for equality; None: those of each variant's precision.
        advance: called before each variant.

    Returns:
        The errors of each output per variant, and the reasons why something was not compared.

    Raises:
        BackendError: No variant can run here, though one is for the CPU; the text lists the reason for each. A variant
            for GPUs may be compiled on a machine without one.
        VariantError: A variant fails at a size that the segment supports.
    """
    program, engine, artifacts = build.program, build.engine, build.artifacts
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
            not_run.append(f"engine '{program.name}', {label}: {error}")
            continue
        limit = (thresholds or thresholds_of(spec.precision)).relative_error
        errors = [
            error
            for call in (*program.calls, *program.sizes)
            for error in _compare_call(program, artifact, engine, call, label, limit)
        ]
        compared.insert(0, (spec, errors))
        missing = set(names) - {error.output for error in errors}
        if missing:  # by no call is it shown to be right
            call = program.calls[0]
            got = _with_expected_values(artifact, call, _run_on(spec.device, engine, call))
            raw = compare_tensors(program.name, names, call.outputs, got, label, limit=limit)
            errors += [error for error in raw if error.output in missing]
            not_run += [
                f"engine '{program.name}', {label}, output '{name}': {UNDETERMINED}" for name in sorted(missing)
            ]
    if not compared and any(artifact.spec.device == "cpu" for artifact in artifacts):
        prepare(engine, emulate_precision=True)  # raises, with every variant's reason
    return compared, not_run


def require_running(builds: Sequence[EngineBuild]) -> None:
    """Checks that every variant runs at the sizes of its segment's calls.

    Raises:
        VariantError: A variant fails at one of them.
    """
    for build in builds:
        compare_variants(build)


def variant_findings(
    compared: Sequence[tuple[ArtifactSpec, list[TensorError]]], not_run: Sequence[str], thresholds: Thresholds | None
) -> Findings:
    """Judges the errors of :func:`compare_variants`; ``thresholds``: None means those of each variant's precision."""
    failures: list[Failure] = []
    for spec, errors in compared:
        failures += tensor_failures(errors, thresholds or thresholds_of(spec.precision))
    return Findings(tensors=[error for _, errors in compared for error in errors], failures=failures, not_run=not_run)


def require_same_outputs(build: EngineBuild, precision: str, thresholds: Thresholds | None, scope: str) -> Verification:
    """Runs :func:`compare_variants`, and refuses an engine whose outputs differ from its module's.

    Raises:
        VerificationError: A variant's error exceeds ``thresholds.relative_error`` (None: that of its precision).
    """
    compared, not_run = compare_variants(build, thresholds)
    verification = Verification(precision).with_findings(variant_findings(compared, not_run, thresholds))
    if not verification.passed:
        raise VerificationError.make(
            scope,
            f"engine '{build.name}' in {precision}",
            expected="the outputs of the module",
            got="\n  " + "\n  ".join(verification.failures) + "\n",
            remedy="Nothing was saved. Use "
            + ("" if precision == "fp32" else "precision='fp32' or ")
            + "another engine, or loosen thresholds= if the difference is acceptable.",
            code="outputs-differ",
        )
    return verification
