"""Times a bundle's TensorRT engine with only the vendor's Python module and CUDA, without torch and hybrid_rt.

The additional time of our op is its own cost. The engine is extracted in a separate process, or read from a directory
of extracted files (hybrid-rt extract). Each call is timed by two CUDA events on a separate stream.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

VENDORS = {"tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"), "tensorrt": ("tensorrt",)}
"""Python modules that may provide each library."""

WARM_UP = 20

_EXTRACT = """
import json, sys
import hybrid_rt
bundle, directory, segment = sys.argv[1:]
files = hybrid_rt.extract(bundle, directory, segment=segment or None, backend="tensorrt")
variants = [v for e in hybrid_rt.inspect(bundle)["engines"] for v in e["variants"] if v["backend"] == "tensorrt"]
libraries = sorted({name for v in variants for name in ("tensorrt", "tensorrt_rtx") if name in v["requirements"]})
print(json.dumps({"files": [str(file) for file in files], "libraries": libraries}))
"""


class BareEngineError(RuntimeError):
    """Nothing could be timed. ``got`` is the part of the text that describes the actual state."""

    got = ""

    @classmethod
    def make(cls, subject: str, expected: str, got: str, remedy: str) -> BareEngineError:
        """Creates the error, with a text in the form that all of hybrid_rt uses."""
        error = cls(f"hybrid_rt[bare_engine]: {subject}: expected {expected}, got {got}. {remedy}")
        error.got = got
        return error


class Cuda(Protocol):
    """The CUDA functions in use. Addresses, streams and events are the binding's own objects."""

    name: str

    def device_count(self) -> int:
        """Returns the number of devices. Raises if there is no driver."""

    def upload(self, values: bytes | bytearray | memoryview) -> int:
        """Returns the address of a copy on the device."""

    def stream(self) -> Any:
        """Returns a new stream that does not wait for others."""

    def handle(self, stream: Any) -> int:
        """Returns the stream as TensorRT takes it."""

    def event(self) -> Any:
        """Returns a new event that records the time."""

    def record(self, event: Any, stream: Any) -> None:
        """Records the event in the stream."""

    def elapsed(self, start: Any, end: Any) -> float:
        """Waits for the second event and returns the milliseconds between both."""


class _CudaPython:
    """CUDA through NVIDIA's cuda-python."""

    def __init__(self) -> None:
        try:
            self._runtime = importlib.import_module("cuda.bindings.runtime")
        except ImportError:
            self._runtime = importlib.import_module("cuda.cudart")  # the module's name before 12.8
        self.name = f"cuda-python ({self._runtime.__name__})"

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._runtime, function)(*arguments)
        if int(error):
            _, text = self._runtime.cudaGetErrorString(error)
            raise BareEngineError.make(
                function,
                "success",
                text.decode() if isinstance(text, bytes) else str(text),
                "The message is CUDA's own; nvidia-smi says whether the driver runs.",
            )
        return values[0] if values else None

    def device_count(self) -> int:
        return int(self._call("cudaGetDeviceCount"))

    def upload(self, values: bytes | bytearray | memoryview) -> int:
        data = bytes(values)
        address = self._call("cudaMalloc", max(len(data), 1))
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", address, data, len(data), kind)
        return int(address)

    def stream(self) -> Any:
        return self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def handle(self, stream: Any) -> int:
        return int(stream)

    def event(self) -> Any:
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: Any) -> None:
        self._call("cudaEventRecord", event, stream)

    def elapsed(self, start: Any, end: Any) -> float:
        self._call("cudaEventSynchronize", end)
        return float(self._call("cudaEventElapsedTime", start, end))


class _PyCuda:
    """CUDA through pycuda, if only that is installed."""

    def __init__(self) -> None:
        self._driver = importlib.import_module("pycuda.driver")
        self.name = "pycuda"
        self._buffers: list[Any] = []  # keeps buffers alive that pycuda would free

    def device_count(self) -> int:
        self._driver.init()
        count: int = self._driver.Device.count()
        if count:
            importlib.import_module("pycuda.autoinit")
        return count

    def upload(self, values: bytes | bytearray | memoryview) -> int:
        buffer = self._driver.to_device(bytearray(values) or bytearray(1))
        self._buffers.append(buffer)
        return int(buffer)

    def stream(self) -> Any:
        return self._driver.Stream()

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def event(self) -> Any:
        return self._driver.Event()

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def elapsed(self, start: Any, end: Any) -> float:
        end.synchronize()
        return float(end.time_since(start))


