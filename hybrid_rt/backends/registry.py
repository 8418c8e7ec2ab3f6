"""Which backends there are: compile halves in Python, run halves in the plug-ins, joined by their name."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from torch import Tensor

from .. import _native
from ..common.errors import BackendError, OptionError
from .base import Backend, RuntimeFiles

ENTRY_POINT_GROUP = "hybrid_rt.backends"

_SHARED = {"base", "cache", "registry", "selection"}
"""What lies beside the backends and is none."""


@dataclass(frozen=True)
class BackendInfo:
    """What this process can do with a backend. Empty reasons mean yes."""

    name: str
    precisions: tuple[str, ...]
    devices: tuple[str, ...]
    version: str
    compile_reason: str
    run_reason: str

    @property
    def available(self) -> bool:
        """Whether it can both compile and run here."""
        return not self.compile_reason and not self.run_reason

    @property
    def reason(self) -> str:
        """Why it is not available; empty if it is."""
        return "; ".join(reason for reason in dict.fromkeys((self.compile_reason, self.run_reason)) if reason)


@functools.cache
def _compilers() -> dict[str, Backend]:
    found: dict[str, Backend] = {}
    classes = [
        candidate
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
        if module.name not in _SHARED
        for candidate in vars(importlib.import_module(f"{__package__}.{module.name}")).values()
        if isinstance(candidate, type) and issubclass(candidate, Backend) and candidate is not Backend
    ]
    classes += [entry.load() for entry in entry_points(group=ENTRY_POINT_GROUP)]
    for candidate in classes:
        if candidate.name in found:
            raise BackendError.make(
                candidate.name,
                "backend",
                expected="one class of that name",
                got=f"{type(found[candidate.name]).__qualname__} and {candidate.__qualname__}",
                remedy="Uninstall one of the packages that bring them.",
            )
        found[candidate.name] = candidate()
        if candidate.plugin_folder is not None:
            _native.add_plugin_folder(candidate.plugin_folder)
    return found


def backend(name: str) -> Backend:
    """The compile half of that name.

    Raises:
        OptionError: there is none.
    """
    compilers = _compilers()
    if name not in compilers:
        raise OptionError.make(
            "registry",
            "engine",
            expected=f"one of {', '.join(sorted(compilers))}, or 'auto'",
            got=f"'{name}'",
            remedy="Install the package that brings it; `hybrid-rt doctor` lists what is installed.",
        )
    return compilers[name]


def file_endings(name: str) -> Mapping[str, str]:
    """For each blob of a backend the ending of the file that the vendor's tools open; none if it is not installed."""
    compilers = _compilers()
    return compilers[name].files if name in compilers else {}


def runtime_files(name: str) -> RuntimeFiles:
    """What a backend's plug-in opens while it runs; nothing is known of one that is not installed."""
    compilers = _compilers()
    return compilers[name].runtime_files if name in compilers else RuntimeFiles()


def weights_of(name: str, blobs: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, int], ...]]:
    """Where the weights stand in a backend's blobs; nothing is known of one that is not installed."""
    compilers = _compilers()
    return compilers[name].weights(blobs) if name in compilers else {}


def backends() -> list[BackendInfo]:
    """Every backend that is installed, with what it can do here or why not."""
    compilers = _compilers()
    plugins = {info["name"]: info for info in _native.backends()}
    found = []
    for name in sorted({*compilers, *plugins}):
        compiler, plugin = compilers.get(name), plugins.get(name)
        availability = compiler.availability() if compiler else None
        found.append(
            BackendInfo(
                name=name,
                precisions=compiler.precisions if compiler else (),
                devices=tuple(plugin["devices"]) if plugin else (),
                version=(plugin["version"] if plugin else "") or (availability.version if availability else ""),
                compile_reason=availability.reason if availability else "no Python package brings its compiler",
                run_reason=plugin["reason"] if plugin else f"its plug-in libhybrid_rt_{name}.so is not installed",
            )
        )
    return found


def load_plugins() -> None:
    """Makes the plug-in folders of out-of-tree packages known to the native library."""
    _compilers()


def unavailable(name: str, reason: str) -> BackendError:
    """The error for a backend that can't compile here."""
    return BackendError.make(
        name,
        "engine",
        expected="a backend whose compiler is installed",
        got=f"'{name}', which is not available: {reason}",
        remedy="Install it, or take another engine; `hybrid-rt doctor` lists what is installed.",
    )


def built_for_torch() -> str:
    """The torch that the native library was compiled with."""
    version: str = _native.torch_version
    return version
