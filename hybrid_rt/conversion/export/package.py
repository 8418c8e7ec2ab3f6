"""Writes a directory that runs bundles without Python: programs, bundles, and exactly the libraries that they need.

The libraries keep their layout in site-packages, because ours and the vendors' find each other by relative paths.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import tarfile
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2

from ...backends import registry
from ...common.atomic_files import TEMPORARY_PREFIX, named_if_refused
from ...common.errors import OptionError
from ...common.version import __version__
from .package_contents import LIBTORCH, PROGRAMS, Item, Model, chosen_backends, collect, models_of
from .sbom import Part, bill, parts_of_files
from .shared_libraries import Closure

FORMAT_VERSION = 2
MANIFEST = "package.json"
BILL = "sbom.cdx.json"
TORCH = ("include", "external")

_SCOPE = "package"
_OWN = ("bin/", "lib/hybrid_rt/")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """Result of :func:`package`; ``manifest`` is the content of the directory's package.json."""

    directory: Path
    archive: Path | None
    manifest: dict[str, Any]


def package(
    bundles: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    backends: Sequence[str] | None = None,
    torch: str = "include",
    archive: bool = False,
    overwrite: bool = False,
) -> Package:
    """Writes a directory that runs bundles on the CPU of a Linux machine with this architecture and a recent glibc.

    The directory appears whole or not at all.

    Args:
        bundles: the `.pt` files; a model's name is the file's name without its suffix.
        output: the directory.
        backends: the backends whose plug-ins and libraries are included. None: all that can run here and that a bundle
            has a variant for CPUs of.
        torch: "include" copies libtorch. "external" leaves it out, and the target sets HYBRID_RT_TORCH to its
            directory.
        archive: also write ``output``.tar, whose bytes depend only on the files in it.
        overwrite: replace an existing package and its archive.

    Returns:
        The path of the package, and its content.

    Raises:
        BundleError: A bundle is missing or altered, or the directory can't be written.
        BackendError: A backend, library or program is not installed.
        OptionError: No bundle has a variant of a backend, two bundles have the same name, ``output`` exists and is not
            a package or may not be replaced, or pyelftools is not installed.
    """
    if torch not in TORCH:
        raise OptionError.make(_SCOPE, "torch", expected=f"one of {', '.join(TORCH)}", got=f"{torch!r}")
    directory = Path(output).absolute()
    tar = directory.with_name(f"{directory.name}.tar") if archive else None
    _check_output(directory, tar, overwrite)
    models = models_of(bundles)
    chosen, left_out = chosen_backends(models, backends)
    items, closure = collect(models, chosen, torch == "external")
    parts = _add_licences(items)
    facts = _facts(models, chosen, left_out, closure, torch == "external")
    scripts = _scripts(models, facts, items, named=tuple(chosen) if backends is not None else ())
    with (
        named_if_refused(_SCOPE, directory, "to write the directory"),
        tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=directory.parent) as temporary,
    ):
        made = Path(temporary) / directory.name
        manifest = _write(made, items, scripts, facts, parts)
        made_tar = _archive(made) if tar is not None else None
        _move(made, directory, Path(temporary) / "old")
        if tar is not None and made_tar is not None:
            made_tar.replace(tar)
    return Package(directory, tar, manifest)


def _check_output(directory: Path, tar: Path | None, overwrite: bool) -> None:
    if not directory.parent.is_dir():
        raise OptionError.make(
            _SCOPE, str(directory), expected="a path in an existing directory", got=f"no directory {directory.parent}"
        )
    is_empty = directory.is_dir() and not any(directory.iterdir())
    if directory.exists() and not is_empty and not (overwrite and _is_package(directory)):
        raise OptionError.make(
            _SCOPE,
            str(directory),
            expected="a new path or an empty directory",
            got="a package" if _is_package(directory) else "something else",
            remedy="Pass --overwrite to replace it." if _is_package(directory) else "Pass another directory.",
        )
    if tar is not None and tar.exists() and not (overwrite and tar.is_file()):
        raise OptionError.make(
            _SCOPE, str(tar), expected="a new file", got="an existing one", remedy="Pass --overwrite to replace it."
        )


def _is_package(directory: Path) -> bool:
    try:
        return "package_format_version" in json.loads((directory / MANIFEST).read_text())
    except (OSError, ValueError, TypeError):
        return False


