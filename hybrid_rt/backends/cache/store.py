"""Stores compiled artifacts on disk, keyed by the content that they depend on, so that a segment is compiled once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock

from ...common.atomic_files import atomic_write
from ...common.errors import CaptureError, HybridRTError, OptionError
from ...common.specs import PRECISIONS, Artifact
from ...torchscript.graph_digest import NoDigest
from .. import registry
from . import artifact_file
from .directory import cache_directory

if TYPE_CHECKING:
    from ...capture.program import Program
    from ..base import Backend

SUFFIX = ".artifact"
DEFAULT_BOUND = 5 * 1024**3

COMPILE_SECONDS = 600.0
"""Longest wait for another process that compiles the same artifact; then this process compiles it too."""

EVICT_SECONDS = 10.0
"""Longest wait for another process that evicts entries; then this process leaves it to that one."""

ABANDONED_SECONDS = 3600.0
"""Age at which a partly written entry must belong to a process that was killed."""


@dataclass(frozen=True)
class Entry:
    """One artifact on disk; ``size`` in bytes; ``made`` and ``used`` in seconds since 1970.

    ``segment`` is the name that it had when it was compiled. A damaged file has empty names.
    """

    path: Path
    segment: str
    backend: str
    precision: str
    size: int
    made: float
    used: float


def bound() -> int:
    """Returns the size limit of all entries in bytes: $HYBRID_RT_CACHE_SIZE; 0 turns the cache off.

    Raises:
        OptionError: The variable is not a size.
    """
    text = os.environ.get("HYBRID_RT_CACHE_SIZE")
    if not text:
        return DEFAULT_BOUND
    size = size_from(text)
    if size is None:
        raise OptionError.make(
            "cache",
            "HYBRID_RT_CACHE_SIZE",
            expected="a number of bytes, or one with K, M, G or T, such as 5G",
            got=f"'{text}'",
            remedy="Set 0 to turn the cache off.",
        )
    return size


def size_from(text: str) -> int | None:
    """Parses a size such as "5G" or "512 MiB" to bytes; returns None for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else None


Compile = Callable[["Backend", "Program", str], Artifact]


def _compile_here(backend: Backend, program: Program, precision: str) -> Artifact:
    return backend.compile(program, precision)


compiler: ContextVar[Compile] = ContextVar("compiler", default=_compile_here)
"""The function that compiles a segment that the cache lacks; a conversion replaces it to compile in another process."""


def get_or_compile(backend: Backend, program: Program, precision: str) -> tuple[Artifact, bool]:
    """Returns the result of ``backend.compile``, and whether it came from the cache.

    If the directory or an entry is unusable, the artifact is compiled. A directory that can't be written gives a
    warning.

    Raises:
        OptionError: $HYBRID_RT_CACHE_SIZE is not a size.
        BackendError: The vendor's compiler refuses.
        CaptureError: The segment can't be captured in the form that the compiler needs.
    """
    largest = bound()
    if largest == 0:
        return compiler.get()(backend, program, precision), False
    try:
        key = key_of(backend, program, precision)
        path = cache_directory() / f"{key}{SUFFIX}"
    except (NoDigest, CaptureError):  # not every compiler needs the traced graph
        return compiler.get()(backend, program, precision), False
    except OptionError as error:
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)
        return compiler.get()(backend, program, precision), False
    artifact = _read(path)
    if artifact is not None:
        return artifact, True
    with _locked(path.parent, key[:2], COMPILE_SECONDS):
        artifact = _read(path)  # another process may have made it meanwhile
        if artifact is not None:
            return artifact, True
        artifact = compiler.get()(backend, program, precision)
        _store(path, artifact, program.name, largest)
    return artifact, False


def holds(key: str) -> bool:
    """Returns true if the cache has an entry; ``key``: see :func:`key_of`."""
    try:
        return bound() > 0 and (cache_directory() / f"{key}{SUFFIX}").exists()
    except OptionError:
        return False


