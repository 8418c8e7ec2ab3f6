"""The first file that a compiler's process runs: it becomes a process of this conversion, and serves it.

    python start.py DESCRIPTOR PARENT PATH...

DESCRIPTOR is the socket to the parent, PARENT the parent's process, PATH... its ``sys.path``. Only the parts of this
package that compilers need are imported, not ``hybrid_rt/__init__.py``: that takes half of the time. The user's program
is never imported.
"""

import sys

descriptor, parent = map(int, sys.argv[1:3])
sys.path[:] = sys.argv[3:]  # before any further import: this file's own folder was the first entry
del sys.argv[1:]

import importlib.util  # noqa: E402
import os  # noqa: E402
from typing import Any  # noqa: E402


def end_with(parent: int) -> None:
    """Makes the kernel end this process when the parent ends, however that comes."""
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def import_package() -> None:
    """Makes ``hybrid_rt`` known without running its ``__init__.py``, until someone asks for a name of it."""
    spec = importlib.util.find_spec("hybrid_rt")
    assert spec is not None
    assert spec.loader is not None
    package: Any = importlib.util.module_from_spec(spec)
    loader = spec.loader

    def look_up(name: str) -> Any:
        if name.startswith("__") or importlib.util.find_spec(f"hybrid_rt.{name}") is not None:
            raise AttributeError(name)  # a module of the package: the import statement then finds it
        del package.__getattr__
        loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = look_up
    sys.modules["hybrid_rt"] = package


if __name__ == "__main__":
    end_with(parent)
    import_package()
    from hybrid_rt.conversion.isolation.worker import serve

    serve(descriptor)
