"""Chooses a precision for a single engine with precision="auto", by timing the engine alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..backends.selection import VariantRequest
from ..capture.derived_shapes import tile_to_shape
from ..capture.program import Program
from ..common.errors import VerificationError
from ..common.progress import Steps
from .assemble.builds import EngineBuild
from .assemble.engine_module import prepare, run_flat
from .auto_precision import Candidate, candidates, choose
from .options import EngineOptions
from .report.data import PrecisionTrial


@dataclass(frozen=True)
class TimedEngine:
    """A built engine that precision="auto" can time."""

    build: EngineBuild
    device: str

    @contextmanager
    def in_promised_precision(self) -> Iterator[Callable[..., Any]]:
        """Yields a callable that runs the engine on flat tensors, and waits for a GPU by copying its outputs back."""
        engine, place = self.build.engine, torch.device(self.device)
        prepare(engine, device=place, emulate_precision=True)
        yield lambda *inputs: [t.cpu() for t in run_flat(engine, tuple(t.to(place) for t in inputs))]


def build_in_precision(
    engines: EngineOptions,
    program: Program,
    build: Callable[[EngineOptions], EngineBuild],
    failure_of: Callable[[EngineBuild, EngineOptions], str],
    steps: Steps,
) -> tuple[EngineBuild, EngineOptions, list[PrecisionTrial]]:
    """Builds an engine in the named precision, or for "auto" in each, and chooses the fastest that is right.

    Args:
        engines: the engines; with precision="auto", their precision is chosen.
        program: the segments.
        build: builds the engine, and raises an error if its outputs differ from the segments'.
        failure_of: returns any other reason against the engine, or an empty string.
        steps: shows the progress.

    Returns:
        The engine, its options with the chosen precision, and a record of each precision that was tried.

    Raises:
        HybridRTError: ``build`` failed, or no precision is right.
    """
    if not engines.is_auto_precision:
        return build(engines), engines, []
    inputs = tuple(map(tile_to_shape, program.examples, [spec.opt for spec in program.inputs]))

    def attempt(tried: EngineOptions) -> tuple[EngineBuild, str]:
        found = build(tried)
        return found, failure_of(found, tried)

    def candidate(attempted: tuple[EngineBuild, str]) -> Candidate:
        return Candidate(TimedEngine(attempted[0], engines.device), attempted[1])

    (taken, failure), chosen, trials = choose(engines, attempt, candidate, inputs, steps)
    if failure:
        raise VerificationError.make(
            engines.scope,
            f"engine '{program.name}', precision='auto'",
            expected="a precision whose results are right",
            got=f"none: {failure}",
            remedy="Nothing was saved. Use another engine, or loosen thresholds= if the difference is acceptable.",
            code="outputs-differ",
        )
    for trial in trials:
        steps.show(f"{program.name}, precision {trial.line}")
    return taken, chosen, trials


def tried_variants(engines: EngineOptions) -> list[VariantRequest]:
    """Returns every variant that may be compiled; with precision="auto", those of each precision.

    Raises:
        OptionError, BackendError: see :attr:`EngineOptions.variants`.
    """
    tried = candidates(engines)[0] if engines.is_auto_precision else [engines]
    return [variant for each in tried for variant in each.variants]


def trial_lines(trials: Mapping[str, Sequence[PrecisionTrial]]) -> list[str]:
    """Returns one line per trial for a terminal; ``trials`` is by the engine's name."""
    return [f"{name}, precision {trial.line}" for name, tried in trials.items() for trial in tried]
