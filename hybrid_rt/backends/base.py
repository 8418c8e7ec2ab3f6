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
        device: the GPU as torch names it; empty: there is none here.
        library: its name and the versions that share an interface, "TensorRT 10".
        version: what is installed of these, or an empty text.
        refusal: why it would not run; empty: it would.
    """

    device: str
    library: str
    version: str
    refusal: str


@dataclass(frozen=True)
class RuntimeFiles:
    """Files that a plug-in opens at run time in addition to its linked libraries: patterns in site-packages.

    Attributes:
        libraries: the vendor's; each must be there.
        optional: libraries that the vendor's open if they are there.
        data: other files; each must be there.
    """

    libraries: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class VendorPackages:
    """The packages that a backend needs beside hybrid_rt's own requirements.

    Attributes:
        requirements: as pip takes them; in this repository they are also the extra of the backend's name.
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
        name: the vendor's name of it.
        kind: the vendor's name of its kernel or type.
        milliseconds: in one call.
        operations: multiplications and additions, counted apart; 0: not known, or none worth counting.
    """

    name: str
    kind: str
    milliseconds: float
    operations: int = 0


Progress = Callable[[float, str], None]
"""Told by a compiler how far it is: the share that is done, 0 to 1, and what it does."""


@dataclass(frozen=True)
class CompileContext:
    """Everything that a compiler is told before it sees a program.

    It is fixed before the first program is captured, since availability, precisions and the cache's key depend on it.

    Attributes:
        device: the kind of device to compile for; empty: the first of the backend's ``devices``.
        options: the user's options, checked.
        progress: reports how far the compiler is, if anyone wants to know.
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
    """The kinds of device that it compiles for; the first one, unless another one of them is asked for."""

    plugin_folder: ClassVar[str | None] = None
    is_candidate: ClassVar[bool] = True
    """True if engine="fastest" tries it. Other backends compile only if they are named."""

    files: ClassVar[Mapping[str, str]] = {}
    """For each blob the ending of the file that the vendor's own tools open; ``.BLOB`` for one that is not named.

    One that begins with a slash is a file's name in a folder of the artifact's own: for files that refer to each other.
    """

    runtime_files: ClassVar[RuntimeFiles] = RuntimeFiles()
    """What ``hybrid-rt package`` takes along for CPUs."""

    vendor: ClassVar[VendorPackages] = VendorPackages()
    """The packages that it needs."""

    auto_for: ClassVar[Mapping[str, int]] = {}
    """The kinds of device for which engine="auto" may take it, each with a rank: the highest one available wins."""

    is_fallback: ClassVar[bool] = False
    """True if its artifact in fp32 is the segment as it was captured, and runs wherever torch runs.

    Exactly one backend sets it: its variant is the last one of a bundle, and further variants are compiled from it.
    """

    cache_directories: ClassVar[tuple[str, ...]] = ()
    """Directories that its two halves keep in the cache beside the artifacts, for ``hybrid-rt cache clear``."""

    _context: CompileContext = CompileContext()

    @property
    def context(self) -> CompileContext:
        """The target of this instance, see :meth:`configured`."""
        return self._context

    @property
    def device(self) -> str:
        """The kind of device of the context; empty: the first of ``devices``."""
        return self.context.device

    @property
    def given(self) -> Mapping[str, Any]:
        """The user's options, as :meth:`checked` returned them."""
        return self.context.options

    @property
    def progress(self) -> Progress | None:
        """Reports how far the compiler is; None if nobody wants to know."""
        return self.context.progress

    @abstractmethod
    def availability(self) -> Availability:
        """Returns whether the compiler can be used here. Imports the vendor's package only now; does not raise."""

    def misfit(self) -> str:
        """Returns why what it compiles would not run on the device that is here; empty where it would, or none is here.

        engine="auto" passes such a backend over. Named, it compiles all the same: for other machines.
        """
        return ""

    def made_for(self) -> Mapping[str, str]:
        """Returns the requirements of its artifacts that tell machines of one kind apart, as they are known by now.

        A bundle holds several artifacts of one backend and precision if these differ. Most compilers have none.
        """
        return {}

    def runtime_checks(self) -> Sequence[RuntimeCheck]:
        """Returns which of the vendor's libraries would run on which GPU of this machine, for ``hybrid-rt doctor``.

        Nothing for a backend that has one library, whose run half says the same of every device.
        """
        return ()

    @property
    def target(self) -> str:
        """The kind of device that it compiles for: "cpu", "cuda"."""
        return self.device or self.devices[0]

    @property
    def target_precisions(self) -> tuple[str, ...]:
        """Returns the subset of ``precisions`` for the kind of device that it compiles for; all by default."""
        return self.precisions

    def missing(self, precision: str) -> str:
        """Returns why one of ``precisions`` can't be compiled here though the compiler is available; empty if it can.

        For packages that only some precisions need.

        Args:
            precision: one of ``precisions``.
        """
        return ""

    def tightened(self, precision: str) -> Mapping[str, Any] | None:
        """Returns options for a more accurate artifact, to use if one made with ``given`` fails the verification.

        None if there is no such choice.

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
            device: the kind of device; one that the backend does not have stands for the first that it has.
            options: the user's options.
            progress: reports how far a compilation is.

        Raises:
            OptionError: an option that it does not have, or a value that it does not take.
        """
        known = device if device in self.devices else self.devices[0]
        return self._within(CompileContext(known, self.checked(options or {}), progress))

    def reporting_to(self: _Backend, progress: Progress | None) -> _Backend:
        """Returns the same compiler, with another receiver of its progress; this one stays as it is.

        Args:
            progress: reports how far a compilation is; None: nobody wants to know.
        """
        return self._within(replace(self.context, progress=progress))

    def _within(self: _Backend, context: CompileContext) -> _Backend:
        # A copy rather than a call of the class: a backend may have a constructor and a state of its own.
        made = copy.copy(self)
        made._context = context
        return made

    def checked(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the user's options as the compiler takes them; most compilers have none.

        Args:
            options: the user's options.

        Raises:
            OptionError: one that it does not have, or a value that it does not take.
        """
        if options:
            raise OptionError.make(
                self.name, "options", expected="none: it has no options of its own", got=", ".join(map(repr, options))
            )
        return {}

    def options(self) -> Mapping[str, str]:
        """Returns further inputs of the compilation. The cache keeps one artifact per combination of their values.

        The user's options, unless a backend says otherwise; some read environment variables.

        Raises:
            OptionError: one of them is not a value.
        """
        return {name: repr(value) for name, value in self.given.items()}

    def settings(self) -> Mapping[str, Any]:
        """Returns settings of this process, other than options and environment variables, that change the artifact.

        A compiler in a process of its own is told by :meth:`apply`; the values have to pickle. Most compilers have
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
            versions: versions of the packages that it is made with.
            requirements: what the machine that runs it must have. "version": a range for the version that the run half
                reports, e.g. ">=1.17,<2"; "cpu": flags as the kernel names them, e.g. "avx512f,avx512_bf16"; "memory":
                free memory in bytes.
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
        """Returns the places of unchanged weights in the blobs: (offset, size) in bytes, see :class:`Artifact`.

        An empty result is right too; a bundle then stores them once for each variant.

        Args:
            blobs: the artifact's bytes by name.
        """
        return {}

    def without_values(self, artifact: Artifact, outputs: frozenset[int]) -> Artifact:
        """Returns an artifact that does not write outputs whose values nothing reads.

        Its run half returns tensors on the device "meta" in their places, with the right sizes and dtype.

        Args:
            artifact: compiled by this backend; it is not changed.
            outputs: the positions of the outputs that need no values.

        Returns:
            The artifact; a backend whose engines gain nothing by it returns what it was given.
        """
        return artifact

    def outputs_without_values(self, artifact: Artifact) -> frozenset[int]:
        """Returns the positions of the outputs that an artifact does not write, see :meth:`without_values`.

        Args:
            artifact: compiled by this backend.
        """
        return frozenset()

    def layer_times(
        self, files: Mapping[str, Path], precision: str, inputs: Sequence[Tensor], threads: int
    ) -> Sequence[LayerTime] | None:
        """Runs an artifact in the vendor's own profiler.

        Args:
            files: the artifact's files by their blobs' names, as ``hybrid-rt extract`` writes them.
            precision: the artifact's.
            inputs: one call's inputs.
            threads: for one call.

        Returns:
            The layers in the order in which they ran; None: the vendor has no profiler that Python reaches.
        """
        return None

    def whole_graph(self) -> WholeGraph | None:
        """Returns what gives a whole detector to this engine, for comparisons; None if the engine takes none."""
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
            BackendError: the vendor's compiler refuses; the text contains its message.
        """
