"""Determines the content of a package: backends of the bundles, and files that programs and backends need."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ... import _native
from ...backends import registry
from ...bundle import archive
from ...common.errors import BackendError, OptionError
from ...common.executables import program
from . import shared_libraries
from .extract import extract
from .shared_libraries import Closure, canonical, is_elf

PROGRAMS = {"serve": "hybrid-rt-serve", "detect": "hybrid-rt-detect"}
"""The programs by the names of their start scripts."""

LIBTORCH = re.compile(r"lib(torch|c10|shm|caffe2)\w*\.so")
"""Pattern of the names of torch's own libraries."""

_SCOPE = "package"
_SYSTEM = "lib/system"


@dataclass(frozen=True)
class Model:
    """A bundle and the backends of its variants."""

    path: Path
    engines: Mapping[str, Sequence[str]]
    """Backends of the variants for CPUs in the file's order, by engine."""

    elsewhere: frozenset[str]
    """Backends of variants for other devices."""


@dataclass
class Item:
    """A file of the package, with its source and the reason why it is needed."""

    source: Path
    needed_by: list[str] = field(default_factory=list)
    executable: bool = False


def models_of(bundles: Sequence[str | os.PathLike[str]]) -> list[Model]:
    """Reads the bundles, and compares every record with its digest.

    Raises:
        BundleError: A bundle is missing or altered.
        OptionError: There is no bundle, or two have the same name.
    """
    if not bundles:
        raise OptionError.make(_SCOPE, "bundles", expected="one or more .pt files", got="none")
    models: dict[str, Model] = {}
    for path in map(Path, bundles):
        manifest = archive.read_manifest(path)
        archive.check(path)
        if path.suffix != ".pt":
            raise OptionError.make(
                _SCOPE, str(path), expected="a name that ends in .pt", got=path.name, remedy="Rename the file."
            )
        if path.stem in models:
            raise OptionError.make(
                _SCOPE,
                f"model '{path.stem}'",
                expected="one bundle of that name",
                got=f"{models[path.stem].path} and {path}",
                remedy="Rename one: a model's name is that of its file.",
            )
        of_cpu = {
            engine.name: list(dict.fromkeys(each.backend for each in engine.variants if each.device == "cpu"))
            for engine in manifest.engines
        }
        elsewhere = {
            variant.backend for engine in manifest.engines for variant in engine.variants if variant.device != "cpu"
        }
        models[path.stem] = Model(path, of_cpu, frozenset(elsewhere))
    return list(models.values())


def chosen_backends(models: Sequence[Model], named: Sequence[str] | None) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the chosen backends with their versions, and the bundles' other backends with the reasons why not."""
    present = list(dict.fromkeys(name for model in models for names in model.engines.values() for name in names))
    elsewhere = dict.fromkeys(
        sorted({name for model in models for name in model.elsewhere} - {*present}),
        "its variants are not for CPUs, and a package is for CPUs only",
    )
    there = {info.name: info for info in registry.backends()}
    reasons = {
        name: there[name].run_reason if name in there else f"its plug-in libhybrid_rt_{name}.so is not installed"
        for name in present
    } | elsewhere
    for name in named if named is not None else ():
        if name not in reasons:
            raise OptionError.make(
                _SCOPE,
                "backend",
                expected=f"one of {', '.join(reasons)}, for which the bundles have variants",
                got=f"'{name}'",
                remedy="`hybrid-rt add-variant` adds one to a bundle.",
            )
        if reasons[name]:
            raise BackendError.make(
                name,
                "package",
                expected="a backend that can run here, so that its libraries can be included",
                got=reasons[name],
                remedy="Omit it, or fix that; `hybrid-rt doctor` lists what is installed.",
            )
    chosen = list(dict.fromkeys(named)) if named is not None else [name for name in present if not reasons[name]]
    for model in models:
        for engine, names in model.engines.items():
            if not {*names} & {*chosen}:
                raise BackendError.make(
                    _SCOPE,
                    f"{model.path}, engine '{engine}'",
                    expected=f"a variant for CPUs of {', '.join(chosen) or 'a backend that can run here'}",
                    got=", ".join(f"{name} ({reasons[name] or 'not chosen'})" for name in names) or "none",
                    remedy="Choose one of its backends too, or add a variant: `hybrid-rt add-variant`.",
                )
    versions = {name: there[name].version for name in chosen}
    return versions, {name: reason or "not chosen" for name, reason in reasons.items() if name not in versions}


