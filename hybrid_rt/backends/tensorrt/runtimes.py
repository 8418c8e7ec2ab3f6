"""Checks which of the vendor's libraries run on this machine's GPUs and driver."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import RuntimeCheck
from .options import RTX_CAPABILITIES

TURING = "7.5"


@dataclass(frozen=True)
class Family:
    """Versions of one library that share an interface.

    Attributes:
        name: Name to show to users.
        library: Name of the library in specs.
        major: Major version.
        oldest: Lowest supported compute capability.
        cuda: Lowest major version of CUDA that NVIDIA builds it for.
        capabilities: All supported compute capabilities; empty if every one from ``oldest`` on is supported.
    """

    name: str
    library: str
    major: int
    oldest: str
    cuda: int
    capabilities: tuple[str, ...] = ()

    def refusal_of_gpu(self, capability: str) -> str:
        """Returns why the library does not run on GPUs of a compute capability; empty if it does."""
        if capability in self.capabilities or (not self.capabilities and _pair(capability) >= _pair(self.oldest)):
            return ""
        known = ", ".join(self.capabilities) if self.capabilities else f"{self.oldest} and newer"
        return f"it runs on GPUs of compute capability {known}"


# Sources: NVIDIA's support matrix of TensorRT 10.1 ("SM 7.0 or higher"), the prerequisites of TensorRT 11.2 ("Turing
# architecture or later"), and the capabilities that TensorRT-RTX 1.7.1 builds for. The CUDA versions come from the
# names of NVIDIA's packages, such as tensorrt-cu11-libs.
FAMILIES = (
    Family("TensorRT 10", "tensorrt", 10, "7.0", 11),
    Family("TensorRT 11", "tensorrt", 11, TURING, 12),
    Family("TensorRT-RTX 1", "tensorrt_rtx", 1, TURING, 12, (TURING, *RTX_CAPABILITIES)),
)


@dataclass(frozen=True)
class RunHalf:
    """Driver and libraries that the run half found on this machine.

    Attributes:
        driver: Newest CUDA version that NVIDIA's driver supports, such as "13.0"; empty if there is no driver, or if it
            does not report a version.
        libraries: "name", "path", "version" and "reason" of each library that the run half looks for, by name.
    """

    driver: str
    libraries: Mapping[str, Mapping[str, str]]


def run_half(plugin: str) -> RunHalf:
    """Asks the run half for its driver and libraries.

    Args:
        plugin: Path of the run half's shared library.
    """
    ask = ctypes.CDLL(plugin).hybrid_rt_tensorrt_libraries
    ask.restype = ctypes.c_char_p
    facts = json.loads(ask())
    return RunHalf(facts["driver"], {entry["name"]: entry for entry in facts["libraries"]})


def cuda_of(library: str, path: str) -> int | None:
    """Returns the major version of CUDA that a library was built for, or None if its package does not say.

    Args:
        library: "tensorrt" or "tensorrt_rtx".
        path: Path of the library. The version is part of the name of NVIDIA's package, whose metadata directory
            (``tensorrt_rtx_cu13_libs-1.7.1.116.dist-info``) is next to the package's directory.
    """
    beside = Path(path).parent.parent
    names = sorted(found.name for found in beside.glob(f"{library}_cu*_libs-*.dist-info")) if path else []
    found = [re.match(rf"{library}_cu(\d+)_libs-", name) for name in names]
    versions = {int(match[1]) for match in found if match}
    return versions.pop() if len(versions) == 1 else None


def checks(devices: Sequence[Mapping[str, Any]], no_device: str, found: RunHalf) -> list[RuntimeCheck]:
    """Returns one check per GPU and family of libraries.

    Args:
        devices: "name" and "capability" of each GPU, in torch's order.
        no_device: Reason why there is no GPU.
        found: Result of :func:`run_half`.
    """
    if not devices:
        return [RuntimeCheck("", family.name, "", no_device) for family in FAMILIES]
    return [
        _check(f"cuda:{i} ({device['name']}, compute capability {device['capability']})", device, family, found)
        for i, device in enumerate(devices)
        for family in FAMILIES
    ]


def _check(place: str, device: Mapping[str, Any], family: Family, found: RunHalf) -> RuntimeCheck:
    library = found.libraries[family.library]
    version = library["version"]
    is_here = version.split(".")[0] == str(family.major)
    refusal = family.refusal_of_gpu(str(device["capability"]))
    if not refusal and version and not is_here:
        refusal = f"{family.library} {version} is installed here"
    refusal = refusal or library["reason"]
    if not refusal:
        refusal = _refusal_of_driver(found.driver, family, cuda_of(family.library, library["path"]))
    return RuntimeCheck(place, family.name, version if is_here else "", refusal)


def _refusal_of_driver(driver: str, family: Family, built_for: int | None) -> str:
    """Returns why the driver is too old for a library; empty if it is not, or if its version is unknown.

    A driver runs programs that were built for any minor version of its own major version of CUDA, and for older
    versions.
    """
    needed = family.cuda if built_for is None else built_for
    if not driver or _pair(driver)[0] >= needed:
        return ""
    theirs = _pair(driver)[0]
    other = f", or install a build for CUDA {theirs}" if theirs >= family.cuda else ""
    return (
        f"it needs a driver for CUDA {needed} or newer, and NVIDIA's driver here is for CUDA {driver}: "
        f"update the driver{other}"
    )


def _pair(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
