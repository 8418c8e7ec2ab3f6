"""Packs everything that tools/gpu_check needs on a machine with a GPU and no network.

This includes wheels for that machine's Python, headers and libraries of Debian packages, TensorRT's headers, and
TensorRT-RTX's library, which is compressed and split so that each part stays below a size limit. Every file is listed
with its SHA-256. tools/gpu_check --pack copies a part to a directory that outlives the call, and joins the library once
all of its pieces are there.

Needs the network, `xz`, and for Debian's packages `apt-get` and `dpkg-deb`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tools.gpu.unpack import MANIFEST

ROOT = Path(__file__).resolve().parents[2]

WHEELS = ("nlohmann-json", "kernel-lens", "pycocotools", "tensorrt-rtx-cu13-bindings")
LIBRARY = "tensorrt-rtx-cu13-libs"
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (35, 31, 28, 27, 24, 17, 5)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
DEBIAN = (
    "libssl-dev",
    "libssl3",
    "libcli11-dev",
    "libjpeg62-turbo-dev",
    "libjpeg62-turbo",
    "libpng-dev",
    "libpng16-16",
    "zlib1g-dev",
    "libstb-dev",
    "ccache",
    "doctest-dev",
    "libhiredis0.14",
)
"""Build dependencies, apart from a C++ compiler, of the library, two of the programs and the tests."""


MINUTES_OF_THE_LAST_CALL = 8
"""Minutes, of twelve; starting the machine and the first call, which builds, take the rest."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the parts and prints the calls to make."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "gpu_pack", help="for the parts, one directory each"
    )
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="that machine's")
    parser.add_argument("--part-mib", type=int, default=44, help="the largest part, the checkout not counted")
    parser.add_argument("--headers", type=Path, help="TensorRT's include/ directory (default: each in third_party/)")
    parser.add_argument(
        "--no-library", action="store_true", help="leave out TensorRT-RTX's library: H100, H200 and B200 do not run it"
    )
    parser.add_argument("--cache", type=Path, help="directory of the compiler cache that tools/gpu_check --keep left")
    options = parser.parse_args(arguments)
    if options.part_mib < 1:
        parser.error("--part-mib: expected at least 1")
    shutil.rmtree(options.output, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
        files = [_collect(Path(directory), options.python, options.headers, options.cache)]
        if not options.no_library:
            files.append(_library(Path(directory), options.python))
        parts = _write_parts(files, options.output, options.part_mib << 20)
    for i, (part, call) in enumerate(zip(parts, _calls(parts), strict=True), 1):
        size = sum(file.stat().st_size for file in part.iterdir()) / (1 << 20)
        print(f"call {i}: carry {part} ({size:.1f} MiB), run: {call}")
    return 0


def _calls(parts: Sequence[Path]) -> list[str]:
    """Returns the command for each part. The first call builds; the last one has everything and measures."""
    if len(parts) == 1:
        return [f"tools/gpu_check --pack {parts[0]}"]
    calls = [f"tools/gpu_check --pack {part} --no-build --only nothing" for part in parts]
    calls[0] = f"tools/gpu_check --pack {parts[0]} --only doctor"
    calls[-1] = f"tools/gpu_check --pack {parts[-1]} --no-build --minutes {MINUTES_OF_THE_LAST_CALL}"
    return calls


def _collect(directory: Path, python: str, headers: Path | None, cache: Path | None) -> Path:
    """Returns the archive of everything that is small."""
    tree = directory / "tree"
    wheels = tree / "wheels"
    wheels.mkdir(parents=True)
    _download(WHEELS, wheels, python)
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        debian = directory / "debian"
        debian.mkdir()
        subprocess.run(["apt-get", "download", "-q", *DEBIAN], cwd=debian, check=True, capture_output=True)
        for package in sorted(debian.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(tree / "root")], check=True)
        for unread in ("usr/share/doc", "usr/share/man", "usr/lib/x86_64-linux-gnu/libcrypto.a"):
            path = tree / "root" / unread
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    sources = [headers] if headers else sorted(path for path in (ROOT / "third_party").glob("*") if path.is_dir())
    for source in sources:
        shutil.copytree(source, tree / "third_party" / source.name)
    if cache:
        with subprocess.Popen(["tar", "-C", str(tree), "-xf", "-"], stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            for piece in sorted(cache.glob("ccache.tar.*")):
                process.stdin.write(piece.read_bytes())
    small = directory / "tools.tar.xz"
    subprocess.run(["tar", "-C", str(tree), "-cJf", str(small), "."], check=True)
    return small


def _download(packages: Sequence[str], directory: Path, python: str) -> None:
    """Downloads wheels for the other machine's Python, without what they depend on."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    pip += ["--python-version", python, "--implementation", "cp"]
    pip += [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    subprocess.run([*pip, "--dest", str(directory), *packages], check=True)


def _library(directory: Path, python: str) -> Path:
    """Returns the archive of TensorRT-RTX's library, which takes minutes to compress."""
    _download([LIBRARY], directory, python)
    library = directory / "library"
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        wheel.extractall(library)
    packed = directory / "tensorrt_rtx.tar.xz"
    tar = ["tar", "-C", str(library), "--use-compress-program", "xz --threads=0 --x86 --lzma2=preset=9e,dict=192MiB"]
    subprocess.run([*tar, "-cf", str(packed), "."], check=True)
    return packed


def _write_parts(files: Sequence[Path], output: Path, limit: int) -> list[Path]:
    """Writes the files consecutively into parts of limited size. Each part lists its own pieces and all parts."""
    pieces: list[list[tuple[str, bytes]]] = [[]]
    room = limit
    for file in files:
        content, offset, number = file.read_bytes(), 0, 0
        while offset < len(content):
            if room == 0:
                pieces.append([])
                room = limit
            piece = content[offset : offset + room]
            pieces[-1].append((f"{file.name}.{number:02}", piece))
            offset, number, room = offset + len(piece), number + 1, room - len(piece)
    manifest = {name: hashlib.sha256(piece).hexdigest() for part in pieces for name, piece in part}
    directories = []
    for i, part in enumerate(pieces, 1):
        directory = output / str(i)
        directory.mkdir(parents=True)
        for name, piece in part:
            (directory / name).write_bytes(piece)
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        directories.append(directory)
    return directories


if __name__ == "__main__":
    sys.exit(main())
