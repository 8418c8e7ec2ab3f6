"""Defines the cases that tools/gpu_check runs on the GPU: one function per case, each in its own process.

A function writes rows as it gets them, so that those before a crash are kept. An exception is the failure of the case.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.gpu.report import FAILED, NOT_RUN, PASSED, Row
from tools.gpu.runner import DEVICE_VARIABLE, REFUSAL, Case, Writer

ROOT = Path(__file__).resolve().parents[2]

NO_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}
"""Environment in which neither cuDNN nor cuBLAS uses TF32, in this process and in C++ ones. torch allows it in
convolutions, and with random weights its rounding moves boxes."""
GRAPHS = "HYBRID_RT_TENSORRT_CUDA_GRAPHS"
_PACKAGES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx-cu13-libs",
    "tensorrt-rtx-cu13-bindings",
    "cuda-bindings",
    "openvino",
    "apache-tvm",
)


def facts(writer: Writer) -> None:
    """Reports the device and the installed packages. The run ends here if there is no device."""
    import torch

    if not torch.cuda.is_available():
        writer.data(no_device=_why_no_device())
        return
    properties = torch.cuda.get_device_properties(0)
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "CUDA": torch.version.cuda,
        **versions,
    }
    writer.data(device=device, memory_bytes=properties.total_memory, cudnn=torch.backends.cudnn.version())
    writer.row(Row("device", PASSED, ", ".join(f"{name} {value}" for name, value in device.items())))


def _why_no_device() -> str:
    """Returns why there is no device, in the driver's words, from hybrid_rt if it is installed, or from torch."""
    try:
        from hybrid_rt import _native

        return str(_native.cuda_devices()[1]) or "torch finds no CUDA device, though the driver does"
    except ImportError as error:
        import torch

        try:
            torch.cuda.init()
        except Exception as reason:  # its classes of errors differ between versions
            return str(reason)
        return f"hybrid_rt can't be imported: {error}"


def _driver() -> str:
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return "unknown (no nvidia-smi)"
    command = [nvidia_smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout.splitlines() or ["unknown"])[0].strip()


def doctor(writer: Writer) -> None:
    """Runs ``hybrid-rt doctor`` and reports its findings for backends that use GPUs."""
    command = [sys.executable, "-c", "from hybrid_rt.cli.main import main; raise SystemExit(main(['doctor']))"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    writer.data(doctor=done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["hybrid-rt doctor: no output"])[-1])
    lines = {line.split()[0]: line.strip() for line in done.stdout.splitlines() if line.startswith("  ")}
    for name in ("tensorrt", "aot_inductor"):
        text = lines.get(name, f"{name}: not listed: its plug-in was not built")
        writer.row(Row(f"doctor: {name}", PASSED if ": available" in text else NOT_RUN, text))
    for line in done.stdout.splitlines():
        library, _, verdict = line.strip().partition(": would ")
        if verdict:  # per library of the vendor and GPU
            writer.row(Row(f"doctor: {library}", PASSED if verdict == "run" else NOT_RUN, f"would {verdict}"))


def python_tests(writer: Writer, name: str, engine: str) -> None:
    """Runs the tests of a file that need a GPU. Counts pytest's own lines, so that a hang keeps those before it."""
    command = [sys.executable, "-m", "pytest", "-v", "--no-header", "-p", "no:cacheprovider", "--tb=short"]
    command += [f"tests/python/{name}.py", "-m", "gpu"]
    count = {"PASSED": 0, "FAILED": 0, "ERROR": 0, "SKIPPED": 0}
    failures: list[str] = []
    last = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
            found = re.match(r"tests/\S+::.* (PASSED|FAILED|ERROR|SKIPPED)\b", line)
            if found:
                count[found[1]] += 1
                if sum(count.values()) % 20 == 0:
                    writer.data(tests=count)
            elif re.match(r"(FAILED|ERROR) tests/", line):
                failures.append(line.strip())
        code = process.wait()
    writer.data(tests=count, failures=failures)
    ran = count["PASSED"] + count["FAILED"] + count["ERROR"]
    figure = ", ".join(f"{number} {word.lower()}" for word, number in count.items())
    if code not in (0, 1, 5):
        raise RuntimeError(f"{figure}; pytest ended with {code}: {last}")
    result = FAILED if code == 1 else PASSED if ran else NOT_RUN
    writer.row(Row(f"tests: {name}", result, figure, engine))
    for text in failures[:3]:
        writer.row(Row(f"tests: {name}", FAILED, text, engine))


def _built(program: str) -> Path | None:
    """Returns the path of a C++ test program, if it was built."""
    directories = (ROOT / "build" / "gpu_check_build", *sorted((ROOT / "build").glob("cp*")))
    return next((path for directory in directories if (path := directory / "bin" / program).exists()), None)


