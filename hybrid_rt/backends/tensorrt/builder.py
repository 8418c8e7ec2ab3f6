"""Building a TensorRT engine: the vendor's builder, told of profiles, precision, GPUs, and asked how far it is."""

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
from ..cache.folder import folder
from .options import CURRENT, Options, Range

_NAME = "tensorrt"

TIMING_DIRECTORY = "tensorrt_timing"
"""The directory of the cache that holds what the builder measured of kernels."""


@dataclass(frozen=True)
class Vendor:
    """One of the vendor's two libraries, with its Python module."""

    library: str
    module: Any

    @property
    def version(self) -> str:
        """E.g. "1.7.1.116"."""
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        """TensorRT-RTX builds for GPUs that are not here."""
        return self.library == "tensorrt_rtx"


class Messages:
    """Collects warnings and errors of the vendor's logger for an error's text."""

    def __init__(self, vendor: Any) -> None:
        """``vendor``: the vendor's module."""
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
        """The errors since the last call, one a line."""
        text = "\n  ".join(dict.fromkeys(self._errors))
        self._errors.clear()
        return text


Populate = Callable[[Any, Messages], None]
"""Puts the segment into the vendor's network. Raises BackendError."""


def build(
    vendor: Vendor,
    options: Options,
    populate: Populate,
    inputs: Sequence[str],
    profiles: Sequence[Sequence[Sequence[Range]]],
    segment: str,
    progress: Progress | None,
) -> bytes:
    """The engine.

    Args:
        vendor: which library builds it.
        options: the user's.
        populate: puts the segment into the network.
        inputs: names of the network's inputs; empty for those that the segment does not look at.
        profiles: see :func:`hybrid_rt.backends.tensorrt.options.profiles_of`.
        segment: its name, for messages.
        progress: told how far the builder is.

    Raises:
        BackendError: the builder refuses, with its messages.
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
            raise _failed(segment, "optimisation profiles that the builder takes", messages.take())
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
    """Strongly typed: the types are those of the model. It is the only kind that newer versions have."""
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
    """Checks GPUs by their compute capabilities: "9.0".

    TensorRT-RTX builds "for the current GPU" also where it then refuses to run the engine: on an H100, by 1.7.1.

    Raises:
        BackendError: this TensorRT-RTX does not build for one of them.
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
    """``12.0`` -> ``SM120``."""
    return f"SM{capability.replace('.', '')}"


def _capability(name: str) -> str:
    """``SM120`` -> ``12.0``."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"


def _monitor(trt: Any, progress: Progress) -> Any:
    """Tells of the phases that are parts of no other one."""

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
    """Loads and saves TensorRT's kernel timings for later builds on the same GPU. TensorRT-RTX has none."""
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
        cache = config.create_timing_cache(b"")  # damaged, or of another GPU
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
        return folder() / TIMING_DIRECTORY / f"{key}.cache"
    return None
