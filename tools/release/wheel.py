"""Builds a wheel for release, for this environment's torch and Python.

The wheel has the programs and plug-ins, and the Debian libraries that they are linked to (copied by auditwheel). Its
version ends in its torch, for example 0.1.0+torch2.14, and it requires that torch. See docs/release.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from hybrid_rt.common.errors import HybridRTError
from tools.release import wheel_files
from tools.release.commands import succeed

ROOT = Path(__file__).resolve().parents[2]

FROM_TORCH = ("libtorch*", "libc10*", "libshm*", "libgomp.so*")
"""Libraries that torch brings. A process must have only one copy of each, including libgomp with its threads."""


def build(output: Path, source: Path | None = None) -> Path:
    """Builds the wheel.

    Args:
        output: Directory to write to. It is created if it is missing.
        source: A wheel of this environment from `pip wheel`; None builds it.

    Returns:
        Path of the wheel.

    Raises:
        BackendError: A step failed.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_wheel_") as temporary:
        directory = Path(temporary)
        built = source or _pip_wheel(directory / "built")
        return _finish(_repair(_prepare(built, directory), directory / "repaired"), directory / "finished", output)


def _pip_wheel(directory: Path) -> Path:
    # Without isolation, because the wheel is for this environment's torch, and to reuse what tools/setup compiled.
    options = ("--disable-pip-version-check", "--no-build-isolation", "--no-deps")
    succeed("python", "-m", "pip", "wheel", *options, "--wheel-dir", directory, ROOT)
    [wheel] = directory.glob("*.whl")
    return wheel


def _unpack(wheel: Path, directory: Path) -> Path:
    succeed("python", "-m", "wheel", "unpack", "--dest", directory, wheel)
    [unpacked] = directory.iterdir()
    return unpacked


def _pack(unpacked: Path, directory: Path, *options: str) -> Path:
    """Packs a directory as the only wheel of a new directory."""
    directory.mkdir()
    succeed("python", "-m", "wheel", "pack", "--dest-dir", directory, *options, unpacked)
    [packed] = directory.glob("*.whl")
    return packed


def _prepare(built: Path, directory: Path) -> Path:
    """Names the torch in the version and the requirements, and moves the programs into the package."""
    torch = ".".join(metadata.version("torch").split(".")[:2])
    openvino = metadata.version("openvino").split(".")[0]
    unpacked = _unpack(built, directory / "unpacked")
    wheel_files.pin_requirements(unpacked, {"torch": f"=={torch}.*", "openvino": f"=={openvino}.*"})
    wheel_files.move_programs(unpacked, torch)
    wheel_files.check_library_paths(unpacked)
    [data] = unpacked.glob("*.data")
    data.rename(data.with_name(f"{data.stem}+torch{torch}.data"))
    return _pack(unpacked, directory / "prepared", "--local-version", f"torch{torch}")


def _repair(wheel: Path, directory: Path) -> Path:
    """Copies the libraries of Debian that the binaries are linked to into the wheel."""
    excluded = [part for name in FROM_TORCH for part in ("--exclude", name)]
    succeed("python", "-m", "auditwheel", "repair", *excluded, "--wheel-dir", directory, wheel)
    [repaired] = directory.glob("*.whl")
    return repaired


def _finish(repaired: Path, directory: Path, output: Path) -> Path:
    """Adds the licences and the bill of materials, and writes the wheel to the output directory."""
    directory.mkdir()
    unpacked = _unpack(repaired, directory / "repaired")
    wheel_files.add_zlib(unpacked)
    wheel_files.check_library_paths(unpacked)
    wheel_files.write_bill(unpacked, wheel_files.add_licences(unpacked))
    finished = _pack(unpacked, directory / "packed")
    return Path(shutil.move(finished, output / finished.name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the wheel and prints its path; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools/wheel", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="directory for the wheel (default: dist)")
    parser.add_argument("--source", type=Path, help="a wheel that `pip wheel` built in this environment")
    options = parser.parse_args(arguments)
    try:
        wheel = build(options.output, options.source)
    except HybridRTError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{wheel} ({wheel.stat().st_size / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