def find_cuda(bindings: Sequence[Callable[[], Cuda]] = (_CudaPython, _PyCuda)) -> Cuda:
    """Returns the first binding that can be imported and finds a device.

    Raises:
        BareEngineError: No binding can be imported, or there is no driver or no device.
    """
    reasons = []
    for binding in bindings:
        try:
            cuda = binding()
        except Exception as error:  # without a driver, importing pycuda fails, but not with an ImportError
            reasons.append(f"{binding.__name__.lstrip('_')}: {error}")
            continue
        try:
            count, reason = cuda.device_count(), "none"
        except Exception as error:  # each binding has its own types of errors
            count, reason = 0, f"none: {getattr(error, 'got', error)}"
        if count:
            return cuda
        raise BareEngineError.make(
            "device", "a CUDA device", reason.rstrip("."), "Run it on a machine with an NVIDIA GPU and its driver."
        )
    raise BareEngineError.make(
        "cuda-python", "cuda.bindings or pycuda", "; ".join(reasons), "pip install cuda-bindings brings the first."
    )


def find_vendor(libraries: Sequence[str]) -> Any:
    """Returns the vendor's module that built the engine.

    Args:
        libraries: The keys of :data:`VENDORS` that it may be.

    Raises:
        BareEngineError: None of them can be imported.
    """
    reasons = []
    for library in libraries:
        for name in VENDORS[library]:
            try:
                module = importlib.import_module(name)
                assert hasattr(module, "Runtime"), "it has no Runtime"
            except Exception as error:  # pip's stub of TensorRT may raise anything
                reasons.append(f"{name}: {error}")
                continue
            return module
    raise BareEngineError.make(
        "vendor",
        f"the Python module of {' or '.join(libraries)}",
        "; ".join(reasons),
        "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings; TensorRT's comes from NVIDIA.",
    )


