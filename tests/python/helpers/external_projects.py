"""Builds and runs the third-party projects in tests/: a service in C++, and an out-of-tree backend."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

import hybrid_rt

TESTS = Path(__file__).parents[2]
DOWNSTREAM = TESTS / "downstream"
OUT_OF_TREE = TESTS / "out_of_tree_backend"
# The environment's cmake, ninja and ccache take precedence.
SEARCH_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def run(*command: str | Path, directory: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=directory,
        env={**os.environ, "PATH": SEARCH_PATH, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*command: str | Path, **environment: str) -> str:
    """Runs a command that has to succeed, and returns its stdout."""
    result = run(*command, directory=None, **environment)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def configure(project: Path, build: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = shutil.which("ccache", path=SEARCH_PATH)
    return run(
        "cmake", "-G", "Ninja", "-S", project, "-B", build, "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_PREFIX_PATH={hybrid_rt.cmake_prefix_path}",
        *([f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []),
        *arguments,
    )  # fmt: skip


def build_project(project: Path, build: Path) -> Path:
    configured = configure(project, build)
    assert configured.returncode == 0, configured.stderr
    succeed("cmake", "--build", build)
    return build


def image_arguments(image: Tensor, path: Path) -> tuple[str, str, str]:
    """Returns an image as the programs' arguments: a raw file, which is written to `path`, height, width."""
    path.write_bytes(image.contiguous().numpy().tobytes())
    return str(path), str(image.shape[1]), str(image.shape[2])


def run_any_detector(program: Path, bundle: Path, images: Sequence[Tensor], directory: Path) -> dict[str, list[float]]:
    """Runs tests/downstream's any_detector, and returns the values of each tensor that it finds, by position.

    Args:
        program: The built program.
        bundle: The bundle.
        images: Images, [C, H, W] each if passed as a list, or [1, C, H, W] each if passed as separate arguments.
        directory: Directory for the images' files.
    """
    mode = "list" if images[0].dim() == 3 else "batches"
    words = []
    for i, image in enumerate(images):
        path = directory / f"{i}.raw"
        path.write_bytes(image.contiguous().numpy().tobytes())
        words += [str(path), *(str(size) for size in image.shape[-3:])]
    lines = [line.split() for line in succeed(program, bundle, mode, *words).splitlines()]
    return {place: [float(word) for word in values] for place, *values in lines}
