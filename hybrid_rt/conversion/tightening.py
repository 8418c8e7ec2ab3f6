"""Builds a hybrid again with fewer layers in int8 if its results differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ..common.errors import BackendError
from ..common.progress import Steps
from .assemble.given_up import GivenUp
from .options import EngineOptions

MOST_TRIES = 3
"""Maximum number of builds. Each halves the error that a compiler may leave, with the compiler's full time budget."""

Built = TypeVar("Built")


def tightened(engines: EngineOptions) -> EngineOptions | None:
    """Returns the engines with options for more accuracy; None if no compiler has any."""
    options = dict(engines.options or {})
    changed = False
    for variant in engines.variants:
        further = variant.backend.tightened(variant.precision)
        if further is not None:
            options[variant.backend.name] = further
            changed = True
    return replace(engines, options=options) if changed else None


def build_until_right(
    engines: EngineOptions,
    build: Callable[[EngineOptions], Built],
    failure_of: Callable[[Built], str],
    steps: Steps,
) -> tuple[Built, list[GivenUp]]:
    """Builds a hybrid, and builds it again with more accurate engines while its results differ.

    Args:
        engines: the engines.
        build: builds the hybrid.
        failure_of: returns the difference, or an empty string if more accurate engines could not remove it.
        steps: shows the attempts that are given up.

    Returns:
        The first hybrid that is right, or else the last one, and the attempts that were given up.

    Raises:
        HybridRTError: The first ``build`` failed, or a later one failed with an error other than BackendError.
    """
    built = build(engines)
    given_up: list[GivenUp] = []
    for _ in range(MOST_TRIES - 1):
        reason = failure_of(built)
        further = tightened(engines) if reason else None
        if further is None:
            break
        given_up.append(
            GivenUp(
                what=f"{', '.join(v.name for v in engines.variants if v.backend.tightened(v.precision) is not None)} "
                "with as many layers in int8 as the outputs allowed",
                instead="fewer layers in int8",
                reason=reason,
                cost="the layers that are kept in fp32 take as long as in fp32",
            )
        )
        steps.show(given_up[-1].summary)
        try:
            built, engines = build(further), further
        except BackendError as error:  # no set of layers is right enough: the verification of the last one says why
            steps.show(str(error))
            break
    return built, given_up
