"""Registry of backends: compile halves in Python and run halves in the plug-ins, joined by their name."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from torch import Tensor

from .. import _native
from ..common.errors import BackendError, OptionError
from ..common.specs import Artifact
from .base import Backend, RuntimeCheck, RuntimeFiles
from .whole_graph import WholeGraph

ENTRY_POINT_GROUP = "hybrid_rt.backends"

SHARED = {"base", "cache", "quantization", "registry", "selection", "whole_graph"}
"""The modules in this package that are not backends."""


@dataclass(frozen=True)
class BackendInfo:
    """Capabilities of a backend in this process.

    Attributes:
        name: name of the backend, e.g. "openvino".
        precisions: precisions that it can compile here, e.g. "fp32".
        devices: kinds of device that its engines run on: "cpu", "cuda".
        version: version of the vendor's runtime; empty if it is not available.
        compile_reason: reason why it can't compile here; empty if it can.
        run_reason: reason why it can't run engines here; empty if it can.
    """

    name: str
    precisions: tuple[str, ...]
    devices: tuple[str, ...]
    version: str
    compile_reason: str
    run_reason: str

    @property
    def available(self) -> bool:
        """Returns true if it can both compile and run here."""
        return not self.compile_reason and not self.run_reason

    @property
    def reason(self) -> str:
        """Returns the reason why it is not available; empty if it is."""
        return "; ".join(reason for reason in dict.fromkeys((self.compile_reason, self.run_reason)) if reason)


@functools.cache
def _compilers() -> dict[str, Backend]:
    found: dict[str, Backend] = {}
    classes = [
        candidate
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
        if module.name not in SHARED
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
                remedy="Uninstall one of the packages that provide them.",
            )
        found[candidate.name] = candidate()
        if candidate.plugin_folder is not None:
            _native.add_plugin_folder(os.fsencode(candidate.plugin_folder))
    return found


def backend(name: str) -> Backend:
    """Returns the compile half of that name.

    Raises:
        OptionError: There is none.
    """
    compilers = _compilers()
    if name not in compilers:
        raise OptionError.make(
            "registry",
            "engine",
            expected=f"one of {', '.join(sorted(compilers))}, or 'auto'",
            got=f"'{name}'",
            remedy="Install the package that provides it; `hybrid-rt doctor` lists what is installed.",
        )
    return compilers[name]


def installed_class(name: str) -> type[Backend] | None:
    """Returns the class that was found for a name; None if there is none."""
    compilers = _compilers()
    return type(compilers[name]) if name in compilers else None


def names() -> list[str]:
    """Returns the names of the installed compile halves."""
    return sorted(_compilers())


def file_endings(name: str) -> Mapping[str, str]:
    """For each blob of a backend the ending of the file that the vendor's tools open; none if it is not installed."""
    compilers = _compilers()
    return compilers[name].files if name in compilers else {}


def runtime_files(name: str) -> RuntimeFiles:
    """Returns the files that a backend's plug-in opens at run time; none if it is not installed."""
    compilers = _compilers()
    return compilers[name].runtime_files if name in compilers else RuntimeFiles()


def weights_of(name: str, blobs: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, int], ...]]:
    """Locates the weights in a backend's blobs; returns none if it is not installed."""
    compilers = _compilers()
    return compilers[name].weights(blobs) if name in compilers else {}


def without_values(artifact: Artifact, outputs: frozenset[int]) -> Artifact:
    """See :meth:`Backend.without_values`; an artifact of a backend that is not installed stays."""
    compiler = _compilers().get(artifact.spec.backend)
    return artifact if compiler is None else compiler.without_values(artifact, outputs)


def outputs_without_values(artifact: Artifact) -> frozenset[int]:
    """See :meth:`Backend.outputs_without_values`; none if the backend is not installed."""
    compiler = _compilers().get(artifact.spec.backend)
    return frozenset() if compiler is None else compiler.outputs_without_values(artifact)


def backends() -> list[BackendInfo]:
    """Lists the installed backends, with their capabilities on this machine.

    Returns:
        One entry per backend, also for those that can't be used here, with the ``reason``. Does not raise.

    Examples:
        >>> available = [backend.name for backend in hybrid_rt.backends() if backend.available]
        >>> "openvino" in available and "torchscript" in available
        True
    """
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


