"""Files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BundleError

# Not the file's own name with an ending: that may have as many bytes as a name can have.
_PREFIX = ".hybrid_rt-"


def _not_writable(path: Path, reason: str) -> BundleError:
    return BundleError.make(
        "bundle",
        str(path),
        expected="to write the file",
        got=reason,
        remedy="Is there room on the disk, and may this user write there?",
    )


def check_writable(path: Path) -> None:
    """Finds out before long work whether ``path`` can be written.

    Raises:
        BundleError: it can't.
    """
    if not path.parent.is_dir():
        raise _not_writable(path, f"no folder {path.parent}")
    if len(os.fsencode(path.name)) > (longest := os.pathconf(path.parent, "PC_NAME_MAX")):
        raise _not_writable(path, f"a name of more than {longest} bytes")
    if path.is_dir():
        raise _not_writable(path, "a folder of that name")
    try:
        handle, name = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise _not_writable(path, error.strerror or str(error)) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path of the same name, beside ``path``; moves it to ``path`` if the block ends well.

    Raises:
        BundleError: the file can't be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
    except OSError as error:
        raise _not_writable(path, error.strerror or str(error)) from error
