"""The interface of a backend's compile half."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from ..common.errors import OptionError
from ..common.specs import Artifact, ArtifactSpec

if TYPE_CHECKING:
    from ..capture.program import Program
    from .whole_graph import WholeGraph


@dataclass(frozen=True)
class Availability:
    """Availability of a backend.

    Attributes:
        available: true if the backend can compile here.
        reason: why it is unavailable, and how to fix that; empty if it is available.
        version: version of the vendor's package; part of the cache's key.
    """

    available: bool
    reason: str = ""
    version: str = ""


@dataclass(frozen=True)
class RuntimeCheck:
    """Verdict on one of a vendor's libraries: would it run engines on one GPU of this machine?

    Attributes:
        device: torch's name of the GPU; empty: there is none here.
        library: name of the library, with the versions that share an interface: "TensorRT 10".
        version: installed version of the library; empty if there is none.
        refusal: why it would not run; empty if it would.
    """

    device: str
    library: str
    version: str
    refusal: str


@dataclass(frozen=True)
class RuntimeFiles:
    """Files that a plug-in opens at run time in addition to its linked libraries: patterns in site-packages.

    Attributes:
        libraries: the vendor's libraries; all must exist.
        optional: libraries that the vendor's libraries open if they exist.
        data: other files; all must exist.
    """

    libraries: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class VendorPackages:
    """The packages that a backend needs in addition to hybrid_rt's own requirements.

    Attributes:
        requirements: requirements for pip; in this repository, they are also the extra with the backend's name.
        modules: the top-level modules that the backend may import, inside functions only.
        libraries: the library behind each environment variable that the run half reads, as a pattern in site-packages.
    """

    requirements: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    libraries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerTime:
    """One layer of an engine in a profile.

    Attributes:
        name: the vendor's name of the layer.
        kind: the vendor's name of its kernel or type.
        milliseconds: duration in one call.
        operations: multiplications plus additions; 0: unknown, or not counted.
    """

    name: str
    kind: str
    milliseconds: float
    operations: int = 0


Progress = Callable[[float, str], None]
"""Receives a compiler's progress: the fraction that is done, 0..1, and a description of the current work."""


@dataclass(frozen=True)
class CompileContext:
    """The target and options of a compiler.

    They are fixed before the first program is captured, because availability, precisions and the cache's key depend on
    them.

    Attributes:
        device: the kind of device to compile for; empty: the first of the backend's ``devices``.
        options: the user's options, checked.
        progress: receives the compiler's progress; None: not reported.
    """

    device: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None


_Backend = TypeVar("_Backend", bound="Backend")


