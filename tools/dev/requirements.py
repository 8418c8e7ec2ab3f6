"""Prints the requirements of pyproject.toml, one per line, for `pip install -r`; pip would build the project.

Usage:

    requirements.py [EXTRA ...]     the requirements of the build, of the package, and of those extras
    requirements.py --build         the requirements of the build
    requirements.py --built-with    the installed versions of torch and of the build's requirements
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # installed with pip
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def wanted(pyproject: dict[str, Any], extras: Sequence[str]) -> list[str]:
    """Returns the requirements of the build, of the package and of its extras.

    Raises:
        KeyError: There is no extra of that name.
    """
    project = pyproject["project"]
    texts = [*pyproject["build-system"]["requires"], *project["dependencies"]]
    texts += [text for extra in extras for text in _of_extra(project, extra)]
    return list(dict.fromkeys(texts))


def _of_extra(project: dict[str, Any], extra: str) -> Iterator[str]:
    """Yields the requirements of an extra, resolving references to other extras of the project."""
    for text in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{project['name']}\[(.*)\]", text)
        if own is None:
            yield text
        else:
            for name in own[1].split(","):
                yield from _of_extra(project, name)


def main(arguments: Sequence[str]) -> None:
    """Prints the lines."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build = pyproject["build-system"]["requires"]
    if arguments == ["--build"]:
        print("\n".join(build))
    elif arguments == ["--built-with"]:
        for text in ("torch", *build):
            name = re.split(r"[^\w.-]", text, maxsplit=1)[0]
            print(name, metadata.version(name))
    else:
        print("\n".join(wanted(pyproject, arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
