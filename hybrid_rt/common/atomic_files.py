"""Writes files atomically: to a temporary file in the same directory, which is then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import BundleError

# Not the file's own name with a suffix: that name may already have the maximum length.
TEMPORARY_PREFIX = ".hybrid_rt-"
"""Prefix of the names of temporary files and directories."""

_LEFTOVER_SECONDS = 24 * 3600
"""Age in seconds above which a temporary file must belong to a process that was killed."""


@contextmanager
def named_if_refused(
    scope: str, directory: Path, expected: str, remedy: str = "Check the free space and the permissions."
) -> Iterator[None]:
    """Converts an error of the system within the block to one that names the directory.

    Args:
        scope: part of hybrid_rt, for the error.
        directory: the directory that the block writes.
        expected: what the block does: "to write the model".
        remedy: what the user can do.

    Raises:
        BundleError: The system refuses.
    """
    try:
        yield
    except OSError as error:
        got = error.strerror or str(error)
        raise BundleError.make(scope, str(directory), expected=expected, got=got, remedy=remedy) from error


def _not_writable(path: Path, reason: str, remedy: str = "") -> BundleError:
    return BundleError.make(
        "bundle",
        str(path),
        expected="to write the file",
        got=reason,
        remedy=remedy or "Check the free space and the permissions.",
    )


def _place_of(path: Path) -> Path:
    """Returns the file that a path refers to, after resolving all symbolic links.

    Raises:
        BundleError: The path is a directory or device, which must not be replaced.
        OSError: The path can't be resolved.
    """
    try:
        place = path.resolve() if path.is_symlink() else path
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return place
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return path  # check_writable() reports the maximum length
        raise
    except RuntimeError as error:  # links in a circle, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
    if stat.S_ISREG(mode):
        return place
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise _not_writable(
        path, f"{kinds.get(stat.S_IFMT(mode), 'a device')} of that name", "Pass the path of a regular file."
    )


def check_writable(path: Path) -> None:
    """Checks before long work that ``path`` can be written.

    Raises:
        BundleError: It can't be written.
    """
    try:
        place = _place_of(path)
        if not place.parent.is_dir():
            raise _not_writable(path, f"no directory {place.parent}")
        if len(os.fsencode(place.name)) > (longest := os.pathconf(place.parent, "PC_NAME_MAX")):
            raise _not_writable(path, f"a name of more than {longest} bytes")
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=place.parent)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise _not_writable(path, error.strerror or str(error)) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path with the same name as ``path``, and moves it to ``path`` if the block succeeds.

    A symbolic link is kept, and its target is written. An old file's permissions are kept, and so is its owner where
    this process may set it.

    Raises:
        BundleError: The file can't be written.
    """
    try:
        place = _place_of(path)
        _remove_leftovers(place.parent)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=place.parent) as directory:
            temporary = Path(directory) / place.name
            yield temporary
            _take_permissions(temporary, place)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(place)
    except OSError as error:
        raise _not_writable(path, error.strerror or str(error)) from error


def _take_permissions(temporary: Path, old: Path) -> None:
    try:
        kept = old.stat()
    except FileNotFoundError:
        return
    for owner in (kept.st_uid, -1):  # only root may give a file away; the group may be one that this user is in
        with suppress(PermissionError):
            os.chown(temporary, owner, kept.st_gid)
            break
    temporary.chmod(stat.S_IMODE(kept.st_mode))


def _remove_leftovers(directory: Path) -> None:
    """Removes temporary files of processes that were killed."""
    oldest = time.time() - _LEFTOVER_SECONDS
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY_PREFIX) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
