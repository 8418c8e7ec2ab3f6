"""Checks constraints.txt, the versions that the tests ran with, against pyproject.toml, not against a registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.paths import ROOT
from helpers.pyproject import read_pyproject
from tools.dev import lock

REQUIREMENTS = [requirement for requirement, _ in lock.direct(read_pyproject(ROOT))]
REMEDY = "Run `python -m tools.dev.lock` in the environment that the tests ran in."


def test_every_requirement_is_locked_to_a_version_that_it_accepts() -> None:
    locked = lock.read(lock.LOCK)
    assert len(REQUIREMENTS) > 40
    for requirement in REQUIREMENTS:
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name}: expected it in constraints.txt, got none. {REMEDY}"
        assert requirement.specifier.contains(locked[name], prereleases=True), (
            f"{name}: expected {requirement.specifier} in constraints.txt, got {locked[name]}. {REMEDY}"
        )


def test_unneeded_packages_are_not_locked() -> None:
    """An environment newer than the file has other versions, but the names that they require rarely change."""
    locked, here = lock.read(lock.LOCK), lock.installed(read_pyproject(ROOT))
    same = {name for name in here if locked.get(name) == here[name]}
    if not {canonicalize_name(requirement.name) for requirement in REQUIREMENTS} <= same:
        pytest.skip("this environment has other versions of direct requirements than constraints.txt")
    assert set(locked) == set(here), f"{lock.differences(locked, here)}. {REMEDY}"


def test_the_file_is_what_the_tool_writes(tmp_path: Path) -> None:
    locked = lock.read(lock.LOCK)
    path = tmp_path / "constraints.txt"
    path.write_text(lock.text_of(locked))
    assert lock.read(path) == locked
    assert path.read_text().splitlines()[2:] == lock.LOCK.read_text().splitlines()[2:]


def test_differences_are_reported_in_both_directions() -> None:
    lines = lock.differences({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"})
    assert lines == [
        "b: 1 in constraints.txt, 2 here",
        "c: 1 in constraints.txt, none here",
        "d: none in constraints.txt, 1 here",
    ]


def test_locked_packages_follow_from_the_extras() -> None:
    """A manually installed package is left out; one that another package requires is not."""
    found = lock.installed({"build-system": {"requires": ["jinja2"]}, "project": {
        "name": "x", "dependencies": [], "optional-dependencies": {"all": [], "ray": []}},
        "dependency-groups": {"headers": ["torch"], "test": ["no-such-package-anywhere"]}})  # fmt: skip
    assert set(found) == {"jinja2", "markupsafe", "torch"}  # headers come without their requirements


def test_every_requirement_of_users_has_an_upper_bound() -> None:
    """Checks requirements at run time and for builds, so that untested versions are not installed automatically."""
    pyproject = read_pyproject(ROOT)
    project = pyproject["project"]
    texts = [*project["dependencies"], *pyproject["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        texts += extra
    found = [Requirement(text) for text in texts if not text.startswith("hybrid_rt[")]
    assert len(found) > 20
    assert not [str(each) for each in found if not {"<", "<=", "=="} & {part.operator for part in each.specifier}]
