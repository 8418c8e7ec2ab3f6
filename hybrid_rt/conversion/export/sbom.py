"""Writes a software bill of materials (CycloneDX 1.6), and finds the licences of copied files."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import Distribution
from pathlib import Path

from ...common.errors import OptionError
from ...common.version import __version__

_LICENCE = re.compile(r"(^|[-_./])(licen[cs]es?|copying|notices?|third.?party\w*|eula)([-_./]|$)", re.IGNORECASE)
"""Pattern of the names of licence files, and of directories that contain them."""

_DEBIAN_DOCS = Path("/usr/share/doc")
_NAMESPACE = uuid.UUID("6a5d3f4e-2f0b-5a52-9a7c-3f1d9d0f9b11")


@dataclass(frozen=True)
class Part:
    """A package whose files are copied, or that hybrid_rt requires.

    Attributes:
        name: name in its registry.
        version: installed version.
        kind: "pypi" or "deb".
        licence: licence as the package's metadata states it; empty if it does not.
        licences: paths of its licence files.
    """

    name: str
    version: str
    kind: str
    licence: str = ""
    licences: tuple[Path, ...] = ()

    @classmethod
    def of_distribution(cls, distribution: Distribution) -> Part:
        """Returns the part for an installed Python package."""
        facts = distribution.metadata
        (expression,) = (facts.get_all("License-Expression") or [""])[:1]
        (stated,) = (facts.get_all("License") or [""])[:1]
        named = expression or _classified(facts.get_all("Classifier") or [])
        files = [
            Path(str(distribution.locate_file(file)))
            for file in distribution.files or []
            if ".dist-info" in file.parts[0] and _LICENCE.search(str(file).partition("/")[2])
        ]
        return cls(
            facts["Name"],
            distribution.version,
            "pypi",
            named or (stated.strip() if len(stated) < 80 else ""),
            tuple(sorted(file for file in files if file.is_file())),
        )

    @property
    def directory(self) -> str:
        """Returns the directory of its licences in a package."""
        return f"licenses/{self.name}-{self.version}".replace(":", "_")


def _classified(classifiers: Iterable[str]) -> str:
    names = [entry.rpartition(" :: ")[2] for entry in classifiers if entry.startswith("License :: ")]
    return " AND ".join(names) if len(names) == 1 else ""


def parts_of_files(files: Iterable[Path]) -> tuple[list[Part], list[Path]]:
    """Returns the packages that files come from, and the files that no package owns."""
    given = list(files)
    wanted = {path.resolve() for path in given}
    # Resolving the paths of all installed files takes ten seconds, so only those of the same name are.
    names = {path.name for path in given} | {path.name for path in wanted}
    parts: dict[str, Part] = {}
    owned: set[Path] = set()
    for distribution in importlib.metadata.distributions():
        candidates = [file for file in distribution.files or [] if file.name in names]
        own = {Path(str(distribution.locate_file(file))).resolve() for file in candidates} & wanted
        if own:
            part = Part.of_distribution(distribution)
            parts.setdefault(part.name, part)
            owned |= own
    unknown = []
    for path in sorted(wanted - owned):
        debian = _debian_part(path)
        if debian is None:
            unknown.append(path)
        else:
            parts.setdefault(debian.name, debian)
    return sorted(parts.values(), key=lambda part: part.name.lower()), unknown


def _debian_part(path: Path) -> Part | None:
    """Returns the Debian package that a file comes from, also where /lib is a link to /usr/lib."""
    if shutil.which("dpkg-query") is None:
        return None
    for place in (str(path), str(path).removeprefix("/usr")):
        done = subprocess.run(["dpkg-query", "-S", place], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            name = done.stdout.split("\n")[0].partition(":")[0]
            shown = subprocess.run(
                ["dpkg-query", "-W", "-f", "${Version}\n", name], capture_output=True, text=True, check=False
            )
            copyright_file = _DEBIAN_DOCS / name / "copyright"
            licences = (copyright_file,) if copyright_file.is_file() else ()
            return Part(name, shown.stdout.split("\n")[0], "deb", licences=licences)
    return None


def parts_of_requirements(name: str = "hybrid_rt", extras: Sequence[str] = ()) -> list[Part]:
    """Returns a distribution and everything that it requires in this environment, each once.

    Raises:
        OptionError: The package ``packaging`` is not installed.
    """
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError as error:
        raise _not_installed("packaging") from error
    found: dict[str, Part] = {}
    seen: set[tuple[str, str]] = set()
    left: list[tuple[str, str]] = [(name, extra) for extra in ("", *extras)]
    while left:
        entry = left.pop()
        if entry in seen:
            continue
        seen.add(entry)
        try:
            distribution = importlib.metadata.distribution(entry[0])
        except importlib.metadata.PackageNotFoundError:
            continue  # of a marker that holds elsewhere, or an extra that is not installed
        found.setdefault(canonicalize_name(entry[0]), Part.of_distribution(distribution))
        for text in distribution.requires or []:
            required = Requirement(text)
            if required.marker is None or required.marker.evaluate({"extra": entry[1]}):
                left += [(required.name, extra) for extra in ("", *required.extras)]
    return sorted(found.values(), key=lambda part: part.name.lower())


def bill(subject: str, parts: Sequence[Part], files: Mapping[str, str] | None = None) -> str:
    """Returns the bill as CycloneDX JSON. The same parts and files give the same text.

    Args:
        subject: name of the product that the bill is for.
        parts: packages that the product consists of.
        files: SHA-256 of each copied file, by its path.

    Raises:
        OptionError: cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.model.license import DisjunctiveLicense
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ImportError as error:
        raise _not_installed("cyclonedx-python-lib") from error
    bom = Bom()
    root = Component(name=subject, version=__version__, type=ComponentType.APPLICATION, bom_ref=f"subject:{subject}")
    bom.metadata.component = root
    for part in parts:
        url = PackageURL(part.kind, "debian" if part.kind == "deb" else None, part.name, part.version)
        licences = [DisjunctiveLicense(name=part.licence)] if part.licence else None
        bom.components.add(
            Component(
                name=part.name, version=part.version, licenses=licences, purl=url, bom_ref=f"{part.kind}:{part.name}"
            )
        )
    for place, digest in (files or {}).items():
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
        bom.components.add(Component(name=place, type=ComponentType.FILE, hashes=hashes, bom_ref=f"file:{place}"))
    bom.register_dependency(root, bom.components)
    # No time and no random serial number, so that the same files give the same bill.
    bom.metadata.timestamp = datetime.fromtimestamp(0, timezone.utc)
    bom.serial_number = uuid.uuid5(
        _NAMESPACE,
        repr((subject, __version__, [(part.name, part.version) for part in parts], sorted((files or {}).items()))),
    )
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _not_installed(name: str) -> OptionError:
    return OptionError.make(
        "sbom",
        name,
        expected="it to be installed, as it writes the bill of materials",
        got="no such package",
        remedy="pip install 'hybrid_rt[package]'.",
    )
