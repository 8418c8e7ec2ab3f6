"""Apache TVM on CPUs: the artifact is a shared library of machine code and weights, made for a level of CPUs."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from .. import exported
from ..cache_folder import folder
from ..errors import BackendError, HybridRTError, OptionError
from ..files import written_whole
from ..specs import Artifact, blob_from_bytes
from .base import Availability, Backend

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from ..capture import Program

TUNING_SECONDS = "HYBRID_RT_TVM_TUNING_SECONDS"

# The levels of the x86-64 ABI (its section 3.1.1): LLVM's name, and what each adds, in the kernel's words.
_LEVELS = (
    ("x86-64-v2", "cx16,lahf_lm,pni,popcnt,sse4_1,sse4_2,ssse3"),
    ("x86-64-v3", "abm,avx,avx2,bmi1,bmi2,f16c,fma,movbe,xsave"),
    ("x86-64-v4", "avx512bw,avx512cd,avx512dq,avx512f,avx512vl"),
)


class TVMBackend(Backend):
    """Compiles the exported segment for this machine's level of CPUs, with one schedule for all convolutions.

    With $HYBRID_RT_TVM_TUNING_SECONDS the schedules of convolutions of fixed sizes are chosen by measuring.
    """

    name = "tvm"
    precisions = ("fp32",)
    is_candidate = False  # slower than TorchScript on each CPU that it was measured on
    files: ClassVar[Mapping[str, str]] = {"library": ".so", "conditions": ".txt"}

    def availability(self) -> Availability:
        """Whether the package and a C++ compiler, which links the library, are there.

        The package is not imported: that takes seconds, and this is asked by whoever lists the backends.
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
        """The tuning's time budget."""
        return {TUNING_SECONDS: f"{tuning_seconds():g}"}

    def compile(self, program: Program, precision: str) -> Artifact:
        """Imports the exported segment, schedules or tunes it, and links the library.

        Raises:
            OptionError: $HYBRID_RT_TVM_TUNING_SECONDS is not a number of seconds.
            CaptureError: torch.export refuses the segment.
        """
        seconds = tuning_seconds()
        target, flags = _target()
        exported_program = program.exported()
        conditions = exported.conditions(exported_program, program.inputs)
        _refuse_resizes(exported_program, program.name)
        try:
            library = _compile(exported_program, target, seconds)
        except Exception as error:  # the vendor's frontend and compiler raise many types
            raise BackendError.make(
                self.name,
                f"segment '{program.name}'",
                expected="a module that TVM compiles",
                got=f"{type(error).__name__}: {error}",
                remedy="Leave the operation that it names out of the segment, or take another engine.",
            ) from error
        versions = {"tvm": importlib.metadata.version("apache-tvm"), "torch": torch.__version__}
        if seconds:
            versions["tvm_tuning_seconds"] = f"{seconds:g}"
        # The bytecode in the library is of one minor version.
        requirements = {"version": ">=0.27,<0.28", **({"cpu": flags} if flags else {})}
        spec = self.spec(program, precision, versions=versions, requirements=requirements)
        text = "".join(f"{text}\t{words}\n" for text, words in conditions)
        return Artifact(spec, {"library": blob_from_bytes(library), "conditions": blob_from_bytes(text.encode())})


def tuning_seconds() -> float:
    """The time budget of the tuning, for one segment; 0: the default schedule.

    Raises:
        OptionError: $HYBRID_RT_TVM_TUNING_SECONDS is not a number of seconds.
    """
    text = os.environ.get(TUNING_SECONDS) or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise OptionError.make(
            "tvm", TUNING_SECONDS, expected="a number of seconds", got=f"'{text}'", remedy="0 is without tuning."
        )
    return seconds


def _linker() -> str | None:
    """As TVM looks for it."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    names = [named] if named else ["g++", "gcc", "clang++", "clang", "c++", "cc"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _target() -> tuple[dict[str, Any], str]:
    """What to compile for, as TVM says it, and the CPU flags that the library then needs."""
    target: dict[str, Any] = {"kind": "llvm", "num-cores": torch.get_num_threads()}
    if platform.machine() not in ("x86_64", "AMD64"):
        return target, ""
    here = _cpu_flags()
    needed: list[str] = []
    for level, flags in _LEVELS:
        if not here.issuperset(flags.split(",")):
            break
        needed += flags.split(",")
        target["mcpu"] = level
    return target, ",".join(needed)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def _refuse_resizes(program: ExportedProgram, name: str) -> None:
    """TVM 0.27 imports interpolate with another rule of rounding: it is right for whole factors of "nearest" only.

    Raises:
        BackendError: there is another one.
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
                expected="interpolate to be of mode 'nearest' and by whole factors, which TVM computes as torch does",
                got=operation,
                remedy="Leave it out of the segment, fix the sizes with shapes=, or take another engine.",
            )


