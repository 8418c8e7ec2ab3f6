"""Choice of variants and their compilation, shared by every way to make an engine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..capture.program import Program
from ..common.errors import BackendError, HybridRTError, OptionError, common_code
from ..common.progress import Steps
from ..common.specs import PRECISIONS, REFERENCE_PRECISION, Artifact
from . import registry
from .base import Backend
from .cache import store


@dataclass(frozen=True)
class VariantRequest:
    """A variant to compile."""

    backend: Backend
    precision: str

    @property
    def name(self) -> str:
        """As :func:`hybrid_rt.load` takes it: "openvino:bf16"."""
        return f"{self.backend.name}:{self.precision}"

    def get_or_compile(self, program: Program, steps: Steps, *, total: int = 1, done: int = 0) -> tuple[Artifact, bool]:
        """The artifact, and whether the cache had it; a step, ``done`` of ``total`` of its kind being over.

        Raises:
            BackendError: the compiler refuses.
            CaptureError: the segment can't be captured in the form that the compiler needs.
        """
        with steps.step(f"compile {program.name} with {self.backend.name}", total=total, done=done) as advance:
            return store.get_or_compile(self.backend.reporting_to(advance.part), program, self.precision)


FASTEST = "fastest"

DEVICES = ("cpu", "cuda")
"""The kinds of device that engines are compiled for."""

Options = Mapping[str, Mapping[str, Any]]
"""Options of compilers, by the backend's name: ``{"tensorrt": {"tf32": False}}``."""


def engines_for(device: str) -> list[str]:
    """Returns what engine="auto" stands for on a kind of device; each backend says whether it may be chosen."""
    return [registry.best_for(device)]


def check_device(device: str, scope: str) -> None:
    """Checks before long work that variants can be compiled for a kind of device.

    Raises:
        OptionError: No engine supports that kind of device.
    """
    if device not in DEVICES:
        raise OptionError.make(
            scope,
            "device",
            expected=f"one of {', '.join(DEVICES)}, which the engines are compiled for",
            got=f"'{device}'",
            remedy="To choose a GPU, pass device='cuda:1' to hybrid_rt.load().",
        )


def choose_variants(
    engine: str | Sequence[str],
    precision: str,
    fallback: bool,
    scope: str = "convert",
    *,
    device: str = "cpu",
    options: Options | None = None,
) -> list[VariantRequest]:
    """Returns the variants that the user named, best first.

    Args:
        engine: a backend's name, a list of names, "auto", or "fastest": all that are installed and may win (not
            tvm). A name may say its precision, "openvino:bf16".
        precision: the precision of the other names. The fallback's bare name means fp32: the segment as captured.
        fallback: add the fallback in fp32 as the last one.
        scope: of the error's text.
        device: the kind that is compiled for, where a backend has several; "auto" and "fastest" go by it.
        options: of the compilers.

    Raises:
        OptionError: There is no name, a name is unknown or given twice, or a backend lacks a precision or an option.
        BackendError: The compiler of a backend is not installed.
    """
    check_device(device, scope)
    names = _names(engine, precision, device)
    if not names:
        raise OptionError.make(scope, "engine", expected="'auto' or at least one backend", got="an empty list")
    last = registry.fallback().name
    if fallback and not {last, f"{last}:{REFERENCE_PRECISION}"}.intersection(names):
        names.append(last)
    wanted = [_request_of(name, precision, scope, device, options or {}) for name in names]
    _check_together(wanted, names, precision, options or {}, scope)
    for variant in wanted:
        availability = variant.backend.availability()
        if not availability.available:
            raise registry.unavailable(variant.backend.name, availability.reason)
        missing = variant.backend.missing(variant.precision)
        if missing:
            raise registry.unavailable(variant.name, missing)
    return wanted


def _names(engine: str | Sequence[str], precision: str, device: str) -> list[str]:
    """Returns the names that the user's choice stands for."""
    if engine == FASTEST:
        return [
            f"{info.name}:{precision}"
            for info in registry.backends()
            if info.available and _is_candidate(registry.backend(info.name).configured(device), precision, device)
        ]
    if engine == "auto":
        return engines_for(device)
    return [engine] if isinstance(engine, str) else list(engine)