def emulator_tests(writer: Writer) -> None:
    """Runs those tests of the emulated GPU that need no injected fault on this GPU with TensorRT's own library."""
    title, engine = "tests of the emulated GPU", "tensorrt"
    program = _built("hybrid_rt_tensorrt_tests")
    if program is None:
        writer.row(Row(title, NOT_RUN, "not built: doctest is missing (Debian: doctest-dev), or --no-build", engine))
        return
    is_rehearsal = os.environ.get(DEVICE_VARIABLE) == "cpu"
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
        make = [sys.executable, "-m", "tools.gpu.test_engines", directory, *(["--stand-in"] if is_rehearsal else [])]
        made = subprocess.run(make, capture_output=True, text=True, check=False)
        print(made.stdout, made.stderr)
        if made.returncode:
            said = (made.stderr.strip().splitlines() or ["no output"])[-1]
            writer.row(Row(title, NOT_RUN, f"no engines for this GPU: {said}", engine))
            return
        library = made.stdout.splitlines()[-1]
        environment = {
            **os.environ,
            "HYBRID_RT_TEST_GPU_ENGINES": directory,
            "HYBRID_RT_TEST_EMULATED_BUNDLE": str(Path(directory) / "bundle.pt"),
        }
        if is_rehearsal:
            libraries = program.parents[1] / "lib"
            environment |= {
                "HYBRID_RT_TEST_GPU_REHEARSAL": "1",
                "HYBRID_RT_CUDA_DRIVER": str(libraries / "libemulated_driver_new.so"),
                "HYBRID_RT_TENSORRT_LIBRARY": str(libraries / "libemulated_tensorrt_enterprise_10.so"),
                "HYBRID_RT_TENSORRT_RTX_LIBRARY": "/nowhere/libtensorrt_rtx.so",
            }
        done = subprocess.run([str(program)], capture_output=True, text=True, check=False, env=environment)
    print(done.stdout, done.stderr)
    last = [line for line in done.stdout.splitlines() if "test cases" in line]
    found = (
        last[-1].removeprefix("[doctest]").strip() if last else (done.stderr or f"ended with {done.returncode}")[-300:]
    )
    where = ", rehearsed on the emulated GPU" if is_rehearsal else ""
    writer.row(Row(title, FAILED if done.returncode else PASSED, f"{library}: {found}{where}", engine))


def cpp_tests(writer: Writer) -> None:
    """Runs the C++ tests, if they were built."""
    program = _built("hybrid_rt_tests")
    if program is None:
        writer.row(Row("C++ tests", NOT_RUN, "not built: the drill's build leaves them out, since they need minutes"))
        return
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
        bundle = Path(directory) / "digits.pt"
        make = [sys.executable, "-m", "tools.dev.make_test_bundle", str(bundle)]
        made = subprocess.run(make, capture_output=True, text=True, check=False)
        # The other tests need no bundle.
        left_out = [] if made.returncode == 0 else ["--source-file-exclude=*test_bundle*,*test_detector*,*test_verify*"]
        environment = {**os.environ, "HYBRID_RT_TEST_BUNDLE": str(bundle)}
        command = [str(program), *left_out]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    print(made.stderr, done.stdout, done.stderr)
    last = [line for line in done.stdout.splitlines() if "test cases" in line]
    writer.row(Row("C++ tests", FAILED if done.returncode else PASSED, last[-1] if last else done.stderr[-300:]))


def _on_gpu(function: str, **arguments: Any) -> Callable[[Writer], None]:
    """Returns a case that runs a function of engines.py, whose imports (torch, hybrid_rt) the parent must avoid."""

    def run(writer: Writer) -> None:
        getattr(importlib.import_module("tools.gpu.engines"), function)(writer, **arguments)

    return run


CASES: dict[str, tuple[Case, Callable[[Writer], None]]] = {}
"""Cases in the order in which they run. Those that measure come last; within each group, the most informative come
first."""


def _add(name: str, run: Callable[[Writer], None], seconds: float, engine: str = "", **more: Any) -> None:
    CASES[name] = Case(name, engine, seconds, **more), run


def _add_tests(name: str, seconds: float, engine: str = "") -> None:
    _add(f"tests: {name}", partial(python_tests, name=name, engine=engine), seconds, engine)


DETECTOR_TITLES = {"demo": "demo", "r50": "Faster R-CNN R50-FPN"}
DENSE_HEAD_TITLES = {"retinanet": "RetinaNet R50-FPN", "ssdlite": "SSDLite320"}
"""Detectors whose heads run operators of known heads."""

_add("facts", facts, 60)
_add("doctor", doctor, 60)
_add_tests("operators/test_head_operators", 150, "operators")
_add_tests("operators/test_detection_operators_cuda", 40, "operators")
for _name, _title in DETECTOR_TITLES.items():
    for _engine, _precision in (("aot_inductor", "fp16"), ("torchscript", "fp32"), ("aot_inductor", "fp32")):
        _run = _on_gpu("same_boxes", name=_name, engine=_engine, precision=_precision)
        _add(f"boxes: {_title}, {_engine} {_precision}", _run, 240, _engine,
             environment=NO_TF32 if _precision == "fp32" else None)  # fmt: skip
