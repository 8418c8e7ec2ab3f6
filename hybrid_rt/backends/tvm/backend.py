"""Apache TVM on CPUs: the artifact is a shared library of machine code and weights for one level of CPUs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ... import _native
from ...capture import torch_export
from ...common.errors import BackendError
from ...common.specs import Artifact, blob_from_bytes
from ..base import Availability, Backend, RuntimeFiles, VendorPackages
from . import exact_values
from .tuning import TUNING_DIRECTORY, TUNING_SECONDS, apply_schedules, tune, tuning_seconds

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from ...capture.program import Program

# Levels of the x86-64 ABI (its section 3.1.1): LLVM's name, and the CPU flags that each adds, as the Linux kernel names
# them.
_LEVELS = (
    ("x86-64-v2", "cx16,lahf_lm,pni,popcnt,sse4_1,sse4_2,ssse3"),
    ("x86-64-v3", "abm,avx,avx2,bmi1,bmi2,f16c,fma,movbe,xsave"),
    ("x86-64-v4", "avx512bw,avx512cd,avx512dq,avx512f,avx512vl"),
)


class TVMBackend(Backend):
    """Compiles the exported segment for this machine's level of CPUs, with one schedule for all convolutions.

    If $HYBRID_RT_TVM_TUNING_SECONDS is set, the schedules of convolutions with fixed sizes are chosen by measurement.
    """

    name = "tvm"
    precisions = ("fp32",)
    is_candidate = False  # slower than TorchScript on every CPU that was measured
    files: ClassVar[Mapping[str, str]] = {"library": ".so", "conditions": ".txt"}
    vendor = VendorPackages(
        requirements=("apache-tvm>=0.27,<0.28",),
        modules=("tvm",),
        libraries={"HYBRID_RT_TVM_LIBRARY": "tvm/lib/libtvm_runtime.so"},
    )
    cache_directories = (TUNING_DIRECTORY,)
    runtime_files = RuntimeFiles(
        libraries=("tvm/lib/libtvm_runtime.so", "tvm_ffi/lib/libtvm_ffi.so"),
        data=("tvm/_version.py",),  # the runtime itself does not report its version
    )

    def availability(self) -> Availability:
        """Checks for the package and for the C++ compiler that links the library.

        The package is not imported, because that takes seconds and every listing of the backends calls this method.
        """
        install = "pip install apache-tvm"
        try:
            version = importlib.metadata.version("apache-tvm")
            package = importlib.util.find_spec("tvm")
        except (ImportError, ValueError) as error:
            return Availability(False, f"the tvm package is not installed ({error}); {install}")
        found = [
            Path(place) / "lib" / "libtvm_compiler.so"
            for place in (package and package.submodule_search_locations) or ()
        ]
        if not any(path.exists() for path in found):
            return Availability(False, f"the apache-tvm package is damaged: it has no libtvm_compiler.so; {install}")
        if not version.startswith("0.27."):
            return Availability(
                False, f"apache-tvm {version} is installed, but this backend is for 0.27; {install}==0.27.*"
            )
        if _linker() is None:
            return Availability(False, "no C++ compiler is found, which links what TVM makes; apt-get install g++")
        return Availability(True, version=version)

    def options(self) -> Mapping[str, str]:
        """Returns the time budget of the tuning, in seconds."""
        return {TUNING_SECONDS: f"{tuning_seconds():g}"}

    def compile(self, program: Program, precision: str) -> Artifact:
        """Imports the exported segment, schedules or tunes it, and links the library.

        Args:
            program: The captured segment.
            precision: "fp32", the only one.

        Returns:
            The artifact, with the library and the conditions on its sizes as blobs.

        Raises:
            OptionError: $HYBRID_RT_TVM_TUNING_SECONDS is not a number of seconds.
            CaptureError: torch.export refuses the segment.
            BackendError: TVM does not compile the segment, or computes one of its operations differently from torch.
        """
        seconds = tuning_seconds()
        target, flags = _target()
        exported_program = program.exported()
        conditions = torch_export.conditions(exported_program, program.inputs)
        _refuse_resizes(exported_program, program.name)
        try:
            library = _compile(exported_program, target, seconds)
        except Exception as error:  # the vendor's frontend and compiler raise many types
            raise BackendError.not_compiled(
                self.name, program.name, expected="a module that TVM compiles", got=f"{type(error).__name__}: {error}"
            ) from error
        versions = {"tvm": importlib.metadata.version("apache-tvm"), "torch": torch.__version__}
        if seconds:
            versions["tvm_tuning_seconds"] = f"{seconds:g}"
        # The bytecode in the library is specific to a minor version.
        requirements = {"version": ">=0.27,<0.28", **({"cpu": flags} if flags else {})}
        spec = self.spec(program, precision, versions=versions, requirements=requirements)
        text = "".join(f"{text}\t{words}\n" for text, words in conditions)
        return Artifact(spec, {"library": blob_from_bytes(library), "conditions": blob_from_bytes(text.encode())})


def _linker() -> str | None:
    """Returns the C++ compiler that TVM would find; None if there is none."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    names = [named] if named else ["g++", "gcc", "clang++", "clang", "c++", "cc"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _target() -> tuple[dict[str, Any], str]:
    """Returns the target in TVM's notation, and the CPU flags that the library then requires."""
    target: dict[str, Any] = {"kind": "llvm", "num-cores": torch.get_num_threads()}
    if platform.machine() not in ("x86_64", "AMD64"):
        return target, ""
    here = _native.cpu_flags()
    needed: list[str] = []
    for level, flags in _LEVELS:
        if not here.issuperset(flags.split(",")):
            break
        needed += flags.split(",")
        target["mcpu"] = level
    return target, ",".join(needed)


