"""User options for building TensorRT engines: ``convert(options={"tensorrt": {...}})``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...common.errors import OptionError
from ...common.specs import UNBOUNDED, TensorSpec

LIBRARIES = ("auto", "tensorrt", "tensorrt_rtx")
FRONTENDS = ("onnx", "torch2trt")
HARDWARE = ("none", "ampere_plus", "same_compute_capability")
SPECIALIZATIONS = ("lazy", "eager", "none")
GRAPHS = ("off", "whole_graph")
CURRENT = "current"
DIMENSIONS = {"batch": 0, "height": 2, "width": 3}

RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX combines without a larger engine; 7.5 (Turing) makes it many times larger."""


@dataclass(frozen=True)
class Options:
    """Checked options of the TensorRT backend.

    Attributes:
        library: "tensorrt", "tensorrt_rtx" or "auto". "auto" selects TensorRT if it is installed and the machine has a
            GPU, which TensorRT needs to build; otherwise TensorRT-RTX, which builds on any machine.
        frontend: Converter of the segment: "onnx", or "torch2trt" if that package is installed.
        tf32: Rounds the factors of fp32 convolutions and matrix products to 10 bits of mantissa. Off by default, so
            that "fp32" means fp32.
        compute_capabilities: GPUs that a TensorRT-RTX engine is built for, such as ["8.6"], or "current" for the GPU of
            this machine.
        hardware_compatibility: GPUs that a TensorRT engine runs on: "none" for the model of GPU that built it,
            "ampere_plus" for Ampere and newer (slower), or "same_compute_capability".
        version_compatible: Lets newer versions of TensorRT run the engine too (slower). TensorRT only.
        profiles: Ranges of sizes that kernels are chosen for. Each profile maps "batch", "height" and "width" to (min,
            max) or (min, opt, max); a dimension that it does not name has the segment's whole range. None stands for
            one profile with the whole range.
        kernel_specialization: When TensorRT-RTX compiles kernels for the exact sizes of a call: "lazy" compiles in the
            background, and meanwhile calls run kernels for any size; "eager" compiles within the first call; "none"
            never compiles them. For engines that take several sizes.
        cuda_graphs: "off", or "whole_graph" to let TensorRT-RTX record its calls as CUDA graphs in streams other than
            the default one. The environment variable HYBRID_RT_TENSORRT_CUDA_GRAPHS works with both libraries.
        max_batch: Smallest upper bound of a first dimension that the segment leaves unbounded. The bound is at least
            eight times the example's size.
        optimization_level: Effort that TensorRT spends on fast kernels, 0 to 5.
        workspace_mb: Memory limit of one kernel in MiB; 0 for all of the GPU's memory.
    """

    library: str = "auto"
    frontend: str = "onnx"
    tf32: bool = False
    compute_capabilities: str | tuple[str, ...] = RTX_CAPABILITIES
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    profiles: tuple[Mapping[str, tuple[int, ...]], ...] | None = None
    kernel_specialization: str = "lazy"
    cuda_graphs: str = "off"
    max_batch: int = 8
    optimization_level: int = 3
    workspace_mb: int = 0


_CHOICES = {
    "library": LIBRARIES,
    "frontend": FRONTENDS,
    "hardware_compatibility": HARDWARE,
    "kernel_specialization": SPECIALIZATIONS,
    "cuda_graphs": GRAPHS,
}

