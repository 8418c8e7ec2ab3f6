"""Tests of third-party projects built against the installed package: a service in C++, and a backend."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hybrid_rt
from helpers.backend_names import places
from helpers.external_projects import DOWNSTREAM, OUT_OF_TREE, build_project, configure, image_arguments, run, succeed
from helpers.paths import ROOT
from hybrid_rt.backends import registry

pytestmark = pytest.mark.slow

PROGRAMS = OUT_OF_TREE / "programs"


@pytest.fixture(scope="module")
def out_of_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installs the out-of-tree backend as pip would in site-packages."""
    build = build_project(OUT_OF_TREE, tmp_path_factory.mktemp("out_of_tree"))
    succeed("cmake", "--install", build, "--prefix", build / "installed")
    return build / "installed"


# The service in C++


@pytest.mark.parametrize("program", ["with_hybrid_rt", "with_torch_only"])
def test_a_program_gives_the_boxes_of_python(
    program: str, downstream: Path, demo_bundle: Path, demo_image: Tensor, tmp_path: Path
) -> None:
    (expected,) = hybrid_rt.load(demo_bundle)([demo_image])
    printed = succeed(downstream / program, demo_bundle, *image_arguments(demo_image, tmp_path / "image.raw"))
    rows = torch.tensor([[float(word) for word in line.split()] for line in printed.splitlines()])
    assert len(rows) == len(expected["labels"]) > 0
    assert rows[:, 0].tolist() == expected["labels"].tolist()
    torch.testing.assert_close(rows[:, 1], expected["scores"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[:, 2:], expected["boxes"], rtol=1e-4, atol=1e-2)


def test_the_file_order_and_the_environment_choose_the_engine(
    downstream: Path, demo_bundle: Path, demo_image: Tensor, tmp_path: Path
) -> None:
    command = (downstream / "with_hybrid_rt", demo_bundle, *image_arguments(demo_image, tmp_path / "image.raw"))
    assert run(*command).stderr == "backbone: openvino\n"
    assert run(*command, HYBRID_RT_BACKEND="torchscript").stderr == "backbone: torchscript\n"


def test_a_missing_bundle_is_one_line_of_advice(downstream: Path) -> None:
    result = run(downstream / "with_hybrid_rt", "/no/such/file.pt", "image.raw", "1", "1")
    assert result.returncode == 1
    assert result.stderr.startswith("hybrid_rt[bundle]: /no/such/file.pt: expected a file, got ")
    assert result.stderr.count("\n") == 1


def test_the_programs_need_no_python(downstream: Path) -> None:
    linked = succeed("ldd", downstream / "with_torch_only")
    assert "libhybrid_rt.so" in linked  # though no symbol of it is used
    assert "not found" not in linked
    assert "python" not in {line.split()[0].partition(".so")[0] for line in linked.splitlines()}
    assert "libtorch_python" not in linked


@pytest.mark.parametrize("name", ["CMAKE_PREFIX_PATH", "hybrid_rt_DIR"])
def test_the_package_is_found_by_either_variable(name: str, tmp_path: Path) -> None:
    result = run("cmake", "-G", "Ninja", "-S", DOWNSTREAM, "-B", tmp_path, f"-D{name}={hybrid_rt.cmake_prefix_path}")
    assert result.returncode == 0, result.stderr
    assert f"hybrid_rt: torch {'.'.join(torch.__version__.split('.')[:2])} in " in result.stdout


def test_a_torch_directory_without_torch_is_a_clear_error(tmp_path: Path) -> None:
    result = configure(DOWNSTREAM, tmp_path / "build", f"-DHYBRID_RT_TORCH_FOLDER={tmp_path}")
    assert result.returncode != 0
    text = " ".join(result.stderr.split())
    assert f"hybrid_rt[build]: torch: expected a directory with its headers, got '{tmp_path}'." in text
    assert "name it with -DHYBRID_RT_TORCH_FOLDER=." in text


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ((2, 99), "but {directory} is torch 2.99: custom classes need one binary a torch minor version."),
        ((2, 1), "hybrid_rt[build]: torch: expected 2.11 or newer, got 2.1 in {directory}."),
    ],
    ids=["another minor version", "too old"],
)
def test_another_torch_is_a_clear_error(version: tuple[int, int], message: str, tmp_path: Path) -> None:
    header = tmp_path / "include" / "torch" / "headeronly" / "version.h"
    header.parent.mkdir(parents=True)
    header.write_text(f"#define TORCH_VERSION_MAJOR {version[0]}\n#define TORCH_VERSION_MINOR {version[1]}\n")
    result = configure(DOWNSTREAM, tmp_path / "build", f"-DHYBRID_RT_TORCH_FOLDER={tmp_path}")
    assert result.returncode != 0
    assert message.format(directory=tmp_path) in " ".join(result.stderr.split())


