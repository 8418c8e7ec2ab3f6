"""Runs the benchmark: prepares each case, loads each in a process of its own, calls them alternately."""

from __future__ import annotations

import json
import math
import os
import platform
import random
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _native
from ..backends import registry
from ..common.errors import OptionError
from ..common.executables import program
from ..common.json_values import finite
from ..common.latency import Latency
from ..common.progress import Steps
from ..torchscript import jit
from ..verification.boxes import BoxMatch, compare_detections, differences
from ..verification.thresholds import thresholds_of
from .cases import Case
from .processes import Process, ProcessFailed

PREPARE_SECONDS = 1800.0
ANSWER_SECONDS = 600.0
"""Longest times for a compiler, and for loading or one call. torch.compile compiles in its first call."""


PAUSE_SECONDS = 0.05
"""Between two calls: threads of the process that was called before may still spin, waiting for more work."""


@dataclass(frozen=True)
class Subject:
    """A detector and what it looks at.

    Attributes:
        name: in tables and files.
        build: returns it; called once.
        images: [3, H, W] in 0..1 each.
        calibration: images that int8 is calibrated on; none: ``images``.
    """

    name: str
    build: Callable[[], nn.Module]
    images: Sequence[Tensor]
    calibration: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Settings:
    """Settings for preparing and timing cases.

    Attributes:
        rounds: number of timed calls per case; cases run alternately, on one image after the other.
        warm_up: number of untimed calls per case and image before; the first one is reported separately.
        threads: threads per call; 0: torch's default.
        segments: segments of the hybrids. "auto" is decided once, by the first engine's conversion, and kept for the
            others.
        fixed_sizes: compile the hybrids only for the images' sizes, instead of all that the detector supports.
        device: device for all cases, "cpu" or "cuda"; the images are moved there before the timing starts.
        int8_options: options of the engines for int8, such as ``int8_seconds``; a missing one has the engines' default.
    """

    rounds: int = 20
    warm_up: int = 2
    threads: int = 0
    segments: str | list[str] = "auto"
    fixed_sizes: bool = False
    device: str = "cpu"
    int8_options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Result of one case.

    Attributes:
        detector: the subject's name.
        case: the case.
        failure: why there are no figures; empty if there are.
        prepare_seconds: time to script, convert or compile, with the compilers' caches.
        file_bytes: size of the file that it loads.
        load_ms: time until the detector can be called, without imports.
        latency: latency of a call on one image, in milliseconds.
        peak_bytes: peak of the process's resident memory, including interpreter and libraries.
        engines: {engine: description of the variant that runs it} of a hybrid.
        boxes: comparison with eager's boxes, per image.
        differences: differences of the boxes beyond the thresholds of this precision.
        not_compared: why the boxes could not be compared.
    """

    detector: str
    case: Case
    failure: str = ""
    prepare_seconds: float = 0.0
    file_bytes: int = 0
    load_ms: float = 0.0
    latency: Latency | None = None
    peak_bytes: int = 0
    engines: dict[str, str] = field(default_factory=dict)
    boxes: list[BoxMatch] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    not_compared: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        values = asdict(self)
        values["case"]["name"] = self.case.name
        found: dict[str, Any] = finite(values)
        return found


@dataclass(frozen=True)
class Machine:
    """Description of the machine."""

    cpu: str
    cores: int
    threads: int
    system: str
    python: str
    packages: dict[str, str]
    date: str
    gpu: str = ""

    @classmethod
    def here(cls, threads: int, device: str = "cpu") -> Machine:
        """Describes this machine, with its GPU if the detectors run on one.

        Raises:
            OptionError: ``device`` is "cuda", and there is no CUDA device.
        """
        found = {}
        for name in ("torch", "torchvision", *registry.distributions()):
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return cls(
            _cpu(),
            os.cpu_count() or 0,
            threads,
            platform.platform(),
            platform.python_version(),
            found,
            time.strftime("%Y-%m-%d"),
            "" if device == "cpu" else _gpu(),
        )

    @property
    def processor(self) -> str:
        """Returns the name of the processor."""
        return self.gpu or self.cpu


def _gpu() -> str:
    devices, reason = _native.cuda_devices()
    if not devices:
        raise OptionError.make("bench", "device cuda", expected="a CUDA device", got=f"none: {reason}")
    name: str = devices[0]["name"]
    return name


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def run(
    subject: Subject,
    cases: Sequence[Case],
    directory: Path,
    settings: Settings | None = None,
    *,
    steps: Steps | None = None,
) -> list[Result]:
    """Runs all cases of a detector.

    Args:
        subject: the detector; it must be picklable, because each case runs in its own process.
        cases: cases of :func:`cases.cases`; the first is eager.
        directory: place of the files that the cases run.
        settings: settings for preparing and timing cases; None: the defaults of :class:`Settings`.
        steps: shows progress.

    Returns:
        One result per case, in their order; ``failure`` is set for cases that failed.

    Raises:
        OptionError: There is no image or no round, the detector can't be pickled, or eager can't run it.
    """
    settings = settings or Settings()
    for name, value, least in (
        ("rounds", settings.rounds, 1),
        ("warm-up", settings.warm_up, 0),
        ("images", len(subject.images), 1),
    ):
        if value < least:
            raise OptionError.make("bench", name, expected=f"at least {least}", got=str(value))
    run_of = _Run(subject, directory, settings, steps or Steps(False))
    return run_of.measure(run_of.prepare(cases))


def prepare(
    subject: Subject, cases: Sequence[Case], directory: Path, settings: Settings, *, steps: Steps | None = None
) -> list[Result]:
    """Writes the files that :func:`run` needs in this directory, without running them.

    Args:
        subject: the detector.
        cases: the cases.
        directory: an existing directory.
        settings: those of the later run.
        steps: shows progress.

    Returns:
        One result per case, without times; ``failure`` is set for cases that failed.

    Raises:
        OptionError: The detector can't be pickled.
    """
    return _Run(subject, directory, settings, steps or Steps(False)).prepare(cases)


class _Images(nn.Module):
    """Stores images in a file that both Python and C++ can read."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        super().__init__()
        self.images = [image.contiguous() for image in images]

    def forward(self) -> list[Tensor]:
        return self.images


