"""Creates a root directory with only glibc's libraries and busybox, to test that programs need nothing else."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SECONDS = 120.0

PYTHON = "/usr/bin/python3"
"""The path of the interpreter that `add_python` copies."""


@dataclass(frozen=True, kw_only=True)
class BareRoot:
    """A directory in which commands run as if it were the whole machine.

    Attributes:
        root: The directory.
        shared: Directories of this machine by their paths in the root, read-only.
    """

    root: Path
    shared: Mapping[str, Path] = field(default_factory=dict)

    def command(
        self, command: Sequence[str], environment: Mapping[str, str], user: str = "0:0", *, read_only: bool = False
    ) -> list[str]:
        """Returns the command that runs another command in the root, with /proc and /sys as in a container."""
        root = shlex.quote(str(self.root))
        # The mounts are visible only to this process and end with it.
        prepare = [f"mount --bind {root} {root}", f"mount -o remount,bind,ro {root}"] if read_only else []
        prepare += [f"mount -t proc proc {root}/proc", f"mount --rbind -o ro /sys {root}/sys"]
        prepare += [f"mount --bind -o ro {shlex.quote(str(own))} {root}{there}" for there, own in self.shared.items()]
        variables = [f"{name}={value}" for name, value in {"PATH": "/bin", **environment}.items()]
        inside = shlex.join(["chroot", f"--userspec={user}", str(self.root), "/bin/env", "-i", *variables, *command])
        script = " && ".join([*prepare, f"exec {inside}"])
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]

    def run(self, *command: str, user: str = "0:0", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(command, environment, user), capture_output=True, text=True, timeout=SECONDS, check=False
        )


def _why_no_bare_root() -> str:
    """Returns the reason why this machine can't create one, or ""."""
    if os.geteuid() != 0:
        return "chroot and mount need root"
    lacking = [name for name in ("busybox", "chroot", "unshare", "dpkg-query") if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (tools/debian/tests.txt)"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "sh", "-c", "mount -t proc proc /proc"],
        capture_output=True,
        text=True,
    )
    return f"no namespace of its own can be had: {tried.stderr.strip()}" if tried.returncode else ""


needs_bare_root = pytest.mark.skipif(bool(_why_no_bare_root()), reason=_why_no_bare_root())


def make_bare_root(root: Path) -> None:
    """Fills an empty directory with glibc's libraries and busybox."""
    root.chmod(0o755)  # for users other than root
    for directory in ("bin", "opt", "proc", "sys", "tmp"):
        (root / directory).mkdir()
    shutil.copy(str(shutil.which("busybox")), root / "bin" / "busybox")
    subprocess.run(["chroot", root, "/bin/busybox", "--install", "-s", "/bin"], check=True)
    listed = subprocess.run(["dpkg-query", "-L", "libc6"], capture_output=True, text=True, check=True).stdout
    _copy(root, (path for path in map(Path, listed.splitlines()) if ".so" in path.name and path.is_file()))


def _copy(root: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        target = root / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(path, target)


def add_python(root: Path) -> None:
    """Copies this interpreter, its standard library and the libraries that they are linked to, except OpenSSL's.

    Tk's module is left out, because it would bring libpng. libstdc++ and libgcc, which torch loads from the system, are
    copied too.
    """
    interpreter = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    library = Path(sysconfig.get_path("stdlib"))
    left_out = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "config-*", "_ssl.*", "_hashlib.*", "_tkinter.*"
    )
    shutil.copytree(library, root / library.relative_to("/"), ignore=left_out, symlinks=True)
    _copy(root, [interpreter])
    (root / PYTHON[1:]).parent.mkdir(parents=True, exist_ok=True)
    (root / PYTHON[1:]).symlink_to(interpreter)
    extensions = [*root.joinpath(library.relative_to("/"), "lib-dynload").glob("*.so")]
    linked = subprocess.run(["ldd", interpreter, *extensions], capture_output=True, text=True, check=True).stdout
    cache = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    places = {*re.findall(r" => (/\S+) \(0x", linked)}
    places |= {*re.findall(r"x86-64\) => (/\S+/lib(?:stdc\+\+\.so\.6|gcc_s\.so\.1))$", cache, re.MULTILINE)}
    _copy(root, map(Path, sorted(places)))