def _refuse_resizes(program: ExportedProgram, name: str) -> None:
    """Refuses interpolations that TVM 0.27 rounds differently from torch: all but "nearest" by whole factors.

    Raises:
        BackendError: The segment contains such an interpolation.
    """
    for node in program.graph.nodes:
        operation = str(node.target)
        if node.op != "call_function" or not ("upsample" in operation or "grid_sample" in operation):
            continue
        sizes = zip(node.meta["val"].shape[2:], node.args[0].meta["val"].shape[2:], strict=True)
        is_whole = all(isinstance(b, int) and isinstance(a, int) and a % b == 0 for a, b in sizes) or (
            isinstance(node.args[-1], (list, tuple)) and all(float(factor).is_integer() for factor in node.args[-1])
        )
        if "upsample_nearest2d" not in operation or not is_whole:
            raise BackendError.make(
                "tvm",
                f"segment '{name}'",
                expected="interpolation in mode 'nearest' by whole factors, which TVM computes like torch",
                got=operation,
                remedy="Exclude it from the segment, fix the sizes with shapes=, or use another engine.",
                code="operator-not-in-engine",
            )


def _compile(program: ExportedProgram, target: Mapping[str, Any], seconds: float) -> bytes:
    """Returns the contents of the shared library."""
    import tvm
    from tvm.relax.frontend.torch import from_exported_program

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = from_exported_program(program, run_ep_decomposition=True)
    with tvm.target.Target(dict(target)) as goal, tempfile.TemporaryDirectory(prefix="hybrid_rt_") as place:
        module = _fused(module)
        cores = os.sched_getaffinity(0)
        try:
            choices = tune(module, goal, _native.cpu_flags(), seconds) if seconds else {}
        finally:
            os.sched_setaffinity(0, cores)  # TVM pins the thread that runs its functions to cores
        module = apply_schedules(module, choices)
        path = Path(place) / "segment.so"
        tvm.compile(module, target=goal).export_library(str(path), cc=_linker(), workspace_dir=place)
        return path.read_bytes()


def _fused(module: Any) -> Any:
    """Returns the module with operators lowered to loops and adjacent operators fused into one function."""
    import tvm
    from tvm.relax import transform

    passes = [
        transform.FoldBatchnormToConv2D(),
        transform.DecomposeOpsForInference(),
        transform.CanonicalizeBindings(),
        transform.LegalizeOps(exact_values.lowerings()),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    ]
    return tvm.transform.Sequential(passes)(module)