def runtime_checks() -> list[RuntimeCheck]:
    """Returns which of the vendors' libraries would run on which GPU of this machine."""
    return [check for compiler in _compilers().values() for check in compiler.runtime_checks()]


def best_for(device: str) -> str:
    """Returns the backend that engine="auto" stands for on a kind of device.

    It is the one of the highest rank (see ``Backend.auto_for``) that can compile here, for the device that is here; if
    none can, the one of the lowest rank, whose error then says why.

    Raises:
        OptionError: no backend that is installed claims this kind of device.
    """
    ranked = sorted(
        (compiler for compiler in _compilers().values() if device in compiler.auto_for),
        key=lambda compiler: (-compiler.auto_for[device], compiler.name),
    )
    if not ranked:
        raise OptionError.make(
            "registry",
            "engine",
            expected=f"a backend that 'auto' can choose for device '{device}'",
            got="none",
            remedy="Name one; `hybrid-rt doctor` lists what is installed.",
        )
    able = [compiler for compiler in ranked if compiler.configured(device).availability().available]
    fitting = [compiler for compiler in able if not compiler.configured(device).misfit()]
    return [*fitting, *able, ranked[-1]][0].name


def fallback() -> Backend:
    """Returns the backend whose artifact in fp32 is the segment as it was captured.

    Raises:
        BackendError: there is not exactly one.
    """
    found = [compiler for compiler in _compilers().values() if compiler.is_fallback]
    if len(found) != 1:
        raise BackendError.make(
            "registry",
            "fallback",
            expected="one backend that stores the segment as it was captured",
            got=", ".join(compiler.name for compiler in found) or "none",
            remedy="Uninstall the packages that provide the others.",
        )
    return found[0]


def compiles_for(compiler: Backend, device: str) -> bool:
    """Returns true if a backend's artifacts can run on a kind of device: it compiles for it, or they run on any."""
    return device in compiler.devices or compiler.is_fallback


def available_for(device: str) -> list[str]:
    """Returns the backends that can compile and run here, and whose artifacts run on a kind of device."""
    compilers = _compilers()
    return [info.name for info in backends() if info.available and compiles_for(compilers[info.name], device)]


def cache_directories() -> list[str]:
    """Returns the directories that the installed backends keep in the cache beside the artifacts."""
    return sorted({name for compiler in _compilers().values() for name in compiler.cache_directories})


def distributions() -> list[str]:
    """Returns the packages that the installed backends need, as pip names them, without versions."""
    texts = [text for compiler in _compilers().values() for text in compiler.vendor.requirements]
    return list(dict.fromkeys(re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in texts))


def vendor_libraries() -> dict[str, Path]:
    """Returns the vendors' libraries that are installed, by the environment variables with which users name others."""
    found: dict[str, Path] = {}
    for compiler in _compilers().values():
        for variable, pattern in compiler.vendor.libraries.items():
            package, _, inside = pattern.partition("/")
            spec = importlib.util.find_spec(package)
            places = (spec and spec.submodule_search_locations) or ()
            for path in sorted(path for place in places for path in Path(place).glob(inside)):
                found[variable] = path
    return found


def whole_graph(name: str) -> WholeGraph | None:
    """Returns what gives whole detectors to a backend's engine; None if it takes none or is not installed."""
    compilers = _compilers()
    return compilers[name].whole_graph() if name in compilers else None


def load_plugins() -> None:
    """Makes the plug-in directories of out-of-tree packages known to the native library."""
    _compilers()


def unavailable(name: str, reason: str) -> BackendError:
    """Returns the error for a backend that can't compile here."""
    return BackendError.make(
        name,
        "engine",
        expected="a backend whose compiler is installed",
        got=f"'{name}', which is not available: {reason}",
        remedy="Install it, or use another engine; `hybrid-rt doctor` lists what is installed.",
        code="engine-not-installed",
    )


def built_for_torch() -> str:
    """Returns the version of torch that the native library was compiled with."""
    version: str = _native.torch_version
    return version
