"""Defines the version (pyproject.toml and CMake read it here), and checks which torch a build is for."""

from importlib.util import find_spec
from pathlib import Path

from .errors import BackendError

__version__ = "0.1.0"


def built_for_torch(package: str) -> str:
    """Returns "MAJOR.MINOR" of the torch that the native library was built for, without loading it.

    Args:
        package: Name of the package that contains the library.

    Returns:
        The version; empty if there is no library, or if an older one does not record it.
    """
    spec = find_spec(f"{package}._native")
    if spec is None or spec.origin is None:
        return ""
    recorded = Path(spec.origin).parent / "lib" / "torch_version.txt"
    return recorded.read_text().strip() if recorded.is_file() else ""


def another_torch(here: str, built_for: str) -> BackendError | None:
    """Compares two versions of torch up to the minor version, because each minor version needs its own binary.

    Args:
        here: The installed version.
        built_for: The version that the native library was built for; empty if it is unknown.

    Returns:
        An error that describes the difference, or None.
    """
    installed, wanted = (".".join(version.split(".")[:2]) for version in (here, built_for))
    if not built_for or installed == wanted:
        return None
    return BackendError.make(
        "import",
        "the native library",
        expected=f"one built for torch {here}",
        got=f"one for {built_for}",
        remedy=f"Install hybrid_rt for torch {installed} (a wheel of version {__version__}+torch{installed}, or its "
        "sources after torch: pip install --force-reinstall --no-deps .), or install torch "
        f"{wanted}: pip install 'torch=={wanted}.*'.",
    )
