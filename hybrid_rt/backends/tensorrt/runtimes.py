"""The vendor's libraries that the run half may find, and the GPUs and drivers that each of them runs on."""

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
    """The versions of one library that share an interface.

    Attributes:
        name: for people.
        library: as specs name it.
        major: the first number of its versions.
        oldest: the lowest compute capability of its GPUs.
        cuda: the lowest major version of CUDA that NVIDIA builds it for.
        capabilities: all of them; empty: all from ``oldest`` on.
    """

    name: str
    library: str
    major: int
    oldest: str
    cuda: int
    capabilities: tuple[str, ...] = ()

    def refusal_of_gpu(self, capability: str) -> str:
        """Returns why it does not run on GPUs of a compute capability; empty if it does."""
        if capability in self.capabilities or (not self.capabilities and _pair(capability) >= _pair(self.oldest)):
            return ""
        known = ", ".join(self.capabilities) if self.capabilities else f"{self.oldest} and newer"
        return f"it runs on GPUs of compute capability {known}"


# NVIDIA's support matrices: of TensorRT 10.1 ("SM 7.0 or higher"), the prerequisites of TensorRT 11.2 ("Turing
# architecture or later"), and what TensorRT-RTX 1.7.1 builds for. CUDA: by the names of NVIDIA's packages, such as
# tensorrt-cu11-libs.
FAMILIES = (
    Family("TensorRT 10", "tensorrt", 10, "7.0", 11),
    Family("TensorRT 11", "tensorrt", 11, TURING, 12),
    Family("TensorRT-RTX 1", "tensorrt_rtx", 1, TURING, 12, (TURING, *RTX_CAPABILITIES)),
)


@dataclass(frozen=True)
class RunHalf:
    """Findings of the run half on this machine.

    Attributes:
        driver: the newest CUDA version that NVIDIA's driver supports, "13.0"; empty: there is no driver, or it does not
            tell.
        libraries: "name", "path", "version" and "reason" of each library that it looks for, by name.
    """

    driver: str
    libraries: Mapping[str, Mapping[str, str]]


def run_half(plugin: str) -> RunHalf:
    """Asks the run half, the shared library ``plugin``."""
    ask = ctypes.CDLL(plugin).hybrid_rt_tensorrt_libraries
    ask.restype = ctypes.c_char_p
    told = json.loads(ask())
    return RunHalf(told["driver"], {entry["name"]: entry for entry in told["libraries"]})


def cuda_of(library: str, path: str) -> int | None:
    """Returns the major version of CUDA that a library was built for; None: its package does not tell.

    Args:
        library: "tensorrt" or "tensorrt_rtx".
        path: path of the file. The name of NVIDIA's package says it, and its records lie beside the package's
            directory: ``tensorrt_rtx_cu13_libs-1.7.1.116.dist-info``.
    """
    beside = Path(path).parent.parent
    names = sorted(found.name for found in beside.glob(f"{library}_cu*_libs-*.dist-info")) if path else []
    found = [re.match(rf"{library}_cu(\d+)_libs-", name) for name in names]
    versions = {int(match[1]) for match in found if match}
    return versions.pop() if len(versions) == 1 else None


def checks(devices: Sequence[Mapping[str, Any]], no_device: str, found: RunHalf) -> list[RuntimeCheck]:
    """Returns a check of each family on each GPU.

    Args:
        devices: "name" and "capability" of each GPU, in torch's order.
        no_device: why there is none.
        found: what :func:`run_half` returned.
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
    """Returns why the driver is too old for a library; empty if it is not, or does not tell its version.

    A driver runs what was built for any minor version of its own major version of CUDA, and for older ones.
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
