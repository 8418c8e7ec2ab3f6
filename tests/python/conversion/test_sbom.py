"""Tests of the bill of materials, and of the licences of copied files."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import PIL
import pytest
import torch

from hybrid_rt.cli.main import main
from hybrid_rt.conversion.export.sbom import Part, bill, parts_of_files, parts_of_requirements


def test_requirements_are_named_once_with_their_version(tmp_path: Path) -> None:
    assert main(["sbom", "--output", str(tmp_path / "bom.json")]) == 0
    found = json.loads((tmp_path / "bom.json").read_text())
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    components = {entry["name"]: entry for entry in found["components"]}
    assert len(components) == len(found["components"])
    assert components["torch"]["version"] == importlib.metadata.version("torch")
    assert components["torch"]["purl"].startswith("pkg:pypi/torch@")
    assert {"numpy", "pillow", "sympy"} <= set(components)  # sympy is a dependency of torch
    assert "pytest" not in components


def test_the_same_parts_make_the_same_bill() -> None:
    first, second = (bill("x", parts_of_requirements(), {"bin/a": "0" * 64}) for _ in range(2))
    assert first == second
    assert json.loads(first)["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]
    assert json.loads(bill("y", parts_of_requirements()))["serialNumber"] != json.loads(first)["serialNumber"]


def test_files_are_traced_to_their_packages(tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.so"
    stranger.touch()
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    parts, unknown = parts_of_files([library, Path(PIL.__file__), stranger])
    assert [part.name.lower() for part in parts] == ["pillow", "torch"]
    assert unknown == [stranger]
    for part in parts:
        assert part.licences, part.name
        assert all(path.is_file() for path in part.licences)


@pytest.mark.skipif(not Path("/usr/bin/dpkg-query").exists(), reason="no Debian")
def test_libraries_of_the_system_have_their_copyright() -> None:
    library = next(Path("/usr/lib").glob("*/libmicrohttpd.so.*")).resolve()
    ((part,), unknown) = parts_of_files([library])
    assert not unknown
    assert (part.kind, part.name[:13]) == ("deb", "libmicrohttpd")
    assert [path.name for path in part.licences] == ["copyright"]


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cyclonedx.model.bom", None)
    assert main(["sbom"]) != 0
    assert "pip install 'hybrid_rt[package]'" in capsys.readouterr().err


def test_a_licence_lies_in_a_directory_of_its_packages_name() -> None:
    assert Part("torch", "2.14+cpu", "pypi").directory == "licenses/torch-2.14+cpu"
    assert Part("zlib1g", "1:1.2", "deb").directory == "licenses/zlib1g-1_1.2"
