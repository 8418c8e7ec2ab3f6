"""Compiles the library for 64-bit Arm and runs its C++ tests under qemu-user.

    python -m tools.dev.arm          # the tests that do not run a detector, and one that does: what CI runs
    python -m tools.dev.arm --all    # all C++ tests of the library, compiled like a release

The libraries for Arm are those that a user installs: wheels of the environment's torch and OpenVINO, from pip, and
Debian's libcrypto. They are downloaded once and unpacked below build/arm (0.6 GB). Nothing is installed, and dpkg's
architectures stay as they are. The exit status is 0 if every test passed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "build" / "arm"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
CPU = "neoverse-n1"  # an Armv8.2 core with half precision and without SVE, as in Jetson Orin
SYSTEM = Path("/usr/aarch64-linux-gnu")  # libraries of Debian's cross compiler

# torch's wheel for Arm is built with CUDA. These files and their CUDA libraries suffice without a GPU.
WHEELS = {
    "torch": r"torch/(include/.*|lib/lib(torch_cpu|c10|gomp|gfortran|arm_compute|nvpl)[^/]*)",
    "cuda": r"nvidia/.*/lib(cudart|cupti)\.so[^/]*",
    "openvino": r"openvino/(include/.*|libs/[^/]*)",
}
# torch reads these files, and fails without an Arm CPU in them. qemu shows this machine's unless it finds others in
# the directory that -L names.
FILES = {
    "proc/cpuinfo": "".join(
        f"processor\t: {i}\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
        "lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\n"
        "CPU revision\t: 1\n\n"
        for i in range(2)
    ),
    "sys/devices/system/cpu/cpu0/regs/identification/midr_el1": "0x00000000413fd0c1\n",
}
# Sources of the tests that run the demo detector: each test takes up to minutes in the emulator, so only one of them
# runs. It compares the results with those in the bundle, which this machine computed.
BUNDLE_TESTS = ("*/test_bundle.cpp", "*/test_detector.cpp", "*/test_verify.cpp")
COMPARING_TEST = "a bundle matches its detector"
BACKENDS = ("torchscript", "openvino")  # it runs with each


def run(command: Sequence[str | Path], *, directory: Path = ROOT, variables: Mapping[str, str] | None = None) -> str:
    """Runs a command and returns its output. Exits with the end of the output if it fails."""
    words, environment = [str(word) for word in command], {**os.environ, **(variables or {})}
    done = subprocess.run(
        words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=directory, env=environment, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{shlex.join(words)} failed:\n{done.stdout[-30000:]}")
    return done.stdout


def download_wheels(requirement: str, directory: Path, *options: str) -> list[Path]:
    """Downloads the wheels of a requirement for 64-bit Arm and Python 3.11, and returns them."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 37)]
    run([
        *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version=311"),
        *("--platform=manylinux2014_aarch64", *platforms, *options, f"--dest={directory}", requirement),
    ])  # fmt: skip
    return sorted(directory.glob("*.whl"))


def cuda_of(torch: Path) -> str | None:
    """Returns the requirement of the CUDA libraries that a wheel's libtorch_cpu.so is linked with, if there are any."""
    with zipfile.ZipFile(torch) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        found = re.search(r"^Requires-Dist: cuda-toolkit\[.*\](==[\d.]+)", wheel.read(name).decode(), re.MULTILINE)
    return f"cuda-toolkit[cudart,cupti]{found[1]}" if found else None


def unpack(wheels: Sequence[Path], pattern: str, directory: Path) -> None:
    """Unpacks the wheels' files whose names match the pattern."""
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(directory, [name for name in wheel.namelist() if re.fullmatch(pattern, name)])


def packages_of(name: str) -> Path:
    """Returns the directory of the unpacked wheels of the environment's torch, with its CUDA libraries, or openvino."""
    version = metadata.version(name).partition("+")[0]
    place = DIRECTORY / f"{name}-{version}"
    if place.is_dir():
        return place
    print(f"{name} {version} for 64-bit Arm", flush=True)
    part, downloads = DIRECTORY / f"{name}.part", DIRECTORY / "downloads"
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(downloads, ignore_errors=True)
    wheels = download_wheels(f"{name}=={version}", downloads / name, "--no-deps")
    unpack(wheels, WHEELS[name], part)
    if name == "torch" and (cuda := cuda_of(wheels[0])) is not None:
        unpack(download_wheels(cuda, downloads / "cuda"), WHEELS["cuda"], part)
    shutil.rmtree(downloads)
    part.rename(place)
    return place


def debian_files() -> Path:
    """Returns the directory of the unpacked Debian packages with libcrypto for Arm and its headers.

    apt gets lists and a status of its own, so that the machine's stay as they are.
    """
    place = DIRECTORY / "debian"
    if place.is_dir():
        return place
    print("libcrypto for 64-bit Arm", flush=True)
    part, apt = DIRECTORY / "debian.part", DIRECTORY / "apt"
    for path in (part, apt):
        shutil.rmtree(path, ignore_errors=True)
    for path in (part, apt / "lists" / "partial", apt / "archives" / "partial"):
        path.mkdir(parents=True)
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State": apt,
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt,
    }
    options = [f"-o={key}={value}" for key, value in settings.items()]
    run(["apt-get", *options, "update"])
    run(["apt-get", *options, "download", "libssl3", "libssl-dev"], directory=apt)
    for package in apt.glob("*.deb"):
        run(["dpkg-deb", "-x", package, part])
    shutil.rmtree(apt)
    part.rename(place)
    return place