def key_of(backend: Backend, program: Program, precision: str) -> str:
    """Returns the digest of everything that the artifact depends on.

    Raises:
        NoDigest: The segment contains an object whose content can't be read.
        CaptureError: The segment can't be traced.
    """
    ingredients = {
        "format": artifact_file.FORMAT,
        "graph and weights": program.digest,
        "inputs": [asdict(spec) for spec in program.inputs],
        "outputs": [asdict(spec) for spec in program.outputs],
        "structure": [repr((dict(member.inputs), member.output)) for member in program.members],
        "precision": precision,
        "backend": [backend.name, type(backend).__qualname__, backend.target, backend.availability().version],
        "code": _code_digest(type(backend).__module__),
        "torch": torch.__version__,
        # A compiler may use properties of this machine, while several machines may share one home directory.
        "machine": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "options": dict(backend.options()),
        "calibration": program.calibration_digest if PRECISIONS[precision].needs_calibration else "",
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code_digest(module: str) -> str:
    """Digests hybrid_rt's own code and the backend's, because another compile half may produce other artifacts."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[2].rglob("*.py")):
        digest.update(file.read_bytes())
    with contextlib.suppress(OSError, TypeError, KeyError):  # no source at hand
        digest.update(inspect.getsource(sys.modules[module]).encode())
    return digest.hexdigest()


def entries() -> list[Entry]:
    """Returns all entries, the most recently used first.

    Raises:
        OptionError: The cache has no directory, see :func:`cache_directory`.
    """
    found = []
    for path in _files(cache_directory()):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process removed it
            continue
        try:
            header = artifact_file.read_header(path)
        except (OSError, ValueError):
            header = {"segment": "", "made": status.st_mtime, "spec": {"backend": "", "precision": ""}}
        spec = header["spec"]
        found.append(
            Entry(
                path=path,
                segment=header["segment"],
                backend=spec["backend"],
                precision=spec["precision"],
                size=status.st_size,
                made=header["made"],
                used=status.st_mtime,
            )
        )
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def clear() -> list[Entry]:
    """Removes all entries and the backends' directories beside them; returns the removed entries.

    Raises:
        OptionError: The cache has no directory, or an entry can't be removed.
    """
    removed = []
    for entry in entries():
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise OptionError.make(
                "cache", str(entry.path), expected="to remove the file", got=error.strerror or str(error)
            ) from error
        removed.append(entry)
    _remove_half_written(cache_directory(), older_than=ABANDONED_SECONDS)
    for name in registry.cache_directories():
        shutil.rmtree(cache_directory() / name, ignore_errors=True)
    return removed


def _files(place: Path) -> list[Path]:
    """Returns the entries' files; other files in the directory are never touched."""
    try:
        return [path for path in place.iterdir() if re.fullmatch(rf"[0-9a-f]{{64}}\{SUFFIX}", path.name)]
    except OSError:
        return []


@contextlib.contextmanager
def _locked(place: Path, name: str, seconds: float) -> Iterator[bool]:
    """Holds one of the directory's locks within the block; yields false if it is not available in time."""
    lock = FileLock(place / ".locks" / name)
    with contextlib.suppress(OSError, NotImplementedError):  # a Timeout is an OSError
        (place / ".locks").mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _read(path: Path) -> Artifact | None:
    """Returns the artifact of an entry; removes a damaged entry."""
    try:
        artifact = artifact_file.read(path, key=path.stem)
    except OSError:
        return None
    except ValueError:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the file's time is that of the last use
    return artifact


def _store(path: Path, artifact: Artifact, segment: str, largest: int) -> None:
    """Writes an entry and evicts others beyond the bound; a directory that can't be written gives a warning."""
    if artifact.size > largest:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            artifact_file.write(temporary, artifact, key=path.stem, segment=segment)
    except (OSError, HybridRTError) as error:
        cause = error.__cause__ or error
        problem = OptionError.make(
            "cache",
            f"directory {path.parent}",
            expected="to write an entry",
            got=getattr(cause, "strerror", None) or str(cause),
            remedy="Nothing is kept for the next conversion. Set HYBRID_RT_CACHE to a directory, or set "
            "HYBRID_RT_CACHE_SIZE=0.",
        )
        warnings.warn(str(problem), RuntimeWarning, stacklevel=3)
        return
    _evict(path.parent, largest)


def _evict(place: Path, largest: int) -> None:
    """Removes the least recently used entries until the others fit the bound."""
    with _locked(place, "evict", EVICT_SECONDS) as locked:
        if not locked:
            return
        _remove_half_written(place, older_than=ABANDONED_SECONDS)
        known = []
        for path in _files(place):
            with contextlib.suppress(OSError):
                status = path.stat()
                known.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in known)
        for _, size, path in sorted(known):
            if total <= largest:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def _remove_half_written(place: Path, older_than: float) -> None:
    """Removes the temporary directories of processes that were killed, see ``files.atomic_write``."""
    with contextlib.suppress(OSError):
        for path in place.glob(f".*{SUFFIX}.*"):
            if time.time() - path.stat().st_mtime > older_than:
                shutil.rmtree(path, ignore_errors=True)
