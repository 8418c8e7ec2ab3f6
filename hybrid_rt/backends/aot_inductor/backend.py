"""AOTInductor: the artifact is a shared object, compiled here by torch's inductor and a C++ compiler."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import platform
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ... import _native
from ...capture import torch_export
from ...common.errors import BackendError
from ...common.specs import Artifact, blob_from_bytes
from ..base import Availability, Backend
from ..whole_graph import WholeGraph
from . import cuda
from .keep_nan import HANDLES_NAN, handles_nan, keep_nan

if TYPE_CHECKING:
    from ...capture.program import Program

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# The kernel's names of the CPU flags that the compiler's options enable, where they differ from the option's name.
_CPU_FLAGS = {
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "amx-tile": "amx_tile",
    "amx-bf16": "amx_bf16",
    "amx-int8": "amx_int8",
    "amx-fp16": "amx_fp16",
}

# Inductor's cache directory is a setting of the whole process.
_COMPILING = threading.Lock()


class AOTInductorBackend(Backend):
    """Compiles to machine code for this machine's CPU or GPU, with weights folded and packed for it."""

    name = "aot_inductor"
    precisions = ("fp32", "bf16", "fp16")
    devices = ("cpu", "cuda")
    files: ClassVar[Mapping[str, str]] = {"library": ".so", "conditions": ".txt", HANDLES_NAN: ".handles_nan"}
    auto_for: ClassVar[Mapping[str, int]] = {"cuda": 10}

    @property
    def target_precisions(self) -> tuple[str, ...]:
        """Returns the precisions for the target; CPUs have no fp16, because few have instructions for it."""
        return self.precisions if self.target == "cuda" else ("fp32", "bf16")

    def options(self) -> Mapping[str, str]:
        """Returns the options, with the GPU's name for CUDA, because the kernels are tuned for that GPU."""
        options = dict(super().options())
        if self.target == "cuda" and not cuda.reason_against():
            options["gpu"] = f"{cuda.device_name()}, {cuda.capability()}"
        return options

    def settings(self) -> Mapping[str, Any]:
        """Returns the user's settings in torch._inductor.config."""
        import torch._inductor.config

        inductor: Any = torch._inductor.config  # torch puts names into this module when it is imported
        found = {}
        for name in getattr(inductor, "_config", ()):
            with contextlib.suppress(Exception):  # some are functions, which do not pickle
                if not inductor._is_default(name):
                    found[name] = pickle.loads(pickle.dumps(getattr(inductor, name)))
        return found

    def apply(self, settings: Mapping[str, Any]) -> None:
        """Sets the settings in torch._inductor.config."""
        import torch._inductor.config as inductor

        for name, value in settings.items():
            setattr(inductor, name, value)

    def availability(self) -> Availability:
        """Checks for a C++ compiler and, for CUDA, a device. Both are needed only to convert, not to run."""
        candidates = _compilers()
        if not any(shutil.which(candidate.split()[0]) for candidate in candidates):
            return Availability(
                False,
                f"no C++ compiler ({', '.join(candidates)}) to convert with, running needs none; apt-get install g++, "
                "or name one in the environment variable CXX",
            )
        if self.target == "cuda" and (reason := cuda.reason_against()):
            return Availability(False, reason)
        return Availability(True, version=torch.__version__)

    def compile(self, program: Program, precision: str) -> Artifact:
        """Exports the segment and compiles it to a shared object.

        Raises:
            CaptureError: torch.export refuses the segment, or fixes a free size.
            BackendError: Inductor or the C++ compiler fails, an operator has no C function, this machine lacks a
                requirement for compiling for CUDA, or the target does not support the precision.
        """
        self._check(precision)
        exported_program = program.exported(_DTYPES[precision])
        conditions = torch_export.conditions(exported_program, program.inputs)
        try:
            library, marks = _library(exported_program, program, self.target)
        except BackendError:
            raise
        except Exception as error:  # inductor raises many types
            raise BackendError.not_compiled(
                self.name,
                program.name,
                expected="a module that AOTInductor compiles",
                got=f"{type(error).__name__}: {str(error).strip()}",
            ) from error
        # The C++ code around CUDA kernels is compiled for a CPU too.
        requirements = {
            "version": _same_minor(torch.__version__),
            "cpu": ",".join(_cpu_flags()),
            **self.made_for(),
        }
        spec = self.spec(program, precision, versions={"torch": torch.__version__}, requirements=requirements)
        text = "".join(f"{text}\t{words}\n" for text, words in conditions)
        blobs = {"library": blob_from_bytes(library), "conditions": blob_from_bytes(text.encode()), **marks}
        return Artifact(spec, blobs)

    def made_for(self) -> Mapping[str, str]:
        """Returns the compute capability of this machine's GPU, for which the kernels are compiled."""
        return {"compute_capability": cuda.capability()} if self.target == "cuda" else {}

    def whole_graph(self) -> WholeGraph:
        """Returns the way to compile a whole detector to one of torch's packages."""
        from .whole_graph import AOTInductorWholeGraph

        return AOTInductorWholeGraph()

    def _check(self, precision: str) -> None:
        if precision not in self.target_precisions:
            raise BackendError.make(
                self.name,
                f"precision on {self.target}",
                expected=f"one of {', '.join(self.target_precisions)}",
                got=f"'{precision}'",
                remedy="Use one of these, or convert for device='cuda'.",
                code="precision-not-in-engine",
            )
        if self.target == "cuda" and (reason := cuda.reason_against()):
            raise BackendError.make(
                self.name,
                "device cuda",
                expected="a machine that can compile for CUDA",
                got=reason,
                remedy="Install what is missing, or convert on another machine.",
                code="no-gpu-here",
            )


