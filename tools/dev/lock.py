"""Writes constraints.txt: the versions of all packages that the environment of the tests has, for pip.

    python -m tools.dev.lock             # of this environment
    python -m tools.dev.lock --compare   # only says what differs here; tools/test --all does so

`PIP_CONSTRAINT=constraints.txt tools/setup --tests` installs these versions. Packages are those that pyproject.toml
asks for, with what they ask for in turn: whatever else was installed by hand is left out.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from .requirements import wanted

if sys.version_info >= (3, 11):
    import tomllib
else:  # pip brings it
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "constraints.txt"
EXTRAS = ("all", "ray")
WITHOUT_DEPENDENCIES = ("headers", "triton")
"""The groups that tools/setup installs with --no-deps."""


def direct(pyproject: dict[str, Any]) -> list[tuple[Requirement, bool]]:
    """Returns what pyproject.toml asks for, each with whether pip installs what that asks for in turn."""
    groups = pyproject["dependency-groups"]
    found = [(Requirement(text), True) for text in wanted(pyproject, EXTRAS)]
    for name in groups:
        found += [(Requirement(text), name not in WITHOUT_DEPENDENCIES) for text in _of_group(groups, name)]
    return [(requirement, follows) for requirement, follows in found if _applies(requirement, "")]


def _of_group(groups: dict[str, Any], name: str) -> Iterator[str]:
    for entry in groups[name]:
        if isinstance(entry, str):
            yield entry
        else:
            yield from _of_group(groups, entry["include-group"])


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def installed(pyproject: dict[str, Any]) -> dict[str, str]:
    """Returns the versions of what is asked for, directly or not, as far as this environment has it."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(requirement, follows) for requirement, follows in direct(pyproject)]
    while todo:
        requirement, follows = todo.pop()
        name = canonicalize_name(requirement.name)
        try:
            found = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:  # for another system, or not installed here
            continue
        versions[name] = Version(found.version).public
        for extra in ("", *requirement.extras) if follows else ():
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            inner = map(Requirement, found.requires or ())
            todo += [(each, True) for each in inner if _applies(each, extra)]
    return versions


def read(path: Path) -> dict[str, str]:
    """Returns the versions of a file of constraints."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def text_of(versions: dict[str, str]) -> str:
    """Returns the file of constraints."""
    head = (
        "# The packages that the tests ran with, written by `python -m tools.dev.lock`: "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}.\n"
        "# PIP_CONSTRAINT=constraints.txt tools/setup --tests\n"
    )
    return head + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def differences(locked: dict[str, str], here: dict[str, str]) -> list[str]:
    """Returns a line per package of another version, or of one side only."""
    return [
        f"{name}: {locked.get(name, 'none')} in {LOCK.name}, {here.get(name, 'none')} here"
        for name in sorted(locked | here)
        if locked.get(name) != here.get(name)
    ]


def main() -> None:
    """Writes the file, or compares it."""
    parser = argparse.ArgumentParser(prog="python -m tools.dev.lock", description=__doc__)
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args()
    here = installed(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    if not options.compare:
        LOCK.write_text(text_of(here), encoding="utf-8")
        return
    lines = differences(read(LOCK), here)
    print(*lines, sep="\n", end="\n" if lines else "")
    print(f"{LOCK.name}: {len(here)} packages here, {len(lines)} differ", file=sys.stderr)


if __name__ == "__main__":
    main()
