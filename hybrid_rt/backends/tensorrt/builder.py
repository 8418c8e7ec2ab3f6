"""Builds a TensorRT engine: configures the vendor's builder, runs it and reports its progress."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.atomic_files import atomic_write
from ...common.errors import BackendError, HybridRTError
from ..base import Progress
from ..cache.directory import cache_directory
from .options import CURRENT, Options, Range

_NAME = "tensorrt"

TIMING_DIRECTORY = "tensorrt_timing"
"""Directory of the cache that stores the builder's kernel timings."""


@dataclass(frozen=True)
class Vendor:
    """One of the vendor's two libraries, with its Python module."""

    library: str
    module: Any

    @property
    def version(self) -> str:
        """Version of the Python module, for example "1.7.1.116"."""
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        """True for TensorRT-RTX, which can build for GPUs that this machine doesn't have."""
        return self.library == "tensorrt_rtx"


class Messages:
    """Collects warnings and errors of the vendor's logger for an error's text."""

    def __init__(self, vendor: Any) -> None:
        """Creates the logger.

        Args:
            vendor: The vendor's Python module.
        """
        errors: list[str] = []

        class Logger(vendor.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                vendor.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (vendor.ILogger.Severity.ERROR, vendor.ILogger.Severity.INTERNAL_ERROR):
                    errors.append(message.strip())

        self.logger = Logger()
        self._errors = errors

    def take(self) -> str:
        """Returns the errors since the last call, one per line."""
        text = "\n  ".join(dict.fromkeys(self._errors))
        self._errors.clear()
        return text


Populate = Callable[[Any, Messages], None]
"""Adds the segment to the vendor's network. Raises BackendError if the vendor refuses it."""


def build(
    vendor: Vendor,
    options: Options,
    populate: Populate,
    inputs: Sequence[str],
    profiles: Sequence[Sequence[Sequence[Range]]],
    segment: str,
    progress: Progress | None,
) -> bytes:
    """Builds and serializes an engine.

    Args:
        vendor: The library that builds it.
        options: The user's options.
        populate: Adds the segment to the network.
        inputs: Names of the network's inputs; empty for an input that the segment does not use.
        profiles: The result of :func:`hybrid_rt.backends.tensorrt.options.profiles_of`.
        segment: Name of the segment, for messages.
        progress: Called with the builder's progress, unless it is None.

    Returns:
        The serialized engine.

    Raises:
        BackendError: The builder refuses the segment. The text includes its messages.
    """
    trt = vendor.module
    messages = Messages(trt)
    builder = _made(trt.Builder(messages.logger), "a builder", segment, messages)
    network = _made(builder.create_network(_flags(trt)), "a network", segment, messages)
    populate(network, messages)
    config = builder.create_builder_config()
    _configure(config, vendor, options, segment)
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, ranges in zip(inputs, profile, strict=True):
            if name:
                made.set_shape(name, *([size[k] for size in ranges] for k in range(3)))
        if config.add_optimization_profile(made) < 0:
            raise _failed(segment, "optimisation profiles that the builder accepts", messages.take())
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    with _timing_cache(config, vendor):
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _failed(segment, f"a module that {vendor.library} {vendor.version} builds", messages.take())
    return bytes(engine)


def _made(value: Any, what: str, segment: str, messages: Messages) -> Any:
    if value is None:
        raise _failed(segment, what, messages.take())
    return value


def _failed(segment: str, expected: str, got: str) -> BackendError:
    return BackendError.not_compiled(_NAME, segment, expected=expected, got=got or "a failure without a message")


def _flags(trt: Any) -> int:
    """Returns the flags of a strongly typed network, which has the model's types. Newer versions support no other."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _configure(config: Any, vendor: Vendor, options: Options, segment: str) -> None:
    trt = vendor.module
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.builder_optimization_level = options.optimization_level
    if options.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if vendor.is_rtx:
        _set_capabilities(config, vendor, options, segment)
        return
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)


def check_capabilities(vendor: Vendor, capabilities: Sequence[str], segment: str) -> None:
    """Checks that TensorRT-RTX builds for GPUs of the given compute capabilities, such as "9.0".

    TensorRT-RTX 1.7.1 builds "for the current GPU" on an H100 too, but then refuses to run the engine.

    Raises:
        BackendError: This version of TensorRT-RTX does not build for one of them.
    """
    known = [name for name in dir(vendor.module.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    for capability in capabilities:
        if _name(capability) not in known:
            built_for = ", ".join(sorted(map(_capability, known), key=float))
            raise BackendError.make(
                _NAME,
                f"segment '{segment}', option 'compute_capabilities'",
                expected=f"GPUs that this TensorRT-RTX builds for: {built_for}",
                got=capability,
                remedy="For other GPUs, use TensorRT on a machine that has one, or the engine aot_inductor.",
                code="no-gpu-here",
            )


def _set_capabilities(config: Any, vendor: Vendor, options: Options, segment: str) -> None:
    wanted = ["CURRENT"]
    if options.compute_capabilities != CURRENT:
        check_capabilities(vendor, options.compute_capabilities, segment)
        wanted = [_name(capability) for capability in options.compute_capabilities]
    config.num_compute_capabilities = len(wanted)
    for i, name in enumerate(wanted):
        config.set_compute_capability(getattr(vendor.module.ComputeCapability, name), i)


def _name(capability: str) -> str:
    """Returns the vendor's name of a compute capability: ``SM120`` for ``12.0``."""
    return f"SM{capability.replace('.', '')}"


def _capability(name: str) -> str:
    """Returns the compute capability that a vendor's name stands for: ``12.0`` for ``SM120``."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"


def _monitor(trt: Any, progress: Progress) -> Any:
    """Returns a monitor that reports the progress of top-level phases."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.steps[phase_name] = max(1, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                progress(min(1.0, (step + 1) / self.steps[phase_name]), phase_name)
            return True

    return Monitor()


@contextlib.contextmanager
def _timing_cache(config: Any, vendor: Vendor) -> Iterator[None]:
    """Loads and saves TensorRT's kernel timings for later builds on the same GPU. TensorRT-RTX has no such timings."""
    if vendor.is_rtx:
        yield
        return
    path = _timing_file(vendor)
    known = b""
    if path is not None:
        with contextlib.suppress(OSError):
            known = path.read_bytes()
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")  # damaged, or measured on another GPU
        config.set_timing_cache(cache, ignore_mismatch=False)
    yield
    if path is not None:
        with contextlib.suppress(OSError, HybridRTError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_bytes(bytes(config.get_timing_cache().serialize()))


def _timing_file(vendor: Vendor) -> Path | None:
    import torch

    if os.environ.get("HYBRID_RT_CACHE_SIZE") == "0":
        return None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    key = hashlib.sha256(f"{vendor.library} {vendor.version} {device}".encode()).hexdigest()
    with contextlib.suppress(HybridRTError):
        return cache_directory() / TIMING_DIRECTORY / f"{key}.cache"
    return None