def _check_together(
    wanted: Sequence[VariantRequest], names: Sequence[str], precision: str, options: Options, scope: str
) -> None:
    """Checks that each variant is named once, and that precision and options are those of some variant.

    Raises:
        OptionError: One of these conditions is violated.
    """
    must_be_computed_in = precision not in PRECISIONS or PRECISIONS[precision].needs_engine
    if must_be_computed_in and not any(variant.precision == precision for variant in wanted):
        raise OptionError.make(
            scope,
            "precision",
            expected="an engine that supports it",
            got=f"'{precision}' for {', '.join(variant.name for variant in wanted)}",
            remedy="Name an engine, such as engine='tensorrt'; `hybrid-rt doctor` lists the precisions of each.",
            code="precision-not-in-engine",
        )
    compiled = dict.fromkeys(variant.backend.name for variant in wanted)
    unused = set(options) - set(compiled)
    if unused:
        raise OptionError.make(
            scope,
            "options",
            expected=f"options only for the compiled engines ({', '.join(compiled)})",
            got=f"options for {', '.join(sorted(unused))}",
            remedy="Name that engine in engine=, or omit its options.",
        )
    if len({variant.name for variant in wanted}) < len(wanted):
        raise OptionError.make(
            scope, "engine", expected="each backend at most once per precision", got=", ".join(names)
        )


def check_calibration(
    wanted: Sequence[VariantRequest], calibration_data: Sequence[Any], scope: str = "convert"
) -> None:
    """Checks before long work that what needs calibration, such as int8, has data for it.

    Raises:
        OptionError: Calibration data is needed but missing, no variant needs it, or it does not consist of tuples of
            arguments.
    """
    calibrated = [variant.name for variant in wanted if PRECISIONS[variant.precision].needs_calibration]
    if calibrated and not calibration_data:
        raise OptionError.make(
            scope,
            "calibration_data",
            expected=f"some tens of tuples of arguments, with which {', '.join(calibrated)} is calibrated",
            got="none",
            remedy="Pass typical images, e.g. [([image],) for image in images].",
        )
    if calibration_data and not calibrated:
        raise OptionError.make(
            scope,
            "calibration_data",
            expected="an engine in int8 to calibrate",
            got=f"only {', '.join(variant.name for variant in wanted)}",
            remedy="Pass precision='int8', or name an engine in int8: 'tensorrt:int8'.",
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
        and registry.compiles_for(backend, device)
        and backend.availability().available  # for that device
        and not backend.missing(precision)
    )


def _request_of(name: str, precision: str, scope: str, device: str, options: Options) -> VariantRequest:
    backend_name, _, own = name.partition(":")
    backend = registry.backend(backend_name).configured(device, options.get(backend_name))
    if not own and backend.is_fallback:
        return VariantRequest(backend, REFERENCE_PRECISION)
    if own in backend.target_precisions or (not own and precision in backend.target_precisions):
        return VariantRequest(backend, own or precision)
    raise OptionError.make(
        scope,
        f"precision for {backend.name}",
        expected=f"one of {', '.join(backend.target_precisions)}",
        got=f"'{own or precision}'",
        remedy="Use one of these, or another engine.",
        code="precision-not-in-engine",
    )


def report_refusals(name: str, count: int, refusals: Sequence[HybridRTError], scope: str) -> None:
    """Warns about the candidates that could not compile a segment.

    Args:
        name: name of the segment.
        count: number of candidates that compiled it.
        refusals: errors of the candidates that could not.
        scope: scope in the error's text.

    Raises:
        BackendError: No candidate compiled it; the text lists the reason for each.
    """
    if not count:
        raise BackendError.make(
            scope,
            f"segment '{name}'",
            expected="an engine that compiles it",
            got="\n  " + "\n  ".join(map(str, refusals)) + "\n",
            remedy="Fix one of these problems, or name a smaller submodule in segments=.",
            code=common_code(map(str, refusals), "no-engine-compiles"),
        )
    for error in refusals:
        warnings.warn(f"{error} The engine is skipped.", RuntimeWarning, stacklevel=3)