class _Run:
    def __init__(self, subject: Subject, directory: Path, settings: Settings, steps: Steps) -> None:
        self._subject = subject
        self._directory = directory
        self._settings = settings
        self._threads = settings.threads or torch.get_num_threads()
        self._device = settings.device
        self._steps = steps
        self._detector = directory / "detector.pickle"
        self._images = directory / "images.pt"
        self._calibration = directory / "calibration.pt"
        detector = subject.build().eval()
        try:
            torch.save(detector, self._detector)
        except Exception as error:  # pickle raises what the detector's classes raise
            raise OptionError.make(
                "bench",
                subject.name,
                expected="a detector that can be pickled for the process of each case",
                got=str(error),
                remedy="Define its classes and functions at the top of a module.",
            ) from error
        jit.save(jit.script(_Images(subject.images)), self._images)
        jit.save(jit.script(_Images(subject.calibration or subject.images)), self._calibration)

    def prepare(self, cases: Sequence[Case]) -> list[Result]:
        """Writes the files; cases that run the same file share it."""
        made: dict[str, Result] = {}
        segments, shapes = self._settings.segments, None
        if self._settings.fixed_sizes:
            shapes = sorted({tuple(image.shape[1:]) for image in self._subject.images})
        for case in cases:
            if case.kind in ("eager", "compile"):
                made[case.file] = Result(self._subject.name, case, file_bytes=self._detector.stat().st_size)
            elif case.file not in made:
                with self._steps.step(f"{self._subject.name}: prepare {case.file}"):
                    made[case.file], used = self._prepare(case, {"segments": segments, "shapes": shapes})
                if segments == "auto" and used:
                    segments = used
        return [replace(made[case.file], case=case) for case in cases]

    def _prepare(self, case: Case, options: dict[str, Any]) -> tuple[Result, list[str]]:
        result = Result(self._subject.name, case)
        path = self._path(case)
        job = self._job(case) | {"detector": str(self._detector), **options}
        if case.precision == "int8":
            job["int8_options"] = dict(self._settings.int8_options)
        made = self._directory / f"made_{case.file}.json"
        answer = _answer_of_before(made, job) if path.exists() else None
        if answer is None:
            try:
                answer = self._made(case, job)
            except ProcessFailed as failure:
                return replace(result, failure=f"prepare: {failure}"), []
            made.write_text(json.dumps({"job": job, "answer": answer}))
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
        return replace(result, prepare_seconds=answer["seconds"], file_bytes=size), answer["segments"]

    def _made(self, case: Case, job: dict[str, Any]) -> dict[str, Any]:
        """Writes a case's file in a separate process, and returns that process's answer."""
        command = [sys.executable, "-m", "hybrid_rt.bench.prepare", self._job_file(f"prepare_{case.file}", job)]
        log = self._directory / f"prepare_{case.file}.log"
        with closing(Process(command, log, {"PYTHONPATH": _import_path()})) as process:
            return process.read(PREPARE_SECONDS)

    def measure(self, results: Sequence[Result]) -> list[Result]:
        """Loads the cases that could be prepared, then calls them alternately."""
        rounds = self._settings.rounds
        with ExitStack() as stack:
            workers = [self._load(result, stack) if not result.failure else _Worker(result) for result in results]
            eager = workers[0]
            if eager.result.failure:
                raise OptionError.make(
                    "bench",
                    self._subject.name,
                    expected="a detector that runs in eager mode",
                    got=eager.result.failure,
                )
            with self._steps.step(f"{self._subject.name}: {rounds} rounds", total=rounds) as advance:
                for i in range(rounds):
                    # Shuffle the order in each round, so that no case always follows the same one; the seed is fixed.
                    for worker in random.Random(i).sample(workers, len(workers)):
                        time.sleep(PAUSE_SECONDS)
                        worker.run(i % len(self._subject.images))
                    advance()
            return [worker.finish(eager) for worker in workers]

    def _load(self, result: Result, stack: ExitStack) -> _Worker:
        case = result.case
        job = self._job_file(case.file + ("_cpp" if case.is_cpp else ""), self._job(case))
        environment = {"OMP_NUM_THREADS": str(self._threads), "PYTHONPATH": _import_path()}
        if case.is_cpp:
            command = [program("hybrid-rt-bench-worker", "bench"), job]
            environment["LD_LIBRARY_PATH"] = _with_torch(os.environ.get("LD_LIBRARY_PATH"))
        else:
            command = [sys.executable, "-m", "hybrid_rt.bench.worker", job]
        with self._steps.step(f"{self._subject.name}: load {case.name}"):
            process = stack.enter_context(closing(Process(command, Path(job).with_suffix(".log"), environment)))
            worker = _Worker(result, process)
            worker.load(len(self._subject.images), self._settings.warm_up)
        return worker

    def _path(self, case: Case) -> Path:
        return self._detector if case.kind in ("eager", "compile") else self._directory / f"{case.file}.pt"

    def _job(self, case: Case) -> dict[str, Any]:
        libraries = []
        if case.is_cpp and case.kind == "torchscript":  # hybrid_rt::load opens what hybrids need
            libraries = ([] if self._device == "cpu" else [_torch_cuda()]) + _torchvision_libraries()
        return {
            "runtime": case.kind,
            "engine": case.engine,
            "precision": case.precision,
            "path": str(self._path(case)),
            "images": str(self._images),
            "calibration": str(self._calibration),
            "threads": self._threads,
            "device": self._device,
            "libraries": libraries,
        }

    def _job_file(self, name: str, job: dict[str, Any]) -> str:
        path = self._directory / f"{name}.json"
        path.write_text(json.dumps(job))
        return str(path)