def extracted(source: Path, segment: str, directory: Path) -> tuple[Path, list[str]]:
    """Returns the engine's file, and the libraries that may have built it.

    Args:
        source: A bundle, or a directory of extracted files.
        segment: The segment of the engine; empty if there is only one engine.
        directory: Directory for a bundle's extracted files.

    Raises:
        BareEngineError: There is no engine, or there are several.
    """
    libraries = list(VENDORS)
    if not source.exists():
        raise BareEngineError.make(str(source), "a bundle, or a directory of extracted files", "none", "Name another.")
    if source.is_file():
        command = [sys.executable, "-c", _EXTRACT, str(source), str(directory), segment]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it printed nothing"]
            raise BareEngineError.make(
                str(source), "a bundle with a TensorRT engine", lines[-1].rstrip("."), "hybrid-rt inspect lists both."
            )
        libraries = json.loads(done.stdout.splitlines()[-1])["libraries"] or libraries
        source = directory
    found = sorted(source.glob(f"{segment}*.engine"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise BareEngineError.make(str(source), "one *.engine file", names, "--segment NAME picks one.")
    return found[0], libraries


def shapes_of(texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Reads shapes such as "1x3x800x1088".

    Raises:
        BareEngineError: A text is not a shape.
    """
    shapes = []
    for text in texts:
        parts = text.split("x")
        if not all(part.isdigit() for part in parts):
            raise BareEngineError.make("--shape", "sizes such as 1x3x800x1088", f"'{text}'", "One for each input.")
        shapes.append(tuple(map(int, parts)))
    return shapes


class Engine:
    """An engine and its memory, ready to be called."""

    def __init__(
        self, vendor: Any, cuda: Cuda, path: Path, profile: int, shapes: Sequence[tuple[int, ...]] = ()
    ) -> None:
        """Loads the engine.

        Args:
            vendor: Result of :func:`find_vendor`.
            cuda: Result of :func:`find_cuda`.
            path: File of the engine. Its bindings are next to it, in a file that ends in .json.
            profile: Index of the optimisation profile.
            shapes: Shapes of the inputs; empty for the profile's optimal shapes.

        Raises:
            BareEngineError: The vendor refuses the engine, there is no such profile, or a size is outside of it.
        """
        self.cuda = cuda
        bindings = json.loads(path.with_suffix(".json").read_text())
        self._logger = vendor.Logger(vendor.Logger.WARNING)
        self._runtime = vendor.Runtime(self._logger)  # only after counting devices, because it crashes without a driver
        if bindings["version_compatible"]:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BareEngineError.make(
                str(path),
                f"an engine for this GPU and {vendor.__name__} {vendor.__version__}",
                "one that it does not take; its own message stands above",
                "Convert the detector on this machine.",
            )
        if not 0 <= profile < self._engine.num_optimization_profiles:
            raise BareEngineError.make(
                "--profile", f"below {self._engine.num_optimization_profiles}", str(profile), "Name another."
            )
        self.stream = cuda.stream()
        self._context = self._engine.create_execution_context()
        self._context.set_optimization_profile_async(profile, cuda.handle(self.stream))
        self.inputs: dict[str, list[int]] = {}
        self._place(vendor, [name for name in bindings["inputs"] if name], profile, list(shapes))

    def _place(self, vendor: Any, inputs: Sequence[str], profile: int, shapes: list[tuple[int, ...]]) -> None:
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        if shapes and len(shapes) != len(inputs):
            raise BareEngineError.make("--shape", f"one for each of {', '.join(inputs)}", str(len(shapes)), "Give all.")
        for i, name in enumerate(inputs):
            best = tuple(self._engine.get_tensor_profile_shape(name, profile)[1])
            shape = shapes[i] if shapes else best
            if not self._context.set_input_shape(name, shape):
                least, _, most = self._engine.get_tensor_profile_shape(name, profile)
                raise BareEngineError.make(
                    f"input '{name}'", f"{tuple(least)} to {tuple(most)}", str(shape), "Name sizes within the profile."
                )
            self.inputs[name] = list(shape)
        for name in names:
            shape = tuple(self._context.get_tensor_shape(name))
            dtype = self._engine.get_tensor_dtype(name)
            self._context.set_tensor_address(name, self.cuda.upload(_values(vendor, dtype, shape, name in inputs)))

    def call(self) -> None:
        """Launches one call in the stream."""
        if not self._context.execute_async_v3(self.cuda.handle(self.stream)):
            raise BareEngineError.make(
                "call", "success", "a failure; its own message stands above", "The message is TensorRT's own."
            )


def _values(vendor: Any, dtype: Any, shape: Sequence[int], is_input: bool) -> bytes | memoryview:
    """Fills float32 inputs with random numbers, because a GPU takes less power on zeros and may clock higher."""
    count = 1
    for size in shape:
        count *= size
    if not is_input or dtype != vendor.DataType.FLOAT:
        return bytes(int(count * dtype.itemsize))
    generator = random.Random(0)
    return memoryview(array("f", (generator.random() for _ in range(count)))).cast("B")


def time_engine(engine: Engine, rounds: int, warm_up: int = WARM_UP) -> list[float]:
    """Returns the milliseconds of each call. The calls run one after another."""
    cuda = engine.cuda
    start, end = cuda.event(), cuda.event()
    times = []
    for i in range(warm_up + rounds):
        cuda.record(start, engine.stream)
        engine.call()
        cuda.record(end, engine.stream)
        milliseconds = cuda.elapsed(start, end)
        if i >= warm_up:
            times.append(milliseconds)
    return times


def percentile(values: Sequence[float], percent: int) -> float:
    """Returns the nearest-rank percentile, like hybrid_rt.common.latency."""
    ordered = sorted(values)
    return ordered[max(1, -(-len(ordered) * percent // 100)) - 1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures. Returns the exit code: 1 if there are none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="or a directory of extracted files")
    parser.add_argument("--segment", default="", help="whose engine, where there are several")
    parser.add_argument("--profile", type=int, default=0, help="optimisation profile (default: 0)")
    parser.add_argument("--shape", action="append", default=[], metavar="1x3x800x1088", help="of an input, in order")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    try:
        # Quick checks come before anything that takes long.
        shapes = shapes_of(options.shape)
        if not options.bundle.exists():
            extracted(options.bundle, options.segment, Path())
        cuda = find_cuda()
        find_vendor(list(VENDORS))
        with tempfile.TemporaryDirectory(prefix="hybrid_rt_") as directory:
            path, libraries = extracted(options.bundle, options.segment, Path(directory))
            vendor = find_vendor(libraries)
            engine = Engine(vendor, cuda, path, options.profile, shapes)
            times = time_engine(engine, options.rounds)
    except BareEngineError as error:
        print(error, file=sys.stderr)
        return 1
    found = {
        "engine": path.name,
        "vendor": f"{vendor.__name__} {vendor.__version__}",
        "cuda": cuda.name,
        "inputs": engine.inputs,
        "rounds": options.rounds,
        "median_ms": percentile(times, 50),
        "p95_ms": percentile(times, 95),
    }
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{found['engine']} by {found['vendor']}, {found['inputs']}, {options.rounds} calls:")
        print(f"median {found['median_ms']:.4f} ms, p95 {found['p95_ms']:.4f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
