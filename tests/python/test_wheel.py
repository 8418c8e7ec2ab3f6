"""The release is a wheel: built, installed into an environment of its own, and tested from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from helpers.external_projects import SEARCH_PATH
from helpers.paths import ROOT

# Leaves the current folder out of sys.path.
SAFE = ("-P",) if sys.version_info >= (3, 11) else ()

# Fails the run if it tested another hybrid_rt than the wheel's.
PLUGIN = """
import sys
from pathlib import Path

def pytest_sessionfinish(session):
    import hybrid_rt
    for module in (hybrid_rt, hybrid_rt._native, sys.modules["hybrid_rt.backends.registry"]):
        assert Path(sys.prefix) in Path(module.__file__).parents, module.__file__
"""


def run(*command: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    return subprocess.run(
        [str(part) for part in command],
        env={**inherited, "PATH": SEARCH_PATH, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*command: str | Path, folder: Path, **environment: str) -> str:
    done = run(*command, folder=folder, **environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def make_environment(folder: Path) -> Path:
    """Creates an environment without packages; returns its interpreter."""
    succeed(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    return folder / "bin" / "python"


def share_packages(python: Path) -> None:
    """Lets an environment import this one's packages, after its own.

    A plain path in a .pth file, not site.addsitedir(): that would run this environment's .pth files, and with them the
    finder of the editable installation, which stands before every path.
    """
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(succeed(python, "-c", asked, folder=python.parent).strip())
    (own / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")


@pytest.fixture(scope="module")
def without_hybrid_rt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with torch."""
    python = make_environment(tmp_path_factory.mktemp("plain") / "environment")
    share_packages(python)
    return python


@pytest.fixture(scope="module")
def with_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with torch and the wheel. The build reuses what tools/setup has compiled."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    succeed(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, ROOT, folder=folder)
    [wheel] = folder.glob("hybrid_rt-*.whl")
    python = make_environment(folder / "environment")
    # Before the packages of this environment are seen: pip would find hybrid_rt among them.
    succeed(*pip, "--python", python, "install", "--no-index", "--no-deps", wheel, folder=folder)
    share_packages(python)
    return python


# Of the slow compilers one structure: the checkout's run has them all.
CONTRACT = "OneTensor or not (aot_inductor or tvm)"


@pytest.mark.slow
def test_the_backends_keep_their_contract_in_a_wheel(with_wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "check_the_wheel.py").write_text(PLUGIN)
    options = ("--import-mode=importlib", "-p", "check_the_wheel", "-p", "no:cacheprovider", "-q", "-k", CONTRACT)
    printed = succeed(
        *(with_wheel, *SAFE, "-m", "pytest", *options, ROOT / "tests" / "python" / "backends" / "test_contract.py"),
        folder=tmp_path,
        PYTHONPATH=str(tmp_path),
        OMP_WAIT_POLICY="PASSIVE",
    )
    assert " passed" in printed


@pytest.mark.slow
def test_a_wheel_is_imported_from_anywhere_but_the_checkout(with_wheel: Path, tmp_path: Path) -> None:
    command = (with_wheel, "-c", "import hybrid_rt; print(hybrid_rt.__file__)")
    assert with_wheel.parents[1] in Path(succeed(*command, folder=tmp_path).strip()).parents
    assert "expected an installed package" in run(*command, folder=ROOT).stderr
    if SAFE:
        safe = (with_wheel, *SAFE, *command[1:])
        assert with_wheel.parents[1] in Path(succeed(*safe, folder=ROOT).strip()).parents


@pytest.mark.slow
def test_a_wheel_brings_headers_types_schema_and_programs(with_wheel: Path, tmp_path: Path) -> None:
    asked = "import hybrid_rt; print(hybrid_rt.__path__[0])"
    package = Path(succeed(with_wheel, *SAFE, "-c", asked, folder=tmp_path).strip())
    for name in (
        *("py.typed", "_native.pyi", "cmake/hybrid_rt-config.cmake", "lib/libhybrid_rt.so"),
        *("include/hybrid_rt/hybrid_rt.h", "include/hybrid_rt/plugin/backend.h"),
        *("conversion/report/report.schema.json", "conversion/report/report.html.jinja", "common/refusals.md"),
    ):
        assert (package / name).is_file(), name
    programs = {path.name for path in with_wheel.parent.glob("hybrid-rt*")}
    assert programs == {"hybrid-rt", "hybrid-rt-detect", "hybrid-rt-serve", "hybrid-rt-bench-worker"}


@pytest.mark.slow
def test_a_checkout_without_the_native_library_says_what_to_do(without_hybrid_rt: Path) -> None:
    done = run(without_hybrid_rt, "-c", "import torch; import hybrid_rt", folder=ROOT)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"hybrid_rt.common.errors.BackendError: hybrid_rt[import]: the source tree at {ROOT}: expected an installed "
        "package, got sources without the native library. Run tools/setup, or start Python with -P to import the "
        "installed hybrid_rt."
    )


@pytest.mark.slow
def test_a_native_library_for_another_torch_says_what_to_do(tmp_path: Path) -> None:
    pretended = "9.9.0"
    code = f"import torch; torch.__version__ = {pretended!r}; import hybrid_rt"
    done = run(sys.executable, "-c", code, folder=tmp_path)
    assert done.returncode == 1
    assert f"the native library: expected one built for torch {pretended}, got one for " in done.stderr
