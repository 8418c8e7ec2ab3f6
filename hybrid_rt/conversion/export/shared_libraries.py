"""Reads the linked libraries of an ELF file and finds them as the dynamic linker does."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import BackendError, OptionError

_SCOPE = "package"

# Libraries that are not included. glibc only works with its own dynamic linker: with another version's linker, it
# crashes. NVIDIA's driver has to match the target's kernel.
_GLIBC = re.compile(
    r"ld-linux[\w-]*\.so\.\d|ld64\.so\.\d|linux-vdso\.so\.1|"
    r"lib(c|m|mvec|pthread|dl|rt|util|resolv|anl|nsl|thread_db|BrokenLocale|nss_\w+)\.so\.\d"
)
_DRIVER = re.compile(r"lib(cuda|nvcuvid|nvidia-[\w-]+)\.so(\.\d+)*")


@dataclass(frozen=True)
class Elf:
    """Dependencies of an ELF file; ``glibc`` is the newest glibc version that a symbol requires, e.g. (2, 34)."""

    needed: tuple[str, ...]
    glibc: tuple[int, ...]


@dataclass
class Closure:
    """Files and everything that they are linked to. In paths, links to directories are resolved, but not file names."""

    files: dict[Path, Elf] = field(default_factory=dict)
    needed_by: dict[Path, list[Path]] = field(default_factory=dict)
    """Files that are linked to each file; empty for a file that only the caller named."""

    glibc: set[str] = field(default_factory=set)
    """Names of the required libraries of glibc, which the target provides."""

    driver: set[str] = field(default_factory=set)
    """Names of the required libraries of NVIDIA's driver, which the target provides."""


def is_elf(path: Path) -> bool:
    """Returns true if the file begins with the ELF signature."""
    with path.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


def read_elf(path: Path) -> Elf:
    """Reads the dependencies of a file.

    Raises:
        OptionError: pyelftools is not installed.
        BackendError: The file is not an ELF file.
    """
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.dynamic import DynamicSection
        from elftools.elf.elffile import ELFFile
        from elftools.elf.gnuversions import GNUVerNeedSection
    except ImportError as error:
        raise OptionError.make(
            _SCOPE,
            "pyelftools",
            expected="the package that reads the libraries of programs",
            got=str(error),
            remedy="Install it: pip install 'hybrid_rt[package]'.",
        ) from error
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            dynamic = elf.get_section_by_name(".dynamic")
            tags: Any = dynamic.iter_tags("DT_NEEDED") if isinstance(dynamic, DynamicSection) else ()
            needed = tuple(tag.needed for tag in tags)
            versions = [
                version.name
                for section in elf.iter_sections()
                if isinstance(section, GNUVerNeedSection)
                for _, entries in section.iter_versions()
                for version in entries
            ]
            return Elf(needed, newest_glibc(versions))
    except (ELFError, OSError) as error:
        raise BackendError.make(
            _SCOPE,
            str(path),
            expected="a program or library (ELF)",
            got=str(error),
            remedy="Reinstall the package that contains it.",
        ) from error


def newest_glibc(versions: Iterable[str]) -> tuple[int, ...]:
    """Returns the newest glibc version among symbol versions: (2, 34) for "GLIBC_2.34"; () if there is none."""
    numbers = [tuple(map(int, name[6:].split("."))) for name in versions if re.fullmatch(r"GLIBC_\d+(\.\d+)*", name)]
    return max(numbers, default=())


def closure(programs: Iterable[Path], opened: Iterable[Path] = ()) -> Closure:
    """Returns the direct and indirect dependencies of programs and of the libraries that they open at run time.

    A library that a program is linked to is loaded before the program opens others. Opened libraries that need a
    library of the same name get that one, whatever their own search path contains.

    Raises:
        BackendError: A library is not found here.
        OptionError: pyelftools is not installed.
    """
    result = Closure()
    for program in map(canonical, programs):
        _add(result, program, _linked(program))
    loaded = {path.name: path for path in result.files}
    libraries = [canonical(path) for path in opened]
    for library in libraries:
        _add(result, library, {**_linked(library), **{path.name: path for path in libraries}, **loaded})
    return result


def _add(result: Closure, start: Path, places: Mapping[str, Path]) -> None:
    """Adds a file and everything that it is linked to; ``places``: paths of libraries by name."""
    waiting, seen = [start], {start}
    while waiting:
        asking = waiting.pop()
        if asking not in result.files:
            result.files[asking] = read_elf(asking)
        result.needed_by.setdefault(asking, [])
        for name in result.files[asking].needed:
            if _GLIBC.fullmatch(name):
                result.glibc.add(name)
                continue
            if _DRIVER.fullmatch(name):
                result.driver.add(name)
                continue
            path = places.get(name)
            if path is None:
                raise _not_found(name, asking)
            askers = result.needed_by.setdefault(path, [])
            if asking not in askers:
                askers.append(asking)
            if path not in seen:
                seen.add(path)
                waiting.append(path)


def _not_found(name: str, asking: Path) -> BackendError:
    return BackendError.make(
        _SCOPE,
        name,
        expected=f"the library that {asking} is linked to",
        got="none on the search path of the dynamic linker",
        remedy="Install the package that contains it, or omit the backend that needs it (--backend).",
    )


def _linked(path: Path) -> dict[str, Path]:
    """Returns the path of each linked library by name; omits those that the dynamic linker does not find."""
    environment = {**os.environ, "LC_ALL": "C"}
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run(["ldd", path], capture_output=True, text=True, check=False, env=environment)
    pairs = re.findall(r"^\s*(\S+) => (/.*) \(0x[0-9a-f]+\)$", done.stdout, re.MULTILINE)
    return {name: canonical(Path(place)) for name, place in pairs}


def canonical(path: Path) -> Path:
    """Resolves links to directories in a path, but keeps its file name."""
    return path.parent.resolve() / path.name
