"""Requirements of AOTInductor for CUDA, in addition to those for a CPU: a device, Triton, CUDA's headers and driver."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ... import _native

OPTIONS: Mapping[str, Any] = {
    # Otherwise the library refers to kernel files by their paths.
    "aot_inductor.embed_kernel_binary": True,
}
"""Inductor's settings in addition to those for a CPU."""

_HEADERS = ("cuda.h", "cuda_runtime.h", "crt/host_config.h")


def reason_against() -> str:
    """Returns why nothing can be compiled for CUDA here, with the remedy; empty if it can."""
    devices, reason = _native.cuda_devices()
    if not devices:  # Triton and inductor choose kernels by running them
        return f"compiling for CUDA requires a CUDA device, and none is available: {reason}"
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} can't use {devices[0]['name']}; install a build of torch with CUDA, of a "
            "version that the driver knows"
        )
    if importlib.util.find_spec("triton") is None:
        return "no Triton, by which inductor makes kernels; pip install triton"
    if not _can_embed():
        return (
            f"torch {torch.__version__} can't put kernels into the library (aot_inductor.embed_kernel_binary); install "
            "torch 2.11 or newer"
        )
    if _toolkit() is None:
        return (
            f"no CUDA headers ({', '.join(_HEADERS)}) for the C++ compiler; install the CUDA toolkit "
            f"{torch.version.cuda}, as torch has it, or name its directory in the environment variable CUDA_HOME"
        )
    return ""


def capability() -> str:
    """Returns the compute capability of the current device, for which engines are compiled: "9.0"."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def device_name() -> str:
    """Returns the name of the current device."""
    return torch.cuda.get_device_name()


def move_to_cuda(
    exported_program: ExportedProgram, examples: Sequence[Tensor]
) -> tuple[ExportedProgram, tuple[Tensor, ...]]:
    """Moves a program that was exported on the CPU, and its inputs, to the current CUDA device."""
    from torch.export.passes import move_to_device_pass

    device = f"cuda:{torch.cuda.current_device()}"
    return move_to_device_pass(exported_program, device), tuple(tensor.to(device) for tensor in examples)


@contextlib.contextmanager
def compiling(directory: Path) -> Iterator[None]:
    """The C++ compiler finds CUDA, and inductor remembers no kernels of other compilations.

    Args:
        directory: for what the linker needs; it may go afterwards.
    """
    from torch._inductor.utils import clear_caches
    from torch.utils import cpp_extension

    links = directory / "links"
    links.mkdir()
    driver = _driver()
    if driver is not None:
        # The linker wants this name; some systems have the driver by libcuda.so.1 alone, and no stub of it.
        (links / "libcuda.so").symlink_to(driver)
    toolkit, libraries = cpp_extension.CUDA_HOME, os.environ.get("LIBRARY_PATH")
    known = [str(links), cpp_extension.TORCH_LIB_PATH, *([libraries] if libraries else [])]
    # Cached kernels refer to files in the deleted directories of earlier compilations.
    clear_caches()
    cpp_extension.CUDA_HOME = _toolkit()
    os.environ["LIBRARY_PATH"] = os.pathsep.join(known)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = toolkit
        if libraries is None:
            del os.environ["LIBRARY_PATH"]
        else:
            os.environ["LIBRARY_PATH"] = libraries
        clear_caches()


def _can_embed() -> bool:
    import torch._inductor.config

    return hasattr(torch._inductor.config.aot_inductor, "embed_kernel_binary")


def _toolkit() -> str | None:
    """Returns a directory with CUDA's headers: torch's toolkit, the one that pip installed, or the usual one.

    torch uses the directory above nvcc's, which is wrong if nvcc is a link or a script.
    """
    from torch.utils import cpp_extension

    brought = importlib.util.find_spec("nvidia")
    wheels = list(brought.submodule_search_locations or ()) if brought else []
    major = (torch.version.cuda or "").split(".")[0]
    for directory in (cpp_extension.CUDA_HOME, *(f"{wheel}/cu{major}" for wheel in wheels), "/usr/local/cuda"):
        if directory and all((Path(directory) / "include" / header).is_file() for header in _HEADERS):
            return str(directory)
    return None


def _driver() -> Path | None:
    """Returns the path of the driver's library, which this process has open."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith("libcuda.so"):
            return Path(path)
    return None
