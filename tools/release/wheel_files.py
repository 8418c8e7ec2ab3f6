"""Edits of an unpacked wheel: requirements, programs, licences and the bill of materials."""

from __future__ import annotations

import email
import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from email.generator import BytesGenerator
from email.message import Message
from importlib import metadata
from pathlib import Path

from hybrid_rt.common.errors import BackendError, OptionError
from hybrid_rt.conversion.export.sbom import Part, bill
from hybrid_rt.conversion.export.shared_libraries import is_elf, read_elf
from tools.release.commands import succeed

SCOPE = "wheel"
VENDORED = "hybrid_rt.libs"
"""Directory to which auditwheel copies Debian's libraries."""

ZLIB = ("zlib1g", "libz.so.1")
"""Package and library that auditwheel leaves to the system, but that an interpreter may contain in another version."""

COMPILED_IN = {"deb": ("libcli11-dev", "libstb-dev"), "pypi": ("nlohmann-json",)}
"""Packages of headers that are compiled into our binaries. Their licences require a notice in copies."""

_PROGRAM = Path(__file__).with_name("program.py.in")
_PROGRAM_RPATH = "$ORIGIN/../lib:$ORIGIN/../../torch/lib"
_DEBIAN_DOCS = Path("/usr/share/doc")


def info_directory(directory: Path) -> Path:
    """Returns the metadata directory of an unpacked wheel."""
    [found] = directory.glob("*.dist-info")
    return found


def _read(directory: Path) -> tuple[Path, Message]:
    path = info_directory(directory) / "METADATA"
    return path, email.message_from_bytes(path.read_bytes())


def _write(path: Path, message: Message) -> None:
    text = io.BytesIO()
    BytesGenerator(text, mangle_from_=False, maxheaderlen=0).flatten(message)
    path.write_bytes(text.getvalue())


def pin_requirements(directory: Path, pins: Mapping[str, str]) -> None:
    """Narrows unconditional requirements to the versions that the binaries were built for.

    Args:
        directory: The unpacked wheel.
        pins: Version range per distribution, such as ``{"torch": "==2.14.*"}``.

    Raises:
        OptionError: The wheel does not require one of them.
    """
    path, message = _read(directory)
    requirements = message.get_all("Requires-Dist", [])
    del message["Requires-Dist"]
    left = dict(pins)
    for requirement in requirements:
        name = requirement.split(";")[0].rstrip("<>=!~,.0123456789 ")
        message["Requires-Dist"] = name + left.pop(name) if name in left and ";" not in requirement else requirement
    if left:
        raise OptionError.make(SCOPE, str(path), expected=f"Requires-Dist of {', '.join(left)}", got=str(requirements))
    _write(path, message)


def move_programs(directory: Path, torch: str) -> None:
    """Moves the programs into the package and leaves scripts that start them.

    Installers choose the position of the scripts' directory relative to site-packages, so a program there would have no
    relative path to its libraries.

    Args:
        directory: The unpacked wheel.
        torch: "MAJOR.MINOR" of the torch that the programs were built for.
    """
    [scripts] = directory.glob("*.data/scripts")
    target = directory / "hybrid_rt" / "bin"
    target.mkdir()
    for script in sorted(filter(is_elf, scripts.iterdir())):
        program = target / script.name
        shutil.move(script, program)
        succeed("patchelf", "--set-rpath", _PROGRAM_RPATH, program)
        script.write_text(_PROGRAM.read_text().replace("@NAME@", script.name).replace("@TORCH@", torch))
        script.chmod(0o755)


def add_zlib(directory: Path) -> None:
    """Copies zlib next to the libraries that auditwheel copied, and sets the search path of those that need it."""
    package, name = ZLIB
    [source] = [line for line in succeed("dpkg-query", "-L", package).splitlines() if line.endswith(f"/{name}")]
    for library in sorted((directory / VENDORED).iterdir()):
        if name in read_elf(library).needed:
            succeed("patchelf", "--set-rpath", "$ORIGIN", library)
    shutil.copyfile(source, directory / VENDORED / name)
    (directory / VENDORED / name).chmod(0o755)


def check_library_paths(directory: Path) -> None:
    """Checks that no binary searches a directory of the machine that it was built on.

    Raises:
        BackendError: A binary does.
    """
    for path in sorted(filter(is_elf, (path for path in directory.rglob("*") if path.is_file()))):
        paths = succeed("patchelf", "--print-rpath", path).strip()
        outside = [entry for entry in paths.split(":") if entry and not entry.startswith("$ORIGIN")]
        if outside:
            raise BackendError.make(
                SCOPE,
                path.relative_to(directory).as_posix(),
                expected="library directories relative to the file ($ORIGIN)",
                got=", ".join(outside),
            )


def add_licences(directory: Path) -> list[Part]:
    """Adds the licences of the packages that copied libraries and compiled headers come from.

    Returns:
        The packages, hybrid_rt first.

    Raises:
        BackendError: A library belongs to no package, or a package has no licence on this machine.
    """
    info = info_directory(directory)
    own = Part("hybrid_rt", info.name.partition("-")[2].removesuffix(".dist-info"), "pypi", "BSD-3-Clause")
    parts = [*_grafted(directory, info), *map(_installed, COMPILED_IN["deb"])]
    parts += [Part.of_distribution(metadata.distribution(name)) for name in COMPILED_IN["pypi"]]
    parts = sorted({part.name: part for part in parts}.values(), key=lambda part: part.name.lower())
    path, message = _read(directory)
    for part in parts:
        if not part.licences:
            raise BackendError.make(
                SCOPE,
                f"{part.name} {part.version}",
                expected="a licence that travels with its code",
                got="none on this machine",
                remedy=f"Install {part.name} with its documentation (/usr/share/doc).",
            )
        for licence in part.licences:
            place = Path("vendored", f"{part.name}-{part.version}".replace(":", "_"), licence.name)
            (info / "licenses" / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(licence, info / "licenses" / place)
            message["License-File"] = place.as_posix()
    _write(path, message)
    return [own, *parts]


def _grafted(directory: Path, info: Path) -> list[Part]:
    """Returns the Debian packages of the copied libraries, from the list that auditwheel makes."""
    package, zlib = ZLIB
    copied = sorted(path.name for path in (directory / VENDORED).iterdir() if path.name != zlib)
    listed = json.loads((info / "sboms" / "auditwheel.cdx.json").read_text())["components"][1:]
    if len(listed) != len(copied):
        raise BackendError.make(
            SCOPE,
            VENDORED,
            expected="a Debian package for each copied library",
            got=f"{', '.join(component['name'] for component in listed)} for {', '.join(copied)}",
            remedy="Install the libraries from packages, so that their licences are known.",
        )
    return [_debian(component["name"], component["version"]) for component in listed] + [_installed(package)]


def _debian(name: str, version: str) -> Part:
    licence = _DEBIAN_DOCS / name / "copyright"
    return Part(name, version, "deb", licences=(licence,) if licence.is_file() else ())


def _installed(name: str) -> Part:
    return _debian(name, succeed("dpkg-query", "-W", "-f", "${Version}", name))


def write_bill(directory: Path, parts: Sequence[Part]) -> None:
    """Writes the wheel's bill of materials (CycloneDX), with the digest of each file."""
    info = info_directory(directory)
    # RECORD is derived from the other files. auditwheel's own list has no digests for its copies; ours includes all of
    # its facts.
    (info / "sboms" / "auditwheel.cdx.json").unlink()
    files = {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != info / "RECORD"
    }
    (info / "sboms" / "hybrid_rt.cdx.json").write_text(bill(info.name.removesuffix(".dist-info"), parts, files))