def _compilers() -> list[str]:
    """Returns the commands that inductor would try."""
    import torch._inductor.config

    commands = torch._inductor.config.cpp.cxx
    return [command for command in (commands if isinstance(commands, (list, tuple)) else [commands]) if command]


def _library(
    exported_program: torch.export.ExportedProgram, program: Program, device: str
) -> tuple[bytes, dict[str, torch.Tensor]]:
    """Returns the shared object, and a mark if it handles NaN itself.

    For CUDA, the object is made for the current device and contains its kernels.

    Raises:
        BackendError: it would need a list of operators beside it, for those that have no C function.
    """
    import torch._inductor
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    examples = program.examples
    if device == "cuda":
        exported_program, examples = cuda.move_to_cuda(exported_program, examples)
    module = exported_program.module()
    marks = {HANDLES_NAN: blob_from_bytes(b"1")} if handles_nan(module) else {}
    if device == "cpu":
        keep_nan(module)
    with _private_directory() as directory, _compiling_for(device, directory):
        # Inductor tries instruction sets by small libraries that need torch's symbols, and remembers the answer for the
        # process: without this call it would ask under the options below, and find that there are none.
        pick_vec_isa()
        options = {
            **_options(),
            **(cuda.OPTIONS if device == "cuda" else {}),
            # A directory: inductor chooses the names in it.
            "aot_inductor.output_path": str(directory / "library"),
        }
        with torch.no_grad(), torch_export.free_sizes(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(str(torch._inductor.aot_compile(module, examples, options=options)))
        operators = path.with_suffix(".json")
        if operators.exists() and '"target"' in operators.read_text():
            raise BackendError.make(
                AOTInductorBackend.name,
                f"segment '{program.name}'",
                expected="operators that torch gives a C function",
                got=", ".join(_targets(operators)),
                remedy="Exclude them from the segment, or use another engine.",
                code="operator-not-in-engine",
            )
        return path.read_bytes(), marks


def _targets(operators: Path) -> list[str]:
    nodes = json.loads(operators.read_text())["nodes"]
    return sorted({node["node"]["target"] for node in nodes})


def _options() -> dict[str, Any]:
    """Returns inductor's settings for one compilation; the user's other settings stay in effect."""
    import torch._inductor.config as inductor

    options: dict[str, Any] = {
        "freezing": True,  # folds the weights' arithmetic and packs them
        "cpp.dynamic_threads": True,  # else the number of threads is that of the machine that converts
        "aot_inductor.link_libtorch": False,  # else the place of torch on this machine is written into it
        "aot_inductor.package": False,  # else it returns a list of files
        "aot_inductor.metadata": {},  # inductor writes into it, else into the process's own
        # They would lie in a directory of all processes, and cost more than they save on few segments.
        "aot_inductor.precompile_headers": False,
    }
    if hasattr(inductor.cpp, "march") and inductor.cpp.march is None and platform.machine() == "x86_64":
        # Else all that this very CPU has (-march=native), instead of the instruction set that inductor chose.
        options["cpp.march"] = ""
    return {name: value for name, value in options.items() if _is_known(inductor, name)}


def _is_known(settings: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(settings, part):
            return False
        settings = getattr(settings, part)
    return True


def _compiling_for(device: str, directory: Path) -> contextlib.AbstractContextManager[None]:
    return cuda.compiling(directory) if device == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def _private_directory() -> Iterator[Path]:
    """Yields a temporary directory for inductor's files, so that the user's cache stays unchanged."""
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    with _COMPILING, tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
        before = {name: os.environ.get(name) for name in names}
        os.environ.update({name: str(Path(directory) / "cache") for name in names})
        try:
            yield Path(directory)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _same_minor(version: str) -> str:
    """Returns the range of a minor version, e.g. ``>=2.15,<2.16``, within which torch's C functions are stable."""
    major, minor = version.split(".")[:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


def _cpu_flags() -> list[str]:
    """Returns the CPU flags that the generated code needs, as the kernel names them."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    if platform.machine() != "x86_64":
        return sorted(_native.cpu_flags() & {"asimd", "sve", "sve2", "bf16", "i8mm"})
    if "cpp.march" not in _options():
        # An older torch or the user's settings compile for exactly this CPU: return the flags that a compiler uses.
        wanted = ("avx", "bmi", "fma", "f16c", "movbe", "amx", "sse4", "gfni", "vaes", "vpclmul", "adx", "sha_ni")
        return sorted(flag for flag in _native.cpu_flags() if flag.startswith(wanted))
    options = [option.removeprefix("-m") for option in pick_vec_isa().build_arch_flags().split()]
    return list(dict.fromkeys(_CPU_FLAGS.get(option, option) for option in options))