class Backend(ABC):
    """A compiler. A module of :mod:`hybrid_rt.backends` defines one subclass; so does an out-of-tree package.

    An out-of-tree package names its class by an entry point of the group ``hybrid_rt.backends`` whose name is the
    backend's, and brings the run half as ``libhybrid_rt_NAME.so`` in the directory ``plugin_folder``.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """The kinds of device that it compiles for; the first one is the default."""

    plugin_folder: ClassVar[str | None] = None
    is_candidate: ClassVar[bool] = True
    """True if engine="fastest" tries it. Other backends compile only if they are named."""

    files: ClassVar[Mapping[str, str]] = {}
    """Suffix of the file for the vendor's own tools, by blob; by default ``.BLOB``.

    A value that begins with a slash is a file name in a directory of the artifact's own, for files that refer to each
    other.
    """

    runtime_files: ClassVar[RuntimeFiles] = RuntimeFiles()
    """The files that ``hybrid-rt package`` includes for CPUs."""

    vendor: ClassVar[VendorPackages] = VendorPackages()
    """The packages that it needs."""

    auto_for: ClassVar[Mapping[str, int]] = {}
    """Rank for engine="auto" by kind of device; the available backend with the highest rank is chosen."""

    is_fallback: ClassVar[bool] = False
    """True if its artifact in fp32 is the segment as it was captured, and runs wherever torch runs.

    Exactly one backend sets it: its variant is the last one of a bundle, and further variants are compiled from it.
    """

    forms: ClassVar[tuple[str, ...]] = ()
    """Methods of Program without arguments that :meth:`compile` calls in any case.

    A compiler's process gets their results with the request. With the others, it has to wait until the conversion's
    process answers.
    """

    cache_directories: ClassVar[tuple[str, ...]] = ()
    """Directories that its two halves keep in the cache beside the artifacts, for ``hybrid-rt cache clear``."""

    _context: CompileContext = CompileContext()

    @property
    def context(self) -> CompileContext:
        """Returns the target of this instance, see :meth:`configured`."""
        return self._context

    @property
    def device(self) -> str:
        """Returns the kind of device of the context; empty: the first of ``devices``."""
        return self.context.device

    @property
    def given(self) -> Mapping[str, Any]:
        """Returns the user's options, as :meth:`checked` returned them."""
        return self.context.options

    @property
    def progress(self) -> Progress | None:
        """Returns the receiver of the compiler's progress; None if there is none."""
        return self.context.progress

    @abstractmethod
    def availability(self) -> Availability:
        """Returns whether the compiler can be used here. It imports the vendor's package, and does not raise."""

    def misfit(self) -> str:
        """Returns why its artifacts would not run on this machine's device; empty if they would or there is no device.

        engine="auto" skips a backend with a reason. If it is named, it compiles for other machines all the same.
        """
        return ""

    def made_for(self) -> Mapping[str, str]:
        """Returns the requirements of its artifacts that distinguish machines of one kind, as far as they are known.

        A bundle may hold several artifacts of one backend and precision if these differ. Most compilers have none.
        """
        return {}

    def runtime_checks(self) -> Sequence[RuntimeCheck]:
        """Returns which of the vendor's libraries would run on which GPU of this machine, for ``hybrid-rt doctor``.

        Returns nothing for a backend with one library, because its run half gives the same answer for every device.
        """
        return ()

    @property
    def target(self) -> str:
        """Returns the kind of device that it compiles for: "cpu", "cuda"."""
        return self.device or self.devices[0]

    @property
    def target_precisions(self) -> tuple[str, ...]:
        """Returns the subset of ``precisions`` for the kind of device that it compiles for; all by default."""
        return self.precisions

    def missing(self, precision: str) -> str:
        """Returns why a precision can't be compiled here although the compiler is available; empty if it can.

        Override it for packages that only some precisions need.

        Args:
            precision: one of ``precisions``.
        """
        return ""

    def tightened(self, precision: str) -> Mapping[str, Any] | None:
        """Returns options for a more accurate artifact, for use if the one compiled with ``given`` fails verification.

        Returns None if there are no such options.

        Args:
            precision: one of ``precisions``.
        """
        return None

    def configured(
        self: _Backend,
        device: str = "",
        options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> _Backend:
        """Returns a compiler of this kind for a device, with the user's options; this one stays as it is.

        Args:
            device: the kind of device; if the backend does not support it, the first one that it supports is used.
            options: the user's options.
            progress: receives the progress of a compilation.

        Raises:
            OptionError: An option is unknown, or has an invalid value.
        """
        known = device if device in self.devices else self.devices[0]
        return self._within(CompileContext(known, self.checked(options or {}), progress))

    def reporting_to(self: _Backend, progress: Progress | None) -> _Backend:
        """Returns the same compiler, with another receiver of its progress; this one stays as it is.

        Args:
            progress: receives the progress of a compilation; None: not reported.
        """
        return self._within(replace(self.context, progress=progress))

    def _within(self: _Backend, context: CompileContext) -> _Backend:
        # Copy instead of calling the class, because a backend may have its own constructor and state.
        made = copy.copy(self)
        made._context = context
        return made

    def checked(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the user's options, checked, in the form that the compiler uses; most compilers have none.

        Args:
            options: the user's options.

        Raises:
            OptionError: An option is unknown, or has an invalid value.
        """
        if options:
            raise OptionError.make(
                self.name, "options", expected="none: it has no options of its own", got=", ".join(map(repr, options))
            )
        return {}

    def options(self) -> Mapping[str, str]:
        """Returns further inputs of the compilation. The cache keeps one artifact per combination of their values.

        By default, these are the user's options; some backends add environment variables.

        Raises:
            OptionError: An environment variable has an invalid value.
        """
        return {name: repr(value) for name, value in self.given.items()}

    def settings(self) -> Mapping[str, Any]:
        """Returns settings of this process, other than options and environment variables, that change the artifact.

        :meth:`apply` sets them for a compiler in a separate process, so they have to be picklable. Most compilers have
        none.
        """
        return {}

    def apply(self, settings: Mapping[str, Any]) -> None:  # noqa: B027  most have nothing to set
        """Sets in this process what :meth:`settings` returned in another one.

        Args:
            settings: the values.
        """

    def spec(
        self, program: Program, precision: str, *, versions: dict[str, str], requirements: dict[str, str] | None = None
    ) -> ArtifactSpec:
        """Returns the spec of an artifact that this backend compiles from a program.

        Args:
            program: the segment.
            precision: one of ``precisions``.
            versions: versions of the packages that compile it.
            requirements: requirements for the machine that runs it. "version": a range for the version that the run
                half reports, e.g. ">=1.17,<2"; "cpu": flags as the kernel names them, e.g. "avx512f,avx512_bf16";
                "memory": free memory in bytes.
        """
        return ArtifactSpec(
            backend=self.name,
            precision=precision,
            device=self.target,
            inputs=program.inputs,
            outputs=program.outputs,
            requirements=requirements or {},
            versions=versions,
        )

    def weights(self, blobs: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, int], ...]]:
        """Returns the positions of unchanged weights in the blobs: (offset, size) in bytes, see :class:`Artifact`.

        The result may be empty; a bundle then stores the weights once per variant.

        Args:
            blobs: the artifact's bytes by name.
        """
        return {}

    def without_values(self, artifact: Artifact, outputs: frozenset[int]) -> Artifact:
        """Returns an artifact that does not write outputs whose values nothing reads.

        For these outputs, the run half returns tensors on the device "meta" with the right sizes and dtype.

        Args:
            artifact: compiled by this backend; it is not changed.
            outputs: the positions of the outputs that need no values.

        Returns:
            The new artifact, or the same one if the backend's engines gain nothing by it.
        """
        return artifact

    def outputs_without_values(self, artifact: Artifact) -> frozenset[int]:
        """Returns the positions of the outputs that an artifact does not write, see :meth:`without_values`.

        Args:
            artifact: an artifact that was compiled by this backend.
        """
        return frozenset()

    def layer_times(
        self, files: Mapping[str, Path], precision: str, inputs: Sequence[Tensor], threads: int
    ) -> Sequence[LayerTime] | None:
        """Runs an artifact in the vendor's own profiler.

        Args:
            files: the artifact's files by their blobs' names, as ``hybrid-rt extract`` writes them.
            precision: precision of the artifact.
            inputs: inputs of one call.
            threads: number of threads per call.

        Returns:
            The layers in the order in which they ran; None if the vendor has no profiler for Python.
        """
        return None

    def whole_graph(self) -> WholeGraph | None:
        """Returns the way to run a whole detector in this engine, for comparisons; None if it is not supported."""
        return None

    @abstractmethod
    def compile(self, program: Program, precision: str) -> Artifact:
        """Compiles a captured segment, for the device and with the options of :attr:`context`.

        Args:
            program: the segment.
            precision: one of ``precisions``.

        Returns:
            The artifact.

        Raises:
            BackendError: The vendor's compiler refuses; the text contains its message.
        """
