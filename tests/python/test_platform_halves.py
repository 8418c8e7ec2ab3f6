"""Checks other systems with cross compilers: Windows code is linked, and sources without torch run on 64-bit Arm."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT

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

ARM = "aarch64-linux-gnu-g++"
QEMU = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")
WITHOUT_TORCH = (
    *("common/error.cpp", "common/library_directory.cpp", "common/log.cpp"),
    *(
        "bundle/script_text.cpp",
        "operators/box_decoding.cpp",
        "operators/class_candidates.cpp",
        "operators/image_rows.cpp",
        "operators/score_scan.cpp",
        "operators/suppression.cpp",
    ),
)
"""Sources of the library that include no torch header and need no other library."""

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


def doctest_include(folder: Path) -> Path:
    """Returns a directory with only doctest's header, because /usr/include also has this machine's glibc headers."""
    (folder / "doctest").symlink_to("/usr/include/doctest")
    return folder


def functions(compiler: str, half: str, folder: Path) -> tuple[set[str], list[Path]]:
    """Returns the functions in the package's namespace that a platform's sources define, and their object files."""
    objects = []
    for part in PARTS:
        objects.append(folder / f"{part}_{half}.o")
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
@pytest.mark.skipif(
    shutil.which(ARM) is None or shutil.which(QEMU[0]) is None,
    reason=f"{ARM} and {QEMU[0]} not installed (tools/debian/tests.txt)",
)
def test_sources_without_torch_run_on_64_bit_arm(tmp_path: Path) -> None:
    sources = [ROOT / "cpp" / "src" / name for name in WITHOUT_TORCH]
    sources += [PLATFORM / f"{part}_posix.cpp" for part in PARTS]
    tests = [ROOT / "tests" / "cpp" / name for name in ("main.cpp", "common/test_log.cpp", "common/test_platform.cpp")]
    program = tmp_path / "tests"
    options = (*OPTIONS, "-I", ROOT / "tests" / "cpp", "-isystem", doctest_include(tmp_path))
    succeed(ARM, *options, *sources, *tests, "-o", program)
    assert "AArch64" in succeed("readelf", "--file-header", program)
    printed = succeed(*QEMU, program)
    assert re.search(r"test cases: +[1-9]\d* \| +[1-9]\d* passed \| 0 failed", printed), printed
