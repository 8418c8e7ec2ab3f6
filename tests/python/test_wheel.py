"""Builds the wheel, installs it into a separate environment, and tests it from another directory."""

from __future__ import annotations

import email
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import hybrid_rt
from helpers.bare_root import PYTHON, BareRoot, add_python, make_bare_root, needs_bare_root
from helpers.external_projects import SEARCH_PATH
from helpers.paths import ROOT
from hybrid_rt.common.errors import BackendError, OptionError
from programs.test_detect_app import assert_same_detections, detect_in_python
from tools.release import wheel as release
from tools.release import wheel_files

TORCH = ".".join(torch.__version__.split(".")[:2])

# Keeps the current directory out of sys.path.
SAFE = ("-P",) if sys.version_info >= (3, 11) else ()

# Fails the run if it tested another hybrid_rt than the one in the wheel.
PLUGIN = """
import sys
from pathlib import Path

def pytest_sessionfinish(session):
    import hybrid_rt
    for module in (hybrid_rt, hybrid_rt._native, sys.modules["hybrid_rt.backends.registry"]):
        assert Path(sys.prefix) in Path(module.__file__).parents, module.__file__
"""


def run(*command: str | Path, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    return subprocess.run(
        [str(part) for part in command],
        env={**inherited, "PATH": SEARCH_PATH, **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*command: str | Path, directory: Path, **environment: str) -> str:
    done = run(*command, directory=directory, **environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def make_environment(directory: Path) -> Path:
    """Creates an environment without packages, and returns its interpreter."""
    succeed(sys.executable, "-m", "venv", "--without-pip", directory, directory=directory.parent)
    return directory / "bin" / "python"


def share_packages(python: Path) -> None:
    """Lets an environment import this environment's packages, after its own.

    Uses plain paths in a .pth file instead of site.addsitedir(), which would run this environment's .pth files and so
    install the finder of the editable installation, which takes precedence over every path.
    """
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(succeed(python, "-c", asked, directory=python.parent).strip())
    (own / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")


@pytest.fixture(scope="module")
def without_hybrid_rt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the interpreter of an environment with torch."""
    python = make_environment(tmp_path_factory.mktemp("plain") / "environment")
    share_packages(python)
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the wheel of tools/wheel, whose build reuses the object files of tools/setup."""
    return release.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def with_wheel(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """Returns the interpreter of an environment with torch and the wheel."""
    directory = tmp_path_factory.mktemp("environment")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    python = make_environment(directory / "environment")
    # Install it before sharing this environment's packages, among which pip would find hybrid_rt.
    succeed(*pip, "--python", python, "install", "--no-index", "--no-deps", wheel, directory=directory)
    share_packages(python)
    return python


# Run the slow compilers for one structure only, because the checkout's tests run them for all.
CONTRACT = "OneTensor or not (aot_inductor or tvm)"


@pytest.mark.slow
def test_the_backends_keep_their_contract_in_a_wheel(with_wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "check_the_wheel.py").write_text(PLUGIN)
    options = ("--import-mode=importlib", "-p", "check_the_wheel", "-p", "no:cacheprovider", "-q", "-k", CONTRACT)
    printed = succeed(
        *(with_wheel, *SAFE, "-m", "pytest", *options, ROOT / "tests" / "python" / "backends" / "test_contract.py"),
        directory=tmp_path,
        PYTHONPATH=str(tmp_path),
        OMP_WAIT_POLICY="PASSIVE",
    )
    assert " passed" in printed


@pytest.mark.slow
def test_a_wheel_is_imported_from_anywhere_but_the_checkout(with_wheel: Path, tmp_path: Path) -> None:
    command = (with_wheel, "-c", "import hybrid_rt; print(hybrid_rt.__file__)")
    assert with_wheel.parents[1] in Path(succeed(*command, directory=tmp_path).strip()).parents
    assert "expected an installed package" in run(*command, directory=ROOT).stderr
    if SAFE:
        safe = (with_wheel, *SAFE, *command[1:])
        assert with_wheel.parents[1] in Path(succeed(*safe, directory=ROOT).strip()).parents


@pytest.mark.slow
def test_a_wheel_brings_headers_types_schema_and_programs(with_wheel: Path, tmp_path: Path) -> None:
    asked = "import hybrid_rt; print(hybrid_rt.__path__[0])"
    package = Path(succeed(with_wheel, *SAFE, "-c", asked, directory=tmp_path).strip())
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
    done = run(without_hybrid_rt, "-c", "import torch; import hybrid_rt", directory=ROOT)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"hybrid_rt.common.errors.BackendError: hybrid_rt[import]: the source tree at {ROOT}: expected an installed "
        "package, got sources without the native library. Run tools/setup, or start Python with -P to import the "
        "installed hybrid_rt."
    )


@pytest.mark.slow
def test_a_native_library_for_another_torch_says_what_to_do_and_is_not_loaded(tmp_path: Path) -> None:
    code = (
        "import torch; torch.__version__ = '9.9.0'\n"
        "try: import hybrid_rt\n"
        "finally: print([line for line in open('/proc/self/maps') if 'libhybrid_rt' in line])"
    )
    done = run(sys.executable, "-c", code, directory=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "[]\n"
    assert f"the native library: expected one built for torch 9.9.0, got one for {TORCH}. " in done.stderr
    assert f"(a wheel of version {hybrid_rt.__version__}+torch9.9, or its sources" in done.stderr
    assert f"or install torch {TORCH}: pip install 'torch=={TORCH}.*'." in done.stderr


# A machine without Debian's packages


@dataclass(frozen=True, kw_only=True)
class RootWithWheel(BareRoot):
    """A bare root with Python, an environment with the wheel, and the wheel's dependencies."""

    packages: Path
    """The environment's site-packages."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[RootWithWheel]:
    root = tmp_path_factory.mktemp("bare")
    make_bare_root(root)
    add_python(root)
    shared = root / "packages"
    shared.mkdir()
    # torch reads random numbers on import, and every container has this device.
    (root / "dev").mkdir()
    (root / "dev" / "urandom").touch()
    random = Path("/dev/urandom")
    plain = BareRoot(root=root, shared={"/packages": Path(sysconfig.get_path("purelib")), str(random): random})
    made = plain.run(PYTHON, "-m", "venv", "--without-pip", "/environment")
    assert made.returncode == 0, made.stderr
    [packages] = root.glob("environment/lib/python*/site-packages")
    for path in plain.shared["/packages"].iterdir():
        if not path.name.startswith(("hybrid_rt", "_editable_")) and path.suffix != ".pth":
            (packages / path.name).symlink_to(Path("/packages", path.name))
    shutil.copy(wheel, root / "tmp")
    # Check the dependencies, which are already installed or missing.
    pip = ("/environment/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--no-index")
    installed = plain.run(*pip, f"/tmp/{wheel.name}", HOME="/tmp", TMPDIR="/tmp")
    assert installed.returncode == 0, installed.stderr
    yield RootWithWheel(root=root, shared=plain.shared, packages=packages)
    shutil.rmtree(root)


@pytest.mark.slow
@needs_bare_root
def test_the_bare_root_has_no_compiler_and_none_of_debians_libraries(bare: RootWithWheel) -> None:
    found = {path.name for path in bare.root.rglob("*") if ".so" in path.name and "environment" not in path.parts}
    vendored = {path.name.partition("-")[0] for path in (bare.packages / wheel_files.VENDORED).iterdir()}
    interpreters = {"libffi", "libz.so.1"}  # libraries that Python itself is linked to
    assert {"libcrypto", "libjpeg", "libpng16", "libmicrohttpd", "libgnutls", "libz.so.1"} <= vendored
    assert not {name for name in found if name.partition(".")[0] in vendored - interpreters}
    assert bare.run("sh", "-c", "cc || c++ || gcc || clang").returncode == 127


@pytest.mark.slow
@needs_bare_root
def test_python_and_programs_run_in_a_bare_root(bare: RootWithWheel, demo_bundle: Path, demo_image_path: Path) -> None:
    shutil.copy(demo_image_path, bare.root / "tmp" / "image.png")
    shutil.copy(demo_bundle, bare.root / "tmp" / "digits.pt")
    expected = detect_in_python(demo_bundle, demo_image_path)
    done = bare.run("/environment/bin/hybrid-rt-detect", "/tmp/digits.pt", "/tmp/image.png", "--json")
    assert done.returncode == 0, done.stderr
    assert_same_detections(json.loads(done.stdout)["detections"], expected)
    code = "import hybrid_rt; print(hybrid_rt.verify_golden('/tmp/digits.pt').passed, hybrid_rt.__file__)"
    done = bare.run("/environment/bin/python", "-c", code, HOME="/tmp")
    assert done.returncode == 0, done.stderr
    passed, place = done.stdout.split()
    assert passed == "True"
    assert place.startswith("/environment/")
    helped = bare.run("/environment/bin/hybrid-rt-serve", "--help")
    assert helped.returncode == 0, helped.stderr
    backends = bare.run("/environment/bin/hybrid-rt", "doctor", HOME="/tmp")
    assert "/hybrid_rt/bin/hybrid-rt-serve" in backends.stdout, backends.stderr


@pytest.mark.slow
@needs_bare_root
def test_a_program_for_another_torch_says_what_to_do(bare: RootWithWheel) -> None:
    [own] = bare.packages.glob("torch-*.dist-info")
    other = bare.packages / "torch-9.9.0.dist-info"
    target = own.readlink()
    own.unlink()
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.0\n")
    try:
        done = bare.run("/environment/bin/hybrid-rt-detect", "--help")
    finally:
        shutil.rmtree(other)
        own.symlink_to(target)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"hybrid_rt[import]: the program hybrid-rt-detect: expected torch {TORCH}, which it was built for, got 9.9.0. "
    )


# Contents


@pytest.mark.slow
def test_the_wheel_names_and_requires_the_torch_that_it_is_for(wheel: Path) -> None:
    name, version, _, _, platform = wheel.stem.split("-")
    assert (name, version) == ("hybrid_rt", f"{hybrid_rt.__version__}+torch{TORCH}")
    assert platform.startswith("manylinux_2_")
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{name}-{version}.dist-info/METADATA"))
    requirements = metadata.get_all("Requires-Dist", [])
    assert f"torch=={TORCH}.*" in requirements
    assert [text for text in requirements if text.startswith("openvino")] == ["openvino==2026.*"]
    assert metadata["Version"] == version


@pytest.mark.slow
def test_licences_and_digests_of_the_copied_libraries_travel_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        bill = json.loads(archive.read(f"{info}/sboms/hybrid_rt.cdx.json"))
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        digests = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}
    listed = {f"{info}/licenses/{text}" for text in metadata.get_all("License-File", [])}
    assert listed == {name for name in names if name.startswith(f"{info}/licenses/")}
    debian = {entry["name"] for entry in bill["components"] if entry.get("purl", "").startswith("pkg:deb/debian/")}
    assert {"libssl3", "libjpeg62-turbo", "libmicrohttpd12", "zlib1g", "libcli11-dev"} <= debian
    for package in debian:
        assert any(f"/vendored/{package}-" in name for name in listed), package
    recorded = {entry["name"]: entry["hashes"][0]["content"] for entry in bill["components"] if entry["type"] == "file"}
    # The bill cannot contain its own digest, and RECORD has the bill's.
    assert recorded == {
        name: digests[name] for name in {*names} - {f"{info}/RECORD", f"{info}/sboms/hybrid_rt.cdx.json"}
    }


def test_a_requirement_that_the_wheel_lacks_is_an_error(tmp_path: Path) -> None:
    info = tmp_path / "hybrid_rt-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: hybrid_rt\nVersion: 1\nRequires-Dist: torch>=2\n\ntorch's text\n")
    wheel_files.pin_requirements(tmp_path, {"torch": "==2.14.*"})
    assert "Requires-Dist: torch==2.14.*\n\ntorch's text\n" in (info / "METADATA").read_text()
    with pytest.raises(OptionError, match=r"METADATA: expected Requires-Dist of openvino, got "):
        wheel_files.pin_requirements(tmp_path, {"openvino": "==2026.*"})


def test_a_library_path_of_the_building_machine_is_an_error(tmp_path: Path) -> None:
    library = Path(shutil.copy(hybrid_rt._native.__file__, tmp_path / "library.so"))
    subprocess.run(
        [shutil.which("patchelf", path=SEARCH_PATH) or "patchelf", "--set-rpath", "$ORIGIN:/home/builder/lib", library],
        check=True,
    )
    with pytest.raises(BackendError, match=r"library\.so: expected library directories relative .* got /home/builder"):
        wheel_files.check_library_paths(tmp_path)