def system_files() -> Path:
    """Returns the directory with the files that programs see in place of this machine's."""
    system = DIRECTORY / "system"
    for name, text in FILES.items():
        (system / name).parent.mkdir(parents=True, exist_ok=True)
        (system / name).write_text(text)
    if not (system / "lib").is_symlink():
        (system / "lib").symlink_to(SYSTEM / "lib")
    return system


def doctest_include() -> Path:
    """Returns a directory with only doctest's header, because /usr/include also has those of this machine's glibc."""
    place = DIRECTORY / "doctest"
    place.mkdir(exist_ok=True)
    if not (place / "doctest").is_symlink():
        (place / "doctest").symlink_to("/usr/include/doctest")
    return place


def library_directories() -> list[Path]:
    """Returns the directories of the libraries that libtorch_cpu.so and libhybrid_rt.so are linked with."""
    torch = packages_of("torch")
    cuda = sorted({path.parent for path in (torch / "nvidia").rglob("*.so*")})
    return [torch / "torch" / "lib", *cuda, debian_files() / "usr" / "lib" / "aarch64-linux-gnu"]


def build(*, is_release: bool) -> Path:
    """Builds the library, its plug-ins and the C++ tests for Arm, and returns the build directory.

    Args:
        is_release: Optimizes like a release.
    """
    debian = debian_files()
    options: dict[str, object] = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "tools" / "dev" / "aarch64.cmake",
        "CMAKE_FIND_ROOT_PATH": debian,
        "CMAKE_CXX_STANDARD_INCLUDE_DIRECTORIES": debian / "usr" / "include" / "aarch64-linux-gnu",
        "CMAKE_EXE_LINKER_FLAGS": " ".join(f'"-Wl,-rpath-link,{path}"' for path in library_directories()),
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_UNITY_BUILD": "ON",
        "CMAKE_UNITY_BUILD_BATCH_SIZE": 40,  # two translation units of the library, for two cores
        "HYBRID_RT_TORCH_FOLDER": packages_of("torch") / "torch",
        "HYBRID_RT_BACKENDS": ";".join(BACKENDS),
        "HYBRID_RT_OPENVINO_INCLUDE": packages_of("openvino") / "openvino" / "include",
        "HYBRID_RT_TESTS": "library",
        "HYBRID_RT_BUILD_TESTS": "ON",
        "HYBRID_RT_BUILD_APPS": "OFF",
        "HYBRID_RT_BUILD_CUDA": "OFF",
        "HYBRID_RT_BUILD_PYTHON": "OFF",
        "HYBRID_RT_WERROR": "ON",
        "DOCTEST_INCLUDE_DIR": doctest_include(),
        "Python_EXECUTABLE": sys.executable,
    }
    if not is_release:
        options["CMAKE_CXX_FLAGS_RELEASE"] = "-O1 -DNDEBUG"
    place = DIRECTORY / ("release" if is_release else "build")
    run(["cmake", "-S", ROOT, "-B", place, "-G", "Ninja", *(f"-D{key}={value}" for key, value in options.items())])
    run(["cmake", "--build", place])
    return place


def test(program: Path, variables: Mapping[str, str], *options: str) -> str:
    """Runs C++ tests in the emulator, with doctest's options. Returns what they print."""
    search = ":".join(str(path) for path in library_directories())
    emulator: list[str | Path] = [EMULATOR, "-L", system_files(), "-cpu", CPU, "-E", f"LD_LIBRARY_PATH={search}"]
    return run([*emulator, program, "--duration=true", *options], variables=variables)


def test_bundle() -> Path:
    """Returns the bundle that the tests load, made by the installed package."""
    path = DIRECTORY / "digits.pt"
    run([sys.executable, "-m", "tools.dev.make_test_bundle", path])
    return path


def run_tests(bundle: Path | None = None, *, is_all: bool) -> str:
    """Builds everything and runs the tests.

    Args:
        bundle: The demo detector's bundle. `None` creates it.
        is_all: Runs all C++ tests of the library instead of those that do not take minutes.

    Returns:
        What the tests print.
    """
    for program in (COMPILER, EMULATOR):
        if shutil.which(program) is None:
            sys.exit(f"{program}: expected it, got none. Run tools/setup --tests, which installs it.")
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    tests = build(is_release=is_all) / "bin" / "hybrid_rt_tests"
    [openvino] = (packages_of("openvino") / "openvino" / "libs").glob("libopenvino_c.so*")
    variables = {
        "HYBRID_RT_TEST_BUNDLE": str(bundle or test_bundle()),
        "HYBRID_RT_OPENVINO_LIBRARY": str(openvino),
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads would take the cores from the others
    }
    if is_all:
        return test(tests, variables)
    return test(tests, variables, f"--source-file-exclude={','.join(BUNDLE_TESTS)}") + "".join(
        test(tests, {**variables, "HYBRID_RT_BACKEND": backend}, f"--test-case={COMPARING_TEST}")
        for backend in BACKENDS
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="run all C++ tests of the library, which takes long")
    print(run_tests(is_all=parser.parse_args().all))


if __name__ == "__main__":
    main()
