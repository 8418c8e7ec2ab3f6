"""Compares each backend's description of itself with every place that uses it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from helpers.paths import ROOT
from helpers.pyproject import read_pyproject
from hybrid_rt import OptionError, _native
from hybrid_rt.backends import Artifact, Availability, Backend, CompileContext, Program, WholeGraph, registry
from hybrid_rt.backends.selection import DEVICES, engines_for
from hybrid_rt.common.specs import PRECISIONS, REFERENCE_PRECISION
from tools.dev import requirements

OWN = [name for name in registry.names() if type(registry.backend(name)).__module__.startswith("hybrid_rt.backends.")]
"""Names of the backends in this repository."""

PROJECT = read_pyproject(ROOT)
EXTRAS = PROJECT["project"]["optional-dependencies"]
OF_NO_BACKEND = {"coco", "package", "ray", "all", "int8"}


def test_the_backends_of_this_repository_are_found() -> None:
    assert len(OWN) >= 6


# Requirements


@pytest.mark.parametrize("name", OWN)
def test_a_backends_extra_is_what_it_says_it_needs(name: str) -> None:
    needed = set(registry.backend(name).vendor.requirements) - set(PROJECT["project"]["dependencies"])
    assert set(EXTRAS.get(name, [])) == needed


def test_every_extra_belongs_to_a_backend_or_is_listed() -> None:
    assert set(EXTRAS) - set(OWN) == OF_NO_BACKEND
    (everything,) = EXTRAS["all"]
    inside = set(re.fullmatch(r"hybrid_rt\[(.*)\]", everything)[1].split(","))
    assert inside == set(EXTRAS) - {"all", "ray"}


def test_the_build_takes_the_versions_that_run() -> None:
    """A plug-in checks for the version of the headers that it was compiled with."""
    built_with = [text for text in PROJECT["build-system"]["requires"] if text.startswith("openvino")]
    assert built_with == [text for text in PROJECT["project"]["dependencies"] if text.startswith("openvino")]


@pytest.mark.parametrize("name", OWN)
def test_every_requirement_has_both_bounds(name: str) -> None:
    for text in registry.backend(name).vendor.requirements:
        assert re.fullmatch(r"[\w.-]+>=[\d.]+,<[\d.]+", text), text


def test_the_requirements_of_one_package_are_the_same_everywhere() -> None:
    texts = {text for name in OWN for text in registry.backend(name).vendor.requirements}
    assert sorted(registry.distributions()) == sorted(re.split(">=", text)[0] for text in texts)


def test_groups_repeat_no_extra() -> None:
    """tools/setup installs the extras too, and a second list would become outdated."""
    listed = {package(text) for texts in EXTRAS.values() for text in texts} - {"pycocotools"}
    for group, entries in PROJECT["dependency-groups"].items():
        assert not {package(entry) for entry in entries if isinstance(entry, str)} & listed, group


def package(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]


def test_setup_keeps_no_list_of_packages() -> None:
    """Everything comes from pyproject.toml except pip and torch, which is named for its progress line."""
    text = (ROOT / "tools" / "setup").read_text()
    installed = re.findall(r'bin/pip" install (.*)', text)
    assert len(installed) >= 5
    words = {word for line in installed for word in re.sub(r"--editable .*", "", line).split()}
    assert {word for word in words if not re.match(r'-|"\$', word)} == {'"pip>=25.1"', "torch", "torchvision"}
    groups = {*re.findall(r"--group=(\w+)", text)}
    groups |= {name for listed in re.findall(r"groups\+?=\((.*?)\)", text) for name in listed.split()}
    for name in list(groups):
        entries = PROJECT["dependency-groups"][name]
        groups |= {entry["include-group"] for entry in entries if isinstance(entry, dict)}
    assert groups == set(PROJECT["dependency-groups"])


def test_the_requirements_of_an_extra_of_extras_are_those_of_its_parts() -> None:
    found = requirements.wanted(PROJECT, ["all"])
    assert found[: len(PROJECT["build-system"]["requires"])] == PROJECT["build-system"]["requires"]
    expected = {text for extra in set(EXTRAS) - {"all", "ray"} for text in EXTRAS[extra]}
    assert expected | set(PROJECT["project"]["dependencies"]) <= set(found)
    assert len(set(found)) == len(found)
    assert not any(text.startswith("hybrid_rt") for text in found)


# Choices


@pytest.mark.parametrize("device", DEVICES)
def test_auto_stands_for_an_own_backend_that_compiles_for_the_device(device: str) -> None:
    (name,) = engines_for(device)
    assert device in registry.backend(name).devices
    ranks = [registry.backend(other).auto_for[device] for other in OWN if device in registry.backend(other).auto_for]
    assert len(set(ranks)) == len(ranks)


def test_the_documented_choices_of_auto() -> None:
    ranks = {name: registry.backend(name).auto_for for name in OWN}
    assert {
        name: rank for name, rank in ranks.items() if rank and name in ("openvino", "tensorrt", "aot_inductor")
    } == {
        "openvino": {"cpu": ranks["openvino"]["cpu"]},
        "tensorrt": {"cuda": ranks["tensorrt"]["cuda"]},
        "aot_inductor": {"cuda": ranks["aot_inductor"]["cuda"]},
    }
    assert ranks["tensorrt"]["cuda"] > ranks["aot_inductor"]["cuda"]


def test_auto_takes_the_highest_rank_that_is_available_and_else_the_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Low(Telling):
        name = "low"
        auto_for: ClassVar[Mapping[str, int]] = {"cuda": 1}

    class High(Telling):
        name = "high"
        auto_for: ClassVar[Mapping[str, int]] = {"cuda": 2}

    monkeypatch.setattr(registry, "_compilers", lambda: {"low": Low(), "high": High()})
    assert engines_for("cuda") == ["high"]
    monkeypatch.setattr(High, "availability", lambda self: Availability(self.target == "cpu", "no GPU"))
    assert engines_for("cuda") == ["low"]
    monkeypatch.setattr(Low, "availability", lambda self: Availability(False, "no GPU"))
    assert engines_for("cuda") == ["low"]  # whose error states the reason


def test_auto_on_a_device_that_no_backend_claims_is_refused() -> None:
    with pytest.raises(OptionError, match=r"a backend that 'auto' can choose for device 'tpu', got none"):
        registry.best_for("tpu")


def test_one_backend_is_the_fallback_and_it_runs_everywhere() -> None:
    fallback = registry.fallback()
    assert [name for name in OWN if registry.backend(name).is_fallback] == [fallback.name]
    assert REFERENCE_PRECISION in fallback.precisions
    for device in DEVICES:
        assert fallback.name in registry.available_for(device)


@pytest.mark.parametrize("name", OWN)
def test_precisions_and_devices_are_known_ones(name: str) -> None:
    backend = registry.backend(name)
    whole_graph = backend.whole_graph()
    assert set(backend.precisions) <= set(PRECISIONS)
    assert whole_graph is None or (isinstance(whole_graph, WholeGraph) and whole_graph.precisions)
    assert whole_graph is None or set(whole_graph.precisions) <= set(backend.precisions)
    assert {*backend.devices, *backend.auto_for} <= set(DEVICES)
    assert set(backend.auto_for) <= set(backend.devices)


def test_cache_directories_are_plain_names_of_one_backend_each() -> None:
    all_of_them = [directory for name in OWN for directory in registry.backend(name).cache_directories]
    assert sorted(all_of_them) == registry.cache_directories() != []
    assert all(re.fullmatch(r"[a-z_]+", directory) for directory in all_of_them)


@pytest.mark.parametrize("name", OWN)
def test_the_run_half_reads_the_variables_that_name_libraries(name: str) -> None:
    sources = [path.read_text() for path in (ROOT / "cpp" / "backends" / name).glob("*.cpp")]
    assert sources
    compatibility = (ROOT / "COMPATIBILITY.md").read_text()
    for variable in registry.backend(name).vendor.libraries:
        assert any(f'"{variable}"' in text for text in sources)
        assert f"`{variable}`" in compatibility


def test_the_flags_of_the_cpu_are_the_kernels() -> None:
    (line,) = re.findall(r"^(?:flags|Features)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:1]
    assert _native.cpu_flags() == set(line.split())


# The context


class Telling(Backend):
    """Has an option and a constructor, and records what it was called with."""

    name = "telling"
    precisions = ("fp32",)
    devices = ("cpu", "cuda")

    def __init__(self) -> None:
        self.made_by = "hand"

    def availability(self) -> Availability:
        return Availability(True, version=torch.__version__)

    def checked(self, options: Any) -> Any:
        return dict(options)

    def compile(self, program: Program, precision: str) -> Artifact:
        if self.progress is not None:
            self.progress(0.5, f"{precision} on {self.target} with {dict(self.given)}")
        return Artifact(self.spec(program, precision, versions={}), {})


def test_a_configured_backend_is_a_new_object_with_its_own_state() -> None:
    original, told = Telling(), []
    configured = original.configured("cuda", {"level": 3}, lambda share, what: told.append((share, what)))
    assert (original.target, original.given, original.progress) == ("cpu", {}, None)
    assert (configured.target, configured.given, configured.made_by) == ("cuda", {"level": 3}, "hand")
    silent = configured.reporting_to(None)
    assert silent.context == CompileContext("cuda", {"level": 3})
    program = Program("x", (), (), (), ())
    for backend in (original, silent, configured):
        backend.compile(program, "fp32")
    assert told == [(0.5, "fp32 on cuda with {'level': 3}")]


@pytest.mark.parametrize("attribute", ["context", "device", "given", "progress"])
def test_a_backend_cannot_be_reconfigured_from_outside(attribute: str) -> None:
    backend = registry.backend("torchscript").configured("cpu")
    with pytest.raises(AttributeError):
        setattr(backend, attribute, "another")
    with pytest.raises(dataclasses.FrozenInstanceError):
        backend.context.device = "cuda"  # type: ignore[misc]