class _Worker:
    """A process that runs a case, and the result that it fills in."""

    def __init__(self, result: Result, process: Process | None = None) -> None:
        self.result = result
        self._process = process
        self._first = 0.0
        self._times: list[float] = []
        self._found: list[dict[str, Any]] = []

    def load(self, images: int, warm_up: int) -> None:
        """Loads the detector, makes the first and the warm-up calls, and reads the boxes."""
        loaded = self._answer(None)
        self.result = replace(self.result, load_ms=loaded.get("load_ms", 0.0), engines=loaded.get("engines", {}))
        self._first = self._answer("run 0").get("ms", 0.0)
        for _ in range(warm_up):
            for image in range(images):
                self._answer(f"run {image}")
        self._found = [self._answer(f"boxes {image}") for image in range(images)]

    def run(self, image: int) -> None:
        """Makes one timed call."""
        answer = self._answer(f"run {image}")
        if answer:
            self._times.append(answer["ms"])

    def finish(self, eager: _Worker) -> Result:
        """Returns the result, with its boxes compared with eager's."""
        peak = self._answer("memory").get("peak", 0)
        if self.result.failure:
            return self.result
        result = replace(self.result, latency=Latency.of(self._times, self._first), peak_bytes=peak)
        reasons = [found["not_compared"] for found in eager._found + self._found if "not_compared" in found]
        if reasons:
            return replace(result, not_compared=reasons[0])
        thresholds = thresholds_of(result.case.precision)
        matches = [
            compare_detections(_tensors(expected), _tensors(found), thresholds, f"image {i}")
            for i, (expected, found) in enumerate(zip(eager._found, self._found, strict=True))
        ]
        unequal = [f"{match.where}: {text}" for match in matches for text in differences(match, thresholds)]
        return replace(result, boxes=matches, differences=unequal)

    def _answer(self, line: str | None) -> dict[str, Any]:
        """Returns an answer of the process; empty once something has failed."""
        if self._process is None or self.result.failure:
            return {}
        try:
            return self._process.read(ANSWER_SECONDS) if line is None else self._process.ask(line, ANSWER_SECONDS)
        except ProcessFailed as failure:
            self.result = replace(self.result, failure=f"{'load' if line is None else line}: {failure}")
            self._process.close()
            return {}