def _compile(program: ExportedProgram, target: Mapping[str, Any], seconds: float) -> bytes:
    """The bytes of the shared library."""
    import tvm
    from tvm.relax.frontend.torch import from_exported_program

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = from_exported_program(program, run_ep_decomposition=True)
    with tvm.target.Target(dict(target)) as goal, tempfile.TemporaryDirectory(prefix="hybrid_rt_") as place:
        module = _fused(module)
        cores = os.sched_getaffinity(0)
        try:
            choices = tuned(module, goal, seconds) if seconds else {}
        finally:
            os.sched_setaffinity(0, cores)  # TVM binds whoever runs its functions
        module = _scheduled(module, choices)
        path = Path(place) / "segment.so"
        tvm.compile(module, target=goal).export_library(str(path), cc=_linker(), workspace_dir=place)
        return path.read_bytes()


def _fused(module: Any) -> Any:
    """With operators as loops, those of one result in one function."""
    import tvm
    from tvm.relax import transform

    passes = [
        transform.FoldBatchnormToConv2D(),
        transform.DecomposeOpsForInference(),
        transform.CanonicalizeBindings(),
        transform.LegalizeOps(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    ]
    return tvm.transform.Sequential(passes)(module)


@dataclass(frozen=True)
class Choice:
    """How a convolution's loops are arranged.

    Attributes:
        channels: how many output channels are computed together, unrolled.
        kernel: how many of the innermost loops of the sum are unrolled.
    """

    channels: int = 4
    kernel: int = 1


CHOICES = (
    Choice(),
    Choice(8),
    Choice(2),
    Choice(4, 2),
    Choice(1),
    Choice(8, 0),
    Choice(4, 0),
    Choice(8, 2),
    Choice(16),
)
"""What the tuning tries, the first being the default."""


def _scheduled(module: Any, choices: Mapping[str, Choice]) -> Any:
    """Each function's loops in the order of :func:`_schedule`, or as they were where that can't be."""
    import tvm
    from tvm.tirx import PrimFunc

    functions = {
        variable: _arranged(function, choices.get(variable.name_hint, CHOICES[0]))
        if isinstance(function, PrimFunc)
        else function
        for variable, function in module.functions_items()
    }
    result = tvm.IRModule(functions)
    return result.with_attrs(module.attrs) if module.attrs else result


def _arranged(function: Any, choice: Choice) -> Any:
    import tvm
    from tvm.s_tir.schedule import Schedule, ScheduleError

    schedule = Schedule(tvm.IRModule({"main": function}))
    try:
        _schedule(schedule, choice)
    except ScheduleError:
        return function  # slower, and as right
    return schedule.mod["main"]


def _schedule(schedule: Any, choice: Choice) -> None:
    """Orders the loops of a function such that a compiler's vectoriser finds something to do.

    TVM's own order of a convolution has the sum innermost, which is neither vectorised nor kept in registers. With a
    row of the output innermost, and some channels and a row of the kernel unrolled in it, a pixel that was loaded
    serves several products. No loop is split unevenly, so sizes may be free.
    """
    from tvm.tirx import IntImm, IterVar

    def sums(block: Any) -> bool:
        return any(axis.iter_type == IterVar.CommReduce for axis in schedule.get(block).iter_vars)

    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root):
        users = schedule.get_consumers(block)
        if users and not any(map(sums, [block, *users])):
            schedule.compute_inline(block)
    for block in schedule.get_child_blocks(root):
        loops = schedule.get_loops(block)
        axes = schedule.get(block).iter_vars
        if len(loops) != len(axes):
            continue
        pairs = list(zip(loops, axes, strict=True))
        outer = [loop for loop, axis in pairs if axis.iter_type == IterVar.DataPar]
        summed = [loop for loop, axis in pairs if axis.iter_type == IterVar.CommReduce]
        if len(outer) < 3 or len(outer) + len(summed) != len(loops):
            continue
        if not summed:
            schedule.parallel(schedule.fuse(*outer[:2]))
            continue
        last = next(axis.var for _, axis in reversed(pairs) if axis.iter_type == IterVar.DataPar)
        if not _is_a_row(schedule.get(block), last):
            continue
        batch, channel, *middle, row = outer
        unrolled = []
        extent = schedule.get(channel).extent
        if choice.channels > 1 and isinstance(extent, IntImm) and extent.value % choice.channels == 0:
            channel, few = schedule.split(channel, [None, choice.channels])
            unrolled.append(few)
        for _ in range(choice.kernel):
            extent = schedule.get(summed[-1]).extent if summed else None
            if isinstance(extent, IntImm) and extent.value <= 7:
                unrolled.append(summed.pop())
        schedule.reorder(batch, channel, *middle, *summed, row, *unrolled)
        for loop in unrolled:
            schedule.unroll(loop)
        schedule.parallel(schedule.fuse(batch, channel))
        schedule.decompose_reduction(block, [*summed, row][0])


