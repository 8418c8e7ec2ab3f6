"""Names beyond ASCII: TorchScript compiles them, and writes files with them that it can't read.

Variables and attributes lose their names when a module is frozen. The parameters of forward, the module's class and the
fields of its named tuples keep theirs.
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

import torch
from torch import nn

from ..common.errors import CaptureError
from . import jit
from .generated_module import generated_class

_TEMPLATE = '''\
class Renamed(nn.Module):
    """A detector whose parameters have names of ASCII."""

    def forward(self, {parameters}):
        return self.detector({arguments})
'''

_IDENTIFIER_BEYOND_ASCII = re.compile(r"\w*[^\W\x00-\x7f]\w*")


def ascii_name(name: str) -> str:
    """Returns a name with its non-ASCII characters replaced by their code points: ``x_θ`` becomes ``x__u03b8``."""
    return name.encode("ascii", "backslashreplace").decode().replace("\\", "_")


def with_ascii_names(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Returns a module whose class and parameters have ASCII names: the same module if it has them already."""
    signature: Any = module.forward.schema  # type: ignore[attr-defined]
    arguments = list(signature.arguments)[1:]
    names = [module.original_name, *(argument.name for argument in arguments)]
    if all(map(str.isascii, names)):
        return module
    source = _TEMPLATE.format(
        parameters=", ".join(map(_parameter, arguments)),
        arguments=", ".join(
            f"{argument.name}={argument.name}" if argument.kwarg_only else ascii_name(argument.name)
            for argument in arguments
        ),
    )
    renamed = generated_class(source, "Renamed", {"nn": nn})()
    renamed.detector = module
    return jit.script(renamed.eval())


def _parameter(argument: Any) -> str:
    written = f"{ascii_name(argument.name)}: {argument.type}"
    return f"{written} = {argument.default_value!r}" if argument.has_default_value() else written


def opened(archive: bytes) -> torch.jit.ScriptModule:
    """Opens an archive that was just made.

    Raises:
        CaptureError: It contains further names that are not ASCII.
    """
    try:
        return jit.open_archive(io.BytesIO(archive))
    except (RuntimeError, UnicodeDecodeError) as error:
        names = _names_beyond_ascii(archive)
        if not names:
            raise
        raise CaptureError.make(
            "capture",
            "the detector's head",
            expected="ASCII names of classes and of fields of named tuples, which TorchScript writes into the file",
            got=", ".join(names),
            remedy="Rename them, or return a tuple.",
            code="head-not-scriptable",
        ) from error


def _names_beyond_ascii(archive: bytes) -> list[str]:
    """The identifiers in an archive's code; texts in it are escaped."""
    with zipfile.ZipFile(io.BytesIO(archive)) as records:
        code = [records.read(name).decode() for name in records.namelist() if name.endswith(".py")]
        paths = [name for name in records.namelist() if "/code/" in name]
    found = (name for text in [*code, *paths] for name in _IDENTIFIER_BEYOND_ASCII.findall(text))
    return sorted(dict.fromkeys(found))