def _facts(
    models: Sequence[Model],
    chosen: Mapping[str, str],
    left_out: Mapping[str, str],
    closure: Closure,
    external_torch: bool,
) -> dict[str, Any]:
    """Returns the content of package.json without the list of files."""
    torch = registry.built_for_torch()
    glibc = ".".join(map(str, max(elf.glibc for elf in closure.files.values())))
    external: list[dict[str, Any]] = [{"name": "glibc", "version": f">={glibc}", "libraries": sorted(closure.glibc)}]
    if external_torch:
        linked = {name for elf in closure.files.values() for name in elf.needed if LIBTORCH.match(name)}
        external.append(
            {"name": "libtorch", "version": torch, "variable": "HYBRID_RT_TORCH", "libraries": sorted(linked)}
        )
    if closure.driver:
        external.append({"name": "NVIDIA's driver", "libraries": sorted(closure.driver)})
    return {
        "package_format_version": FORMAT_VERSION,
        "versions": {"hybrid_rt": __version__, "torch": torch},
        "machine": platform.machine(),
        "glibc": glibc,
        "backends": dict(chosen),
        "left_out": dict(left_out),
        "models": [
            {"name": model.path.stem, "file": f"models/{model.path.name}", "engines": dict(model.engines)}
            for model in models
        ],
        "external": external,
    }


def _scripts(
    models: Sequence[Model], facts: Mapping[str, Any], items: Mapping[str, Item], named: Sequence[str]
) -> dict[str, str]:
    """Returns the texts of the start scripts, by file name."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=False,  # a shell script: what comes from outside is quoted
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = shlex.quote
    template = environment.get_template("start.sh.jinja")
    plugins = {str(PurePosixPath(place).parent) for place in items if "/libhybrid_rt_" in place}
    names = [model.path.stem for model in models]
    return {
        script: template.render(
            program=name,
            external_torch=any(entry["name"] == "libtorch" for entry in facts["external"]),
            torch_version=facts["versions"]["torch"],
            backends=named,
            plugin_directories=sorted(plugins - {"lib/hybrid_rt/lib"}),
            takes_one_model=script == "detect",
            only_model=models[0].path.name if len(models) == 1 else "",
            names=names,
        )
        for script, name in PROGRAMS.items()
    }


def _add_licences(items: dict[str, Item]) -> list[Part]:
    """Adds the licences of the packages that the files come from; returns the packages."""
    copied = {place: item.source for place, item in items.items() if not place.startswith("models/")}
    parts, unknown = parts_of_files(copied.values())
    for place, source in copied.items():
        if source.resolve() in unknown and not place.startswith(_OWN):
            warnings.warn(f"{source} belongs to no package: its licence is not included", stacklevel=3)
    if all(part.name != "hybrid_rt" for part in parts):
        parts.insert(0, Part.of_distribution(importlib.metadata.distribution("hybrid_rt")))
    for part in parts:
        for licence in part.licences:
            # torch has a hundred files of the same name in different directories.
            place = licence.as_posix().rpartition(".dist-info/")[2] if part.kind == "pypi" else licence.name
            items.setdefault(f"{part.directory}/{place}", Item(licence))
    return parts


def _write(
    directory: Path,
    items: Mapping[str, Item],
    scripts: Mapping[str, str],
    facts: Mapping[str, Any],
    parts: Sequence[Part],
) -> dict[str, Any]:
    """Writes all files and the manifest; returns it."""
    files = []
    for place, item in sorted(items.items()):
        target = directory / place
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, size = _copy(item.source, target)
        target.chmod(0o755 if item.executable else 0o644)
        files.append({"path": place, "size": size, "sha256": digest, "needed_by": item.needed_by})
    for name, text in scripts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
        files.append({"path": name, "size": len(text.encode()), "sha256": _sha256(text), "needed_by": []})
    text = bill(directory.name, parts, {str(file["path"]): str(file["sha256"]) for file in files})
    (directory / BILL).write_text(text)
    (directory / BILL).chmod(0o644)
    files.append({"path": BILL, "size": len(text.encode()), "sha256": _sha256(text), "needed_by": []})
    manifest = {**facts, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    (directory / MANIFEST).chmod(0o644)
    for made in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        made.chmod(0o755)  # a service's user reads it, whatever the umask of who made it
    return manifest


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _copy(source: Path, target: Path) -> tuple[str, int]:
    """Returns the digest and the size."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(_CHUNK):
            digest.update(chunk)
            size += writing.write(chunk)
    return digest.hexdigest(), size


def _archive(directory: Path) -> Path:
    """Writes a reproducible tar beside the directory: sorted, without times, owners or the umask's effect."""
    path = directory.with_name(f"{directory.name}.tar")

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in sorted([directory, *directory.rglob("*")]):
            tar.add(file, str(file.relative_to(directory.parent)), recursive=False, filter=plain)
    return path


def _move(made: Path, directory: Path, aside: Path) -> None:
    """Moves the new directory to its final path, and the old one to ``aside``."""
    if directory.exists() and any(directory.iterdir()):
        directory.replace(aside)
        try:
            made.replace(directory)
        except OSError:
            aside.replace(directory)
            raise
    else:
        made.replace(directory)
