"""Modules whose source is generated, so that TorchScript, which types each value statically, can compile them."""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Mapping
from typing import Any

import torch

_serial = itertools.count()


def generated_class(source: str, name: str, names: Mapping[str, Any]) -> Any:
    """The class ``name`` that ``source`` defines, with ``names``, torch, Tensor and typing's names known to it."""
    # torch.jit.script reads a class's source by its file name.
    file_name = f"<hybrid_rt generated module {next(_serial)}>"
    linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
    namespace: dict[str, Any] = {"torch": torch, "__name__": __name__, **names}
    exec(
        compile("from typing import Dict, List, Optional, Tuple\nfrom torch import Tensor\n", file_name, "exec"),
        namespace,
    )
    # Without this file's own future imports: torch reads the types of a NamedTuple's fields as objects.
    exec(compile(source, file_name, "exec", dont_inherit=True), namespace)
    return namespace[name]
