"""Freezes, saves and opens TorchScript modules."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ... import _native
from ..engine import Engine
from .graphs import engine_runs, engines_of
from .notices import quiet


def open_archive(source: Path | io.BytesIO) -> torch.jit.ScriptModule:
    """Opens an archive on the CPU as it was saved, without preparing its engines.

    Args:
        source: Path of a file, or the archive in memory.

    Raises:
        RuntimeError: torch can't read the archive.
    """
    with quiet():
        if isinstance(source, Path) and not _is_text(source):
            source = io.BytesIO(source.read_bytes())  # torch accepts only names in UTF-8
        return torch.jit.load(source, map_location="cpu")


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def roundtrip_through_archive(
    module: torch.jit.ScriptModule,
    empty_engine: Callable[[Sequence[str]], Any],
    opened: Callable[[bytes], torch.jit.ScriptModule],
) -> torch.jit.ScriptModule:
    """Saves and loads a frozen hybrid in memory. The result has the same engine objects, whose bytes are not copied.

    The graph was rewritten after :func:`freeze`. The round trip makes sure that verification compares what a program
    will load.

    Args:
        module: The hybrid. It can't be used afterwards.
        empty_engine: Makes an engine without bytes for a list of segments.
        opened: Opens an archive.
    """
    engines = engines_of(module)
    for engine in engines.values():
        replace_engine(module, empty_engine(engine.segments()))
    again = opened(to_bytes(module))
    for engine in engines.values():
        replace_engine(again, engine)
    return again


def move_to_device(module: torch.jit.ScriptModule, device: str) -> torch.jit.ScriptModule:
    """Returns a copy of a frozen hybrid with its constants on a device and the same engine objects."""
    copied = open_archive(io.BytesIO(to_bytes(module)))
    for engine in engines_of(module).values():
        replace_engine(copied, engine)
    _native.move_to(copied._c, torch.device(device))
    return copied


def replace_engine(module: torch.jit.ScriptModule, engine: Engine) -> None:
    """Replaces the engine of the same segments in a frozen hybrid that has not run yet."""
    graph = module.graph
    graph.setInsertPoint(next(graph.nodes()))
    constant = graph.insertConstant(engine)
    for node in engine_runs(graph):
        if next(node.inputs()).toIValue().segments() == engine.segments():
            node.replaceInput(0, constant)
    torch._C._jit_pass_dce(graph)


def freeze(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Inlines a module's code, folds its parameters into constants and drops everything that eval mode does not run.

    The module that torch's own function returns crashes the process if an operator fails, because its graph points to
    deleted functions. Here these references are removed.
    """
    with quiet():
        frozen = torch.jit.freeze(module.eval())
    _native.forget_inlined_functions(frozen._c)
    return frozen


def submodule(frozen: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Wraps the result of freeze as a submodule of another module, which makes its C++ type known."""
    return torch.jit._recursive.wrap_cpp_module(frozen._c)


def to_bytes(module: torch.jit.ScriptModule) -> bytes:
    """Returns the module as an archive.

    The archive is written to memory, even if it goes to a file: torch's own file writer crashes the process if the disk
    is full, because its destructor throws.
    """
    with quiet():
        archive: bytes = module.save_to_buffer()
    return archive


def from_bytes(archive: bytes) -> torch.jit.ScriptModule:
    """Opens an archive in memory, see :func:`open_archive`."""
    return open_archive(io.BytesIO(archive))


def save(module: torch.jit.ScriptModule, path: Path) -> None:
    """Writes a module to a file.

    Raises:
        OSError: The file can't be written.
    """
    path.write_bytes(to_bytes(module))


def load(path: str | os.PathLike[str], options: Any) -> torch.jit.ScriptModule:
    """Loads a bundle with the C++ library, see :func:`hybrid_rt.load`."""
    with quiet():
        return torch.jit._recursive.wrap_cpp_module(_native.load(os.fsencode(path), options))
