"""The first file that a compiler's process runs: it prepares the process, then serves the conversion that started it.

    python start.py DESCRIPTOR PARENT PATH...

DESCRIPTOR is the socket to the parent, PARENT the parent's process, PATH... its ``sys.path``. The user's program is
never imported.
"""

import sys

descriptor, parent = map(int, sys.argv[1:3])
sys.path[:] = sys.argv[3:]  # before any further import: this file's own directory was the first entry
del sys.argv[1:]

import ctypes  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402


def end_with(parent: int) -> None:
    """Makes the kernel end this process when the parent ends, for whatever reason."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


if __name__ == "__main__":
    end_with(parent)
    from hybrid_rt.conversion.isolation.worker import serve

    serve(descriptor)