_OF_ONE_LIBRARY = {
    "tensorrt": ("hardware_compatibility", "version_compatible"),
    "tensorrt_rtx": ("compute_capabilities", "kernel_specialization", "cuda_graphs"),
}


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the user's options in the types of :class:`Options`.

    Raises:
        OptionError: An option is unknown, or its value is not allowed.
    """
    known = [field.name for field in fields(Options)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise OptionError.make(
            "tensorrt", "options", expected=f"some of {', '.join(known)}", got=", ".join(map(repr, unknown))
        )
    found = dict(given)
    for name, allowed in _CHOICES.items():
        if name in found and found[name] not in allowed:
            raise _wrong(name, f"one of {', '.join(allowed)}", found[name])
    for name in ("tf32", "version_compatible"):
        if name in found and not isinstance(found[name], bool):
            raise _wrong(name, "true or false", found[name])
    for name, low, high in (("max_batch", 1, 1 << 20), ("optimization_level", 0, 5), ("workspace_mb", 0, 1 << 24)):
        value = found.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _wrong(name, f"an integer from {low} to {high}", value)
    if "compute_capabilities" in found:
        found["compute_capabilities"] = _capabilities(found["compute_capabilities"])
    if found.get("profiles") is not None:
        found["profiles"] = _profiles(found["profiles"])
    options = Options(**found)
    if options.library != "auto":
        check_library(options, options.library)
    return found


def check_library(options: Options, library: str) -> None:
    """Checks that the library supports every option that was set.

    Raises:
        OptionError: An option belongs to the other library.
    """
    other = "tensorrt" if library == "tensorrt_rtx" else "tensorrt_rtx"
    for name in _OF_ONE_LIBRARY[other]:
        value = getattr(options, name)
        if value not in (getattr(Options, name), CURRENT):
            raise OptionError.make(
                "tensorrt",
                f"option '{name}'",
                expected=f"the library '{other}', which has this option",
                got=f"{value!r} for '{library}'",
                remedy=f"Leave it out, or pass the option library='{other}'.",
            )


def _wrong(name: str, expected: str, got: Any) -> OptionError:
    return OptionError.make("tensorrt", f"option '{name}'", expected=expected, got=repr(got))


def _capabilities(value: Any) -> str | tuple[str, ...]:
    if value == CURRENT:
        return CURRENT
    entries = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else []
    if not entries or not all(isinstance(entry, str) and entry.replace(".", "", 1).isdigit() for entry in entries):
        raise _wrong("compute_capabilities", "'current', or a list such as ['8.6', '8.9']", value)
    return tuple(entries)


def _profiles(value: Any) -> tuple[Mapping[str, tuple[int, ...]], ...]:
    expected = "a list of {'batch': (min, max), 'height': (min, opt, max), ...}"
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _wrong("profiles", expected, value)
    found = []
    for profile in value:
        if not isinstance(profile, Mapping) or not set(profile) <= set(DIMENSIONS):
            raise _wrong("profiles", expected, profile)
        ranges = {}
        for name, given in profile.items():
            sizes = tuple(given) if isinstance(given, Sequence) else ()
            is_right = len(sizes) in (2, 3) and all(isinstance(size, int) and size > 0 for size in sizes)
            if not is_right or list(sizes) != sorted(sizes):
                raise _wrong("profiles", expected, profile)
            ranges[name] = sizes
        found.append(ranges)
    return tuple(found)


Range = tuple[int, int, int]
"""Smallest, typical and largest size of a dimension: (min, opt, max)."""


def profiles_of(options: Options, inputs: Sequence[TensorSpec], segment: str) -> list[list[list[Range]]]:
    """Returns the optimisation profiles: bounded ranges per profile, input and dimension.

    Raises:
        OptionError: A profile exceeds the segment's range, or nothing gives an upper bound for a dimension.
    """
    return [
        [
            _ranges(options, spec, profile if i == 0 else {}, f"segment '{segment}', input '{spec.name}'")
            for i, spec in enumerate(inputs)
        ]
        for profile in options.profiles or ({},)
    ]


def _ranges(options: Options, spec: TensorSpec, profile: Mapping[str, tuple[int, ...]], where: str) -> list[Range]:
    named = {DIMENSIONS[name]: sizes for name, sizes in profile.items()}
    if named and len(spec.min) != 4:
        raise OptionError.make(
            "tensorrt",
            f"option 'profiles', {where}",
            expected="a first input [N, C, H, W], to which the sizes apply",
            got=f"one with {len(spec.min)} dimensions",
        )
    found = []
    for d, (low, opt, high) in enumerate(zip(spec.min, spec.opt, spec.max, strict=True)):
        given = named.get(d)
        if given is not None:
            least, greatest = given[0], given[-1]
            if least < low or (high != UNBOUNDED and greatest > high):
                raise OptionError.make(
                    "tensorrt",
                    f"option 'profiles', {where}, dimension {d}",
                    expected=f"sizes that the segment accepts, {spec.sizes}",
                    got=str(given),
                    remedy="Narrow the profile, or widen shapes=.",
                )
            best = given[1] if len(given) == 3 else min(max(opt, least), greatest)
            found.append((least, best, greatest))
            continue
        if high == UNBOUNDED:
            if d != 0:
                raise OptionError.make(
                    "tensorrt",
                    f"{where}, dimension {d}",
                    expected="an upper bound, which TensorRT needs",
                    got=f"sizes of {low} or more",
                    remedy="Pass the largest sizes in shapes=, or the option 'profiles'.",
                    code="sizes-unbounded",
                )
            high = max(options.max_batch, 8 * opt)
        # TensorRT's sizes start at 1. The run half handles a batch of 0 without the engine.
        low = max(low, 1)
        found.append((low, min(max(opt, low), high), high))
    return found