def _answer_of_before(made: Path, job: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the answer that an earlier run stored for the same job; None if there was none."""
    try:
        noted = json.loads(made.read_text())
    except (OSError, ValueError):
        return None
    answer: dict[str, Any] | None = noted["answer"] if noted.get("job") == json.loads(json.dumps(job)) else None
    return answer


def _tensors(found: dict[str, Any]) -> dict[str, Tensor]:
    numbers = {name: [math.nan if value is None else value for value in values] for name, values in found.items()}
    return {
        "boxes": torch.tensor(numbers["boxes"], dtype=torch.float64).reshape(-1, 4),
        "labels": torch.tensor(numbers["labels"], dtype=torch.int64),
        "scores": torch.tensor(numbers["scores"], dtype=torch.float64),
    }


def _import_path() -> str:
    """Returns this process's import path for the others, which need the modules of a pickled detector's classes."""
    return os.pathsep.join(path for path in sys.path if path)


def _torchvision_libraries() -> list[str]:
    """Returns the libraries with torchvision's operators for a plain TorchScript detector, dependencies first."""
    import torchvision

    libraries = sorted(Path(torchvision.__file__).parent.glob("_C*.so"))
    needs_python = any(b"libtorch_python.so" in library.read_bytes() for library in libraries)  # 0.29.1 and before
    return [*(_libpython() if needs_python else []), *(str(library) for library in libraries)]


def _libpython() -> list[str]:
    """Returns Python's own library, whose symbols libtorch_python needs; empty if Python was built without one."""
    directory, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    path = Path(directory or "", name or "")
    return [str(path)] if path.is_file() and ".so" in path.name else []


def _torch_cuda() -> str:
    return str(Path(torch.__file__).parent / "lib" / "libtorch_cuda.so")


def _with_torch(path: str | None) -> str:
    """Returns a library path with torch's own libraries, which torchvision's needs."""
    own = str(Path(torch.__file__).parent / "lib")
    return f"{own}:{path}" if path else own