for _name, _title in DENSE_HEAD_TITLES.items():
    _run = _on_gpu("same_boxes", name=_name, engine="torchscript", precision="fp32")
    _add(f"boxes: {_title}, torchscript fp32", _run, 240, "torchscript", environment=NO_TF32)
_add_tests("backends/test_aot_inductor_cuda", 200, "aot_inductor")
for _target in ("current", "capability", "default"):
    _library = "tensorrt_rtx"
    _add(f"TensorRT-RTX for {_target}", _on_gpu("build_engine", library=_library, target=_target), 90, _library)
_add("TensorRT", _on_gpu("build_engine", library="tensorrt", target="current"), 120, "tensorrt_full")
_add_tests("backends/test_tensorrt_cuda", 150, "tensorrt")
_add("tests of the emulated GPU", emulator_tests, 120, "tensorrt")
for _name, _title in DETECTOR_TITLES.items():
    for _engine, _precision in (("tensorrt", "fp16"), ("aot_inductor", "bf16"), ("torchscript", "bf16")):
        _run = _on_gpu("same_boxes", name=_name, engine=_engine, precision=_precision)
        _add(f"boxes: {_title}, {_engine} {_precision}", _run, 240, _engine)
_add("demo mAP", _on_gpu("accuracy"), 120)
_add_tests("programs/test_detect_app", 120)
_add_tests("bench/test_suite", 120)
_add("C++ tests", cpp_tests, 120)

# Measurements, most valuable first. The conversions above filled the cache.
for _name, _title in {**DETECTOR_TITLES, "ssdlite": DENSE_HEAD_TITLES["ssdlite"]}.items():
    _run = _on_gpu("end_to_end", name=_name, variants=["aot_inductor:fp16", "torchscript:fp32"])
    _add(f"end to end, {_title}", _run, 200, "aot_inductor", is_timed=True)
_add("R50-FPN backbone, aot_inductor", _on_gpu("backbone", name="r50", engine="aot_inductor"), 120, "aot_inductor",
     is_timed=True)  # fmt: skip
_add("compilation, demo backbone", _on_gpu("conversion", name="demo", engine="aot_inductor"), 180, "aot_inductor",
     is_timed=True)  # fmt: skip
_add("nms, roi_align", _on_gpu("head_operators"), 60, "operators", is_timed=True)
for _engine in ("aot_inductor", "torch"):
    _run = _on_gpu("replay", name="r50", engine=_engine)
    _add(f"replay over kernels, R50-FPN, {_engine}", _run, 60, _engine, is_timed=True)
for _mode in ("static", "copy"):
    _run = _on_gpu("replay", name="r50", engine="tensorrt", mode=_mode)
    _add(f"replay over kernels, R50-FPN, tensorrt {_mode}", _run, 60, "tensorrt", environment={GRAPHS: _mode},
         is_timed=True)  # fmt: skip
_add("op over bare engine, R50-FPN", _on_gpu("op_cost", name="r50"), 90, "tensorrt", is_timed=True)
for _engine in ("aot_inductor", "tensorrt"):
    _add(f"two streams, {_engine}", _on_gpu("two_streams", name="r50", engine=_engine), 60, _engine, is_timed=True)
_add("profile, Faster R-CNN R50-FPN", _on_gpu("profile", name="r50"), 90, "aot_inductor", is_timed=True)
for _engine in ("tensorrt", "torch"):
    _run = _on_gpu("backbone", name="r50", engine=_engine)
    _add(f"R50-FPN backbone, {_engine}", _run, 120, _engine, is_timed=True)
for _name, _title in DETECTOR_TITLES.items():
    _run = _on_gpu("end_to_end", name=_name, variants=["tensorrt:fp16", "tensorrt:fp32"])
    _add(f"end to end, {_title}, tensorrt", _run, 150, "tensorrt", is_timed=True)
    _run = _on_gpu("end_to_end", name=_name, variants=["aot_inductor:fp32", "aot_inductor:bf16", "torchscript:bf16"])
    _add(f"end to end, {_title}, other precisions", _run, 240, "aot_inductor", is_timed=True)
for _mode in ("copy", "static"):
    _environment = {GRAPHS: _mode}
    _run = _on_gpu("graphs", name="r50", mode=_mode)
    _add(f"CUDA graphs: {_mode}", _run, 60, "tensorrt", environment=_environment, is_timed=True)
_add("R50-FPN backbone, torch.compile", _on_gpu("backbone", name="r50", engine="compile"), 120, "torch", is_timed=True)
for _engine in ("torch", "aot_inductor", "tensorrt"):
    _add(f"demo backbone, {_engine}", _on_gpu("backbone", name="demo", engine=_engine), 90, _engine, is_timed=True)


def main() -> int:
    """``python -m tools.gpu.cases CASE FILE``: runs a case in this process; the parent starts it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    writer = Writer(options.file)
    try:
        CASES[options.case][1](writer)
    except Exception as error:
        traceback.print_exc()
        writer.data(failure=f"{type(error).__name__}: {' '.join(str(error).split())}")
        names = {parent.__name__ for parent in type(error).__mro__}  # hybrid_rt may not be importable
        return REFUSAL if "HybridRTError" in names else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
