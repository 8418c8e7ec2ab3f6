"""Compiles captured programs into engines with one or more variants."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...backends import registry
from ...backends.selection import report_refusals
from ...bundle.blob_table import Packed, pack
from ...capture.program import Program
from ...common.errors import BackendError, CaptureError, FusionError, HybridRTError, VariantError
from ...common.progress import Steps
from ...common.specs import Artifact
from ...torchscript.engine import Engine
from ..isolation.isolated_compiler import begin, compiling_in_isolation, runs_isolated
from ..options import EngineOptions
from .engine_module import make_engine


@dataclass(frozen=True)
class BuiltVariant:
    """A compiled variant, and whether the cache had it."""

    artifact: Artifact
    cached: bool = False


@dataclass(frozen=True)
class EngineBuild:
    """One engine: the captured program and its compiled variants, best first.

    ``refusals`` holds, per requested engine that could not compile it, the engine's name and the reason.
    """

    program: Program
    variants: tuple[BuiltVariant, ...]
    refusals: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The program's name."""
        return self.program.name

    @property
    def artifacts(self) -> list[Artifact]:
        """The variants' artifacts, best first."""
        return [variant.artifact for variant in self.variants]

    @functools.cached_property
    def packed(self) -> Packed:
        """The variants over one table of bytes."""
        return pack(self.artifacts)

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine; no variant is chosen before it is prepared."""
        return make_engine(self.program.segments, self.packed)

    def ordered(self, order: Sequence[int]) -> EngineBuild:
        """Returns the engine with its variants in another order."""
        return replace(self, variants=tuple(self.variants[i] for i in order))

    def without_values(self, outputs: frozenset[int]) -> EngineBuild:
        """Returns the engine with variants that do not write outputs whose values nothing reads.

        Args:
            outputs: the positions of these outputs.
        """
        if not outputs:
            return self
        variants = [
            replace(variant, artifact=registry.without_values(variant.artifact, outputs)) for variant in self.variants
        ]
        is_changed = any(new.artifact is not old.artifact for new, old in zip(variants, self.variants, strict=True))
        return replace(self, variants=tuple(variants)) if is_changed else self

    def without(self, failures: Sequence[VariantError]) -> EngineBuild:
        """Returns the engine without the variants that failed when they ran; these are added to its refusals."""
        refusals = {(failure.backend, failure.precision): str(failure) for failure in failures}
        kept, refused = [], []
        for variant in self.variants:
            spec = variant.artifact.spec
            reason = refusals.get((spec.backend, spec.precision))
            if reason is None:
                kept.append(variant)
            else:
                refused.append((f"{spec.backend}:{spec.precision}", reason))
        return replace(self, variants=tuple(kept), refusals=(*self.refusals, *refused))


@compiling_in_isolation()
def compile_programs(
    programs: Sequence[Program], options: EngineOptions, steps: Steps, *, require_all: bool = False
) -> list[EngineBuild]:
    """Compiles every program into all requested variants; with a fallback, those whose compiler refuses are left out.

    ``require_all``: every named engine has to compile it, even with a fallback.

    Raises:
        FusionError: No compiler accepts several segments as one program; each alone may be accepted.
        BackendError: A compiler refuses; with a fallback or engine="fastest", all compilers refuse.
        CaptureError: Likewise, if a segment can't be captured in the form that a compiler needs.
    """
    total = len(programs) * len(options.variants)
    builds = []
    for i, program in enumerate(programs):
        done = i * len(options.variants)
        try:
            builds.append(
                compile_program(
                    program,
                    options,
                    steps,
                    total=total,
                    done=done,
                    skip_refused=options.fallback and not require_all,
                    following=programs[i + 1] if i + 1 < len(programs) else None,
                )
            )
        except (BackendError, CaptureError) as error:
            if len(program.members) > 1:
                raise FusionError.of(program.segments, error) from error
            raise
    return builds


@compiling_in_isolation()
def compile_program(
    program: Program,
    options: EngineOptions,
    steps: Steps,
    *,
    total: int = 1,
    done: int = 0,
    skip_refused: bool = False,
    following: Program | None = None,
) -> EngineBuild:
    """Compiles one program into all requested variants; ``done`` of ``total`` variants were compiled before.

    The compiler's process begins with the ``following`` program while the last variants are compiled in this process.
    With engine="fastest", a warning is given if a compiler refuses. With ``skip_refused``, the same holds for named
    engines, except for the last one.

    Raises:
        BackendError, CaptureError: see :func:`compile_programs`.
    """
    built: list[BuiltVariant] = []
    refusals: list[HybridRTError] = []
    refused: list[tuple[str, str]] = []
    for i, variant in enumerate(options.variants):
        if following is not None and not any(runs_isolated(other.backend) for other in options.variants[i:]):
            begin(following, options.variants[0])
        try:
            built.append(BuiltVariant(*variant.get_or_compile(program, steps, total=total, done=done + i)))
        except (BackendError, CaptureError) as error:
            is_last = variant is options.variants[-1]
            if options.is_fastest:
                refusals.append(error)
            elif skip_refused and not is_last:
                warnings.warn(f"{error} Falling back to the next engine.", RuntimeWarning, stacklevel=3)
                refused.append((variant.name, str(error)))
            else:
                raise
    report_refusals(program.name, len(built), refusals, options.scope)
    return EngineBuild(program, tuple(built), tuple(refused))