def test_a_compiler_that_links_a_libstdcxx_of_its_own_is_refused(tmp_path: Path) -> None:
    """Exceptions and streams that are passed to torch's libraries would crash."""
    result = configure(DOWNSTREAM, tmp_path / "build", "-DCMAKE_EXE_LINKER_FLAGS=-static-libstdc++")
    assert result.returncode != 0
    text = " ".join(result.stderr.split())
    assert "hybrid_rt[build]: compiler: expected one that links libstdc++.so, as torch does, got " in text
    assert "leave out -static-libstdc++." in text


def test_the_installed_headers_compile_without_the_checkout() -> None:
    include = Path(hybrid_rt.cmake_prefix_path).parent / "include" / "hybrid_rt"
    found = {path.relative_to(include).as_posix() for path in include.rglob("*.h")}
    assert found >= {"hybrid_rt.h", "bundle.h", "engine.h", "engine_choice.h", "plugin/backend.h", "plugin/blob_map.h"}


# The out-of-tree backend


LIST_BACKENDS = """
import dataclasses, json, hybrid_rt
infos = hybrid_rt.backends()
print(json.dumps({info.name: {**dataclasses.asdict(info), "available": info.available} for info in infos}))
"""


@pytest.fixture(scope="module")
def listed(out_of_tree: Path) -> dict[str, dict[str, Any]]:
    """Returns hybrid_rt.backends() with the third-party package installed, and faulty plug-ins next to it."""
    return json.loads(
        succeed(
            sys.executable, "-W", "error", "-c", LIST_BACKENDS, PYTHONPATH=str(out_of_tree),
            HYBRID_RT_PLUGIN_PATH=str(out_of_tree / "faulty"),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def converted(out_of_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Returns a bundle with an engine of the third-party backend, and the log of converting it and three loads."""
    path = tmp_path_factory.mktemp("converted") / "detector.pt"
    result = run(
        sys.executable, PROGRAMS / "convert_and_load.py", path, PYTHONPATH=str(out_of_tree), HYBRID_RT_LOG="debug"
    )
    assert result.returncode == 0, result.stderr
    return path, result.stderr


def test_an_installed_backend_is_listed(listed: dict[str, dict[str, Any]]) -> None:
    assert listed["interpreter"]["available"]
    assert listed["interpreter"]["precisions"] == ["fp32"]
    assert listed["interpreter"]["devices"] == ["cpu"]
    assert "interpreter" not in {info.name for info in hybrid_rt.backends()}  # not in this process


def test_an_installed_backend_keeps_the_contract(out_of_tree: Path) -> None:
    printed = succeed(
        sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-k", "interpreter",
        Path(__file__).parent / "backends" / "test_contract.py", PYTHONPATH=str(out_of_tree),
    )  # fmt: skip
    summary = printed.strip().splitlines()[-1]
    assert "passed" in summary
    assert "skipped" not in summary
    assert int(summary.split()[0]) > 30


def test_three_loads_of_a_bundle_share_an_engine(converted: tuple[Path, str]) -> None:
    _, log = converted
    loads = log.count("engine 'Detector' runs on interpreter")
    assert loads >= 3
    # The verification takes the same one: every machine computes fp32 without emulating it.
    assert log.count("interpreter: an engine was made") == 1


def test_a_bundle_of_a_backend_that_is_not_installed_runs_on_the_next_variant(converted: tuple[Path, str]) -> None:
    path, _ = converted
    (engine,) = hybrid_rt.engines(hybrid_rt.load(path))
    assert engine["backend"] == "torchscript"
    refusal = engine["variants"][0]["refusal"]
    assert refusal.startswith("hybrid_rt[interpreter]: backend: expected one of ")
    assert "libhybrid_rt_interpreter.so" in refusal
    with pytest.raises(hybrid_rt.OptionError, match=r"expected one of .*torchscript.*, got 'interpreter'"):
        registry.backend("interpreter")


UNUSABLE = {
    "wrong_interface": "built for plug-in interface {next}, this is hybrid_rt's {interface}; rebuild it",
    "wrong_torch": "the plug-in was built with torch 1.13, this is torch {torch}; rebuild it",
    "misnamed": "libhybrid_rt_misnamed.so says that it is 'somebody_else'; rename the file or the backend",
    "no_entry": "libhybrid_rt_no_entry.so exports no hybrid_rt_plugin (it lacks HYBRID_RT_PLUGIN)",
    "throwing_constructor": "the plug-in's backend can't be created: it is broken on purpose",
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_a_plugin_that_is_wrong_is_listed_with_the_reason(
    fault: str, listed: dict[str, dict[str, Any]], out_of_tree: Path
) -> None:
    info = listed[fault]
    assert not info["available"]
    plugin = out_of_tree / "faulty" / f"libhybrid_rt_{fault}.so"
    assert info["run_reason"].startswith(f"hybrid_rt[{fault}]: plug-in: expected a usable {plugin}, got ")
    header = (Path(hybrid_rt._native.__file__).parent / "include" / "hybrid_rt" / "plugin" / "backend.h").read_text()
    interface = int(re.search(r"kPluginAbiVersion = (\d+)", header)[1])
    expected = UNUSABLE[fault].format(
        torch=".".join(torch.__version__.split(".")[:2]), interface=interface, next=interface + 1
    )
    assert expected in info["run_reason"]
    assert info["compile_reason"] == "no Python package brings its compiler"


@pytest.mark.parametrize("fault", ["failing_load", "foreign_exception"])
def test_a_variant_that_fails_to_load_is_warned_of_and_the_next_runs(fault: str, out_of_tree: Path) -> None:
    plugins = str(out_of_tree / "faulty")
    result = run(sys.executable, PROGRAMS / "run_faulty.py", fault, "torchscript", HYBRID_RT_PLUGIN_PATH=plugins)
    assert result.returncode == 0, result.stderr
    assert f"hybrid_rt warning: engine '0': {fault} (fp32) failed to load: " in result.stderr
    assert "it is broken on purpose" in result.stderr


@pytest.mark.parametrize(("fault", "reason"), [("failing_load", "broken on purpose"), ("wrong_torch", "rebuild it")])
def test_without_another_variant_the_error_tells_the_reason(fault: str, reason: str, out_of_tree: Path) -> None:
    result = run(sys.executable, PROGRAMS / "run_faulty.py", fault, HYBRID_RT_PLUGIN_PATH=str(out_of_tree / "faulty"))
    assert result.returncode == 1
    assert "hybrid_rt[variants]: engine '0': expected a variant that can run on this machine, got none of 1:" in (
        result.stderr
    )
    assert f"\n  {fault} (fp32): " in result.stderr
    assert reason in result.stderr


# A backend added to the repository itself

ADDED_CLASS = '''"""Keeps the traced segment for torch's interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from ...common.specs import Artifact, blob_from_bytes
from ...torchscript import jit
from ..base import Availability, Backend, VendorPackages


class InterpreterBackend(Backend):
    name = "interpreter"
    precisions = ("fp32",)
    auto_for: ClassVar[Mapping[str, int]] = {"cpu": 99}
    cache_directories = ("interpreter_notes",)
    vendor = VendorPackages(requirements=("no-such-vendor>=1,<2",), modules=("no_such_vendor",))

    def availability(self):
        return Availability(True, version=torch.__version__)

    def compile(self, program, precision):
        spec = self.spec(program, precision, versions={"torch": torch.__version__})
        return Artifact(spec, {"traced": blob_from_bytes(jit.to_bytes(program.traced()))})
'''
USE = """
import sys, torch, hybrid_rt
from hybrid_rt.backends import registry
from hybrid_rt.backends.cache import store
from hybrid_rt.bench.cases import cases
from torch import nn

assert hybrid_rt.__file__.startswith(sys.argv[1]), hybrid_rt.__file__
(info,) = [info for info in hybrid_rt.backends() if info.name == "interpreter"]
assert info.available, info.reason
notes = store.cache_directory() / "interpreter_notes"
notes.mkdir(parents=True)
x = torch.rand(1, 3, 8, 8)
detector = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
hybrid_rt.convert(detector, (x,), sys.argv[1] + "/added.pt", segments=["0"], measure=False)  # engine="auto"
module = hybrid_rt.load(sys.argv[1] + "/added.pt")
assert [engine["backend"] for engine in hybrid_rt.engines(module)] == ["interpreter"]
torch.testing.assert_close(module(x), detector(x))
assert "interpreter" in registry.available_for("cpu") and "no-such-vendor" in registry.distributions()
assert [case.engine for case in cases(["interpreter"], runtimes=["hybrid", "whole"])] == ["", "interpreter"]
store.clear()
assert not notes.exists()
"""
IN_THE_COPY = """
import sys
# A development install finds hybrid_rt in its checkout, before PYTHONPATH is looked at.
sys.meta_path = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
"""


@pytest.fixture(scope="module")
def repository_with_another_backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a copy of the repository with an additional backend: two directories, a page, an extra."""
    copy = tmp_path_factory.mktemp("repository")
    for name in ("hybrid_rt", "cpp", "tests", "tools", "docs", "examples", "models"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.pt", "*.png", "_native*")
        )
    for name in ("pyproject.toml", "COMPATIBILITY.md"):
        shutil.copy(ROOT / name, copy / name)
    installed = Path(hybrid_rt._native.__file__).parent
    for path in [Path(hybrid_rt._native.__file__), *(installed / name for name in ("lib", "include", "cmake"))]:
        (copy / "hybrid_rt" / path.name).symlink_to(path)
    compiles, runs = (copy / half / "backends" / "interpreter" for half in ("hybrid_rt", "cpp"))
    for directory in (compiles, runs):
        directory.mkdir()
    (compiles / "__init__.py").write_text(ADDED_CLASS)
    shutil.copy(OUT_OF_TREE / "interpreter.cpp", runs)
    (runs / "CMakeLists.txt").write_text("hybrid_rt_add_backend(interpreter interpreter.cpp)\n")
    (copy / "docs" / "engine-interpreter.md").write_text("# torch's interpreter\n")
    project = (copy / "pyproject.toml").read_text()
    extra = '[project.optional-dependencies]\ninterpreter = ["no-such-vendor>=1,<2"]\n'
    project = project.replace("[project.optional-dependencies]\n", extra).replace(
        "hybrid_rt[", "hybrid_rt[interpreter,"
    )
    (copy / "pyproject.toml").write_text(project)
    return copy


def in_the_copy(copy: Path, out_of_tree: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    plugins = str(out_of_tree / "hybrid_rt_interpreter")
    environment = {"PYTHONPATH": str(copy), "HYBRID_RT_PLUGIN_PATH": plugins, "HYBRID_RT_CACHE": str(copy / "cache")}
    return run(sys.executable, "-c", IN_THE_COPY + code, *arguments, directory=copy, **environment)


def test_a_backend_is_added_by_two_directories_a_page_and_an_extra(
    repository_with_another_backend: Path, out_of_tree: Path
) -> None:
    copy = repository_with_another_backend
    used = in_the_copy(copy, out_of_tree, USE, str(copy))
    assert used.returncode == 0, used.stderr
    tests = ["test_layering.py", "test_adding_a_backend.py", "backends/test_descriptions.py"]
    arguments = ["-q", "-p", "no:cacheprovider", *(f"tests/python/{name}" for name in tests)]
    checked = in_the_copy(copy, out_of_tree, f"import pytest; raise SystemExit(pytest.main({arguments}))")
    assert checked.returncode == 0, checked.stdout


def test_a_list_that_names_backends_is_found(repository_with_another_backend: Path) -> None:
    assert places(repository_with_another_backend, {"interpreter", "no-such-vendor", "no_such_vendor"}) == {}
    path = repository_with_another_backend / "hybrid_rt" / "bench" / "results.py"
    path.write_text(path.read_text() + '\n_FAST = {"openvino": 1, "interpreter": 2}\n')
    assert places(repository_with_another_backend, {"interpreter"}) == {"hybrid_rt/bench/results.py": {"interpreter"}}
