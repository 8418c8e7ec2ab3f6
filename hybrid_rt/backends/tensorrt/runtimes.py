"""The vendor's libraries that the run half may find, and the GPUs that each of them runs on."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        capabilities: all of them; empty: all from ``oldest`` on.
    """

    name: str
    library: str
    major: int
    oldest: str
    capabilities: tuple[str, ...] = ()

    def refusal_of_gpu(self, capability: str) -> str:
        """Returns why it does not run on GPUs of a compute capability; empty if it does."""
        if capability in self.capabilities or (not self.capabilities and _pair(capability) >= _pair(self.oldest)):
            return ""
        known = ", ".join(self.capabilities) if self.capabilities else f"{self.oldest} and newer"
        return f"it runs on GPUs of compute capability {known}"


# NVIDIA's support matrices: of TensorRT 10.1 ("SM 7.0 or higher"), the prerequisites of TensorRT 11.2 ("Turing
# architecture or later"), and what TensorRT-RTX 1.7.1 builds for.
FAMILIES = (
    Family("TensorRT 10", "tensorrt", 10, "7.0"),
    Family("TensorRT 11", "tensorrt", 11, TURING),
    Family("TensorRT-RTX 1", "tensorrt_rtx", 1, TURING, (TURING, *RTX_CAPABILITIES)),
)


def libraries(plugin: str) -> dict[str, Mapping[str, str]]:
    """Asks the run half, ``plugin``, for "version" and "reason" of each library that it looks for."""
    ask = ctypes.CDLL(plugin).hybrid_rt_tensorrt_libraries
    ask.restype = ctypes.c_char_p
    return {entry["name"]: entry for entry in json.loads(ask())}


def checks(
    devices: Sequence[Mapping[str, Any]], no_device: str, found: Mapping[str, Mapping[str, str]]
) -> list[RuntimeCheck]:
    """Returns a check of each family on each GPU.

    Args:
        devices: "name" and "capability" of each GPU, in torch's order.
        no_device: why there is none.
        found: what :func:`libraries` returned.
    """
    if not devices:
        return [RuntimeCheck("", family.name, "", no_device) for family in FAMILIES]
    return [
        _check(f"cuda:{i} ({device['name']}, compute capability {device['capability']})", device, family, found)
        for i, device in enumerate(devices)
        for family in FAMILIES
    ]


def _check(
    place: str, device: Mapping[str, Any], family: Family, found: Mapping[str, Mapping[str, str]]
) -> RuntimeCheck:
    library = found[family.library]
    version = library["version"]
    is_here = version.split(".")[0] == str(family.major)
    refusal = family.refusal_of_gpu(str(device["capability"]))
    if not refusal and version and not is_here:
        refusal = f"{family.library} {version} is installed here"
    return RuntimeCheck(place, family.name, version if is_here else "", refusal or library["reason"])


def _pair(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