def _is_a_row(block: Any, variable: Any) -> bool:
    """Whether a step of the variable is a step in the last dimension of all that is read and written."""
    from tvm.tirx.analysis import undefined_vars

    return not any(
        used.same_as(variable)
        for access in [*block.reads, *block.writes]
        for extent in access.region[:-1]
        for used in undefined_vars(extent.min)
    )


def tuned(module: Any, target: Any, seconds: float) -> dict[str, Choice]:
    """For each function of fixed sizes the choice that was measured as the fastest, within a time budget.

    The functions that matter most come first. What was measured is kept in the cache's folder for later conversions.
    """
    from tvm.tirx import PrimFunc

    known = _Measured(target)
    functions = {
        variable.name_hint: function
        for variable, function in module.functions_items()
        if isinstance(function, PrimFunc) and "conv" in variable.name_hint and _shapes(function) is not None
    }
    end = time.monotonic() + seconds
    for choice in CHOICES:
        # What the choices so far say of the time that a function takes.
        names = sorted(functions, key=lambda name: -min(known.seconds(functions[name]).values(), default=math.inf))
        for name in names:
            if choice not in known.seconds(functions[name]) and time.monotonic() < end:
                known.measure(functions[name], choice)
    known.save()
    best = {}
    for name, function in functions.items():
        times = known.seconds(function)
        if CHOICES[0] in times:
            best[name] = min(times, key=lambda choice: times[choice])
    return best


def _shapes(function: Any) -> list[tuple[list[int], str]] | None:
    """Shapes and dtypes of its arguments; None if a size is free."""
    from tvm.tirx import IntImm

    found = []
    for parameter in function.params:
        shape = getattr(parameter, "shape", None)
        if shape is None or not all(isinstance(size, (int, IntImm)) for size in shape):
            return None
        found.append(([int(size) for size in shape], str(parameter.dtype)))
    return found


class _Measured:
    """The seconds that functions took, by choice, kept on disk. A folder that can't be read or written keeps none."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.times: dict[str, dict[str, float]] = {}
        version = importlib.metadata.version("apache-tvm")
        machine = hashlib.sha256(f"{version} {target} {platform.processor()} {sorted(_cpu_flags())}".encode())
        self.path: Path | None = None
        with contextlib.suppress(OSError, OptionError, ValueError):
            self.path = folder() / "tvm_tuning" / f"{machine.hexdigest()}.json"
            times = json.loads(self.path.read_text())
            self.times = {key: dict(each) for key, each in times.items()}

    @staticmethod
    def key(function: Any) -> str:
        """Of what the function computes."""
        return hashlib.sha256(function.script().encode()).hexdigest()

    def seconds(self, function: Any) -> dict[Choice, float]:
        """Those of the choices that were measured."""
        times = self.times.get(self.key(function), {})
        return {choice: times[repr(choice)] for choice in CHOICES if repr(choice) in times}

    def measure(self, function: Any, choice: Choice) -> None:
        """Compiles and runs a function on this machine, in this process."""
        import numpy as np
        import tvm

        arguments = [tvm.runtime.tensor(np.ones(shape, dtype)) for shape, dtype in _shapes(function) or []]
        arranged = _arranged(function, choice).with_attr("global_symbol", "main")
        run = tvm.compile(tvm.IRModule({"main": arranged}), target=self.target)["main"]
        took = math.inf
        for _ in range(4):
            start = time.perf_counter()
            run(*arguments)
            took = min(took, time.perf_counter() - start)
        self.times.setdefault(self.key(function), {})[repr(choice)] = took

    def save(self) -> None:
        if self.path is None:
            return
        with contextlib.suppress(OSError, HybridRTError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self.path) as temporary:
                temporary.write_text(json.dumps(self.times))
