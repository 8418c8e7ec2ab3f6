"""Checks other systems with cross compilers: Windows code is linked, and the C++ tests run on 64-bit Arm."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT
from tools.dev import arm

PLATFORM = ROOT / "cpp" / "src" / "common" / "platform"
PARTS = sorted(path.stem for path in PLATFORM.glob("*.h"))
MINGW = "x86_64-w64-mingw32-g++-posix"
OPTIONS = (
    "-std=c++20",
    "-O0",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-I",
    str(ROOT / "cpp" / "src"),
    "-I",
    str(ROOT / "cpp" / "include"),
)

# Headers that the sources of one platform may include and those of the other may not.
SYSTEM_HEADERS = {
    "posix": {
        "dlfcn.h",
        "fcntl.h",
        "malloc.h",
        "pthread.h",
        "sched.h",
        "sys/mman.h",
        "sys/stat.h",
        "sys/utsname.h",
        "unistd.h",
    },
    "windows": {"fcntl.h", "intrin.h", "io.h", "malloc.h", "windows.h"},
}


def succeed(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def functions(compiler: str, half: str, directory: Path) -> tuple[set[str], list[Path]]:
    """Returns the functions in the package's namespace that a platform's sources define, and their object files."""
    objects = []
    for part in PARTS:
        objects.append(directory / f"{part}_{half}.o")
        succeed(compiler, *OPTIONS, "-c", PLATFORM / f"{part}_{half}.cpp", "-o", objects[-1])
    symbols = succeed("nm", "--demangle", "--extern-only", "--defined-only", *objects)
    return {*re.findall(r" T (hybrid_rt::platform::\w+)\(", symbols)}, objects


def test_every_header_has_both_halves_and_cmake_compiles_them() -> None:
    assert {path.name for path in PLATFORM.glob("*.cpp")} == {
        f"{part}_{half}.cpp" for part in PARTS for half in ("posix", "windows")
    }
    [listed] = re.findall(r"IN ITEMS (.*)\)", (PLATFORM.parent / "CMakeLists.txt").read_text())
    assert listed.split() == PARTS


@pytest.mark.parametrize("half", SYSTEM_HEADERS)
def test_a_half_includes_its_own_header_and_its_systems_only(half: str) -> None:
    for part in PARTS:
        for path in (PLATFORM / f"{part}.h", PLATFORM / f"{part}_{half}.cpp"):
            included = re.findall(r'#include [<"](.*)[>"]', path.read_text())
            foreign = {name for name in included if "." in name} - SYSTEM_HEADERS[half]
            assert foreign <= {f"common/platform/{part}.h"}, path.name


def test_no_other_source_of_the_library_calls_the_system() -> None:
    system = SYSTEM_HEADERS["posix"] | {"sys/wait.h", "signal.h"}
    for path in (ROOT / "cpp" / "src").rglob("*.[ch]*"):
        if path.parent != PLATFORM:
            included = {*re.findall(r"#include <(.*)>", path.read_text())}
            assert not included & system, path
            assert "/proc/" not in path.read_text(), path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(MINGW) is None, reason=f"{MINGW} not installed (tools/debian/tests.txt)")
def test_a_cross_compiler_compiles_and_links_the_windows_half(tmp_path: Path) -> None:
    here, _ = functions("c++", "posix", tmp_path)
    there, objects = functions(MINGW, "windows", tmp_path)
    assert len(here) >= len(PARTS)
    assert there == here
    succeed(MINGW, "-shared", "-o", tmp_path / "platform.dll", *objects)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # It compiles the library: two minutes on two cores that have nothing else to do.
@pytest.mark.skipif(
    shutil.which(arm.COMPILER) is None or shutil.which(arm.EMULATOR) is None,
    reason=f"{arm.COMPILER} and {arm.EMULATOR} not installed (tools/debian/tests.txt)",
)
def test_the_library_runs_on_64_bit_arm(demo_bundle: Path) -> None:
    printed = arm.run_tests(demo_bundle, is_all=False)
    for library in ("libhybrid_rt.so", "libhybrid_rt_torchscript.so", "libhybrid_rt_openvino.so"):
        assert "AArch64" in succeed("readelf", "--file-header", arm.DIRECTORY / "build" / "lib" / library)
    counts = re.findall(r"test cases: +(\d+) \| +(\d+) passed \| +0 failed", printed)
    assert [first == second for first, second in counts] == [True, True, True], printed
    assert int(counts[0][0]) >= 150
    for name in (
        "nms keeps the best of overlapping boxes, in descending order",
        "roi_align averages the points of each bin, which follow the scale",
        "poolings give the same bits on every CPU",
        "threads that load the same artifact concurrently get one engine",
        "a bundle matches its detector",
    ):
        assert f" s: {name}\n" in printed, printed