def _site(name: str) -> Path:
    """Returns the directory that a Python package is installed in."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).resolve().parents[1]


def _opened(chosen: Iterable[str]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Returns libraries and other files that the backends open at run time, each with its backend."""
    plugins = {info["name"]: Path(info["plugin"]) for info in _native.backends()}
    site = Path(_native.__file__).resolve().parents[1]
    opened: dict[Path, str] = {}
    data: dict[Path, str] = {}
    for name in chosen:
        opened[canonical(plugins[name])] = name
        vendor = registry.runtime_files(name)
        for pattern in (*vendor.libraries, *vendor.optional, *vendor.data):
            found = sorted(site.glob(pattern))
            if not found and pattern not in vendor.optional:
                raise BackendError.make(
                    name,
                    "package",
                    expected=f"{site / pattern}, which it needs to run",
                    got="no such file",
                    remedy="Install the vendor's Python package next to hybrid_rt, so that its libraries can be "
                    "included.",
                )
            kind = data if pattern in vendor.data else opened
            kind.update(dict.fromkeys(map(canonical, found), name))
    return opened, data


def collect(models: Sequence[Model], chosen: Iterable[str], external_torch: bool) -> tuple[dict[str, Item], Closure]:
    """Returns the files by their paths in the package, and the libraries that programs and backends are linked to."""
    programs = {canonical(Path(program(name, _SCOPE))): name for name in PROGRAMS.values()}
    opened, data = _opened(chosen)
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as temporary:
        compiled = _compiled(models, chosen, Path(temporary).resolve())
        closure = shared_libraries.closure(programs, [*opened, *compiled])
    kept = _without_libtorch(closure, [*programs, *opened, *compiled]) if external_torch else set(closure.files)
    sites = {Path(_native.__file__).resolve().parents[1], _site("torch")}
    places = {path: _place(path, sites) for path in closure.files}
    places |= {path: f"bin/{name}" for path, name in programs.items()}
    places |= {path: f"models/{model.path.name}" for path, model in compiled.items()}
    items: dict[str, Item] = {}
    for path in sorted(kept - {*compiled}, key=places.__getitem__):
        needed_by = [places[asking] for asking in closure.needed_by[path] if asking in kept]
        if path in opened:
            needed_by.append(f"backend {opened[path]}")
        if path in programs:
            needed_by += [script for script, name in PROGRAMS.items() if name == programs[path]]
        items.setdefault(places[path], Item(path, sorted(dict.fromkeys(needed_by)), executable=path in programs))
    for path in data:
        items[_place(path, sites)] = Item(path, [f"backend {data[path]}"])
    for model in models:
        items[f"models/{model.path.name}"] = Item(model.path)
        detached = model.path.with_name(f"{model.path.name}.sig")
        if detached.is_file():
            items[f"models/{detached.name}"] = Item(detached)
    closure.files = {path: closure.files[path] for path in kept}
    return items, closure


def _compiled(models: Sequence[Model], chosen: Iterable[str], directory: Path) -> dict[Path, Model]:
    """Writes artifacts that are shared libraries to files, because their dependencies are needed too."""
    found: dict[Path, Model] = {}
    for i, model in enumerate(models):
        present = {name for names in model.engines.values() for name in names}
        for name in chosen:
            if name in present and ".so" in registry.file_endings(name).values():
                files = extract(model.path, directory / str(i), backend=name)
                found.update(dict.fromkeys(filter(is_elf, files), model))
    return found


def _without_libtorch(closure: Closure, starts: Sequence[Path]) -> set[Path]:
    """Removes libtorch and the libraries that only libtorch needs."""
    external = {path for path in closure.files if LIBTORCH.match(path.name)}
    kept = set(starts)
    grown = True
    while grown:
        more = {path for path, askers in closure.needed_by.items() if {*askers} & kept} - external - kept
        grown = bool(more)
        kept |= more
    return kept


def _place(path: Path, sites: Iterable[Path]) -> str:
    site = next((site for site in sites if path.is_relative_to(site)), None)
    return f"{_SYSTEM}/{path.name}" if site is None else f"lib/{path.relative_to(site).as_posix()}"
