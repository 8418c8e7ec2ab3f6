"""Defines classes from generated source, for modules that TorchScript, which is statically typed, can't compile."""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Mapping
from typing import Any

import torch

_serial = itertools.count()


def generated_class(source: str, name: str, names: Mapping[str, Any]) -> Any:
    """Defines a class that TorchScript can compile.

    Args:
        source: Source text that defines the class. It may use torch, Tensor, Dict, List, Optional and Tuple.
        name: Name of the class.
        names: Further objects that the source may use, by name.

    Returns:
        The class.
    """
    # torch.jit.script reads a class's source by its file name.
    file_name = f"<hybrid_rt generated module {next(_serial)}>"
    linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
    namespace: dict[str, Any] = {"torch": torch, "__name__": __name__, **names}
    exec(
        compile("from typing import Dict, List, Optional, Tuple\nfrom torch import Tensor\n", file_name, "exec"),
        namespace,
    )
    # dont_inherit: with this file's future imports, torch would get the types of a NamedTuple's fields as strings.
    exec(compile(source, file_name, "exec", dont_inherit=True), namespace)
    return namespace[name]
