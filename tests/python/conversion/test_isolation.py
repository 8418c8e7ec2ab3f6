"""Tests of compilers in a separate process: a crash there ends no other process."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config

import hybrid_rt
from helpers import scratch_backend
from helpers.small_detectors import small_detector, small_image
from hybrid_rt.backends import registry
from hybrid_rt.backends.base import Backend
from hybrid_rt.backends.cache import store
from hybrid_rt.backends.selection import VariantRequest
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.common.errors import BackendError, OptionError
from hybrid_rt.common.specs import Artifact
from hybrid_rt.conversion.assemble.builds import BuiltVariant, EngineBuild
from hybrid_rt.conversion.assemble.engine_module import prepare, run_flat
from hybrid_rt.conversion.isolation import isolated_compiler
from hybrid_rt.conversion.isolation import warm as warm_module
from hybrid_rt.conversion.isolation.isolated_compiler import compiling_in_isolation
from hybrid_rt.conversion.isolation.limits import DEFAULT_SECONDS, Limits, limits
from hybrid_rt.conversion.isolation.process import CompilerProcess
from hybrid_rt.conversion.isolation.warm import warm


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Enables isolation, which other tests disable, and disables the cache."""
    monkeypatch.delenv("HYBRID_RT_COMPILE_ISOLATION")
    monkeypatch.setenv("HYBRID_RT_CACHE_SIZE", "0")
    yield
    warm.end()


@pytest.fixture
def scratch_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Returns the directory of a package with the backend "scratch"."""
    directory = tmp_path / "site"
    (directory / "hybrid_rt_scratch-1.dist-info").mkdir(parents=True)
    shutil.copy(scratch_backend.__file__, directory / "hybrid_rt_scratch.py")
    (directory / "hybrid_rt_scratch-1.dist-info" / "METADATA").write_text("Name: hybrid_rt_scratch\nVersion: 1\n")
    entry = "[hybrid_rt.backends]\nscratch = hybrid_rt_scratch:ScratchBackend\n"
    (directory / "hybrid_rt_scratch-1.dist-info" / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(str(directory))
    importlib.invalidate_caches()
    registry._compilers.cache_clear()
    yield directory
    sys.modules.pop("hybrid_rt_scratch", None)
    monkeypatch.undo()
    registry._compilers.cache_clear()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list to which the ids of started processes are added."""
    found: list[int] = []

    class Noted(CompilerProcess):
        def __init__(self) -> None:
            super().__init__()
            found.append(self.pid)

    monkeypatch.setattr(isolated_compiler, "CompilerProcess", Noted)
    return found


def program() -> Program:
    return capture_alone(small_detector(), "backbone", [(small_image(32, 32),)])


def program_of_free_sizes() -> Program:
    sizes = [(small_image(32, 32),), (small_image(64, 48),)]
    return capture_alone(small_detector(), "backbone", sizes, [(1, 1), (3, 3), (32, 96), (32, 96)])


def compiled(name: str, precision: str = "fp32", **options: Any) -> Artifact:
    return store.get_or_compile(registry.backend(name).configured("cpu", options), program(), precision)[0]


def is_there(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def is_running(process: int) -> bool:
    """Returns true if the process is alive and not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Causes of the end of the process


@pytest.mark.usefixtures("scratch_directory")
@pytest.mark.parametrize(
    ("do", "got"),
    [
        ("abort", "the compiler's process ended by SIGABRT, after it had printed: pure virtual method called"),
        pytest.param("segfault", "the compiler's process ended by SIGSEGV", marks=pytest.mark.slow),
        pytest.param("exit", "the compiler's process ended with exit code 3", marks=pytest.mark.slow),
        ("sys.exit", r"the compiler called sys\.exit\('enough'\)"),
        pytest.param("interrupt", r"the compiler raised KeyboardInterrupt\(\)", marks=pytest.mark.slow),
        pytest.param("no memory", "MemoryError: ", marks=pytest.mark.slow),
        pytest.param("odd error", "Odd: an odd error", marks=pytest.mark.slow),
        pytest.param("odd artifact", "Artifact that can't be sent from one process to another", marks=pytest.mark.slow),
        ("crash later", "its compiler's artifact, whose first run in a separate process ended by SIGSEGV"),
    ],
)
def test_a_crash_of_the_process_is_an_error_and_the_next_call_works(do: str, got: str, started: list[int]) -> None:
    with compiling_in_isolation():
        with pytest.raises(BackendError, match=rf"hybrid_rt\[scratch\]: segment 'backbone': expected .*, got {got}"):
            compiled("scratch", do=do)
        process = int(compiled("scratch").blobs["process"].numpy().tobytes())
    assert process == started[-1] != os.getpid()
    warm.end()
    assert not any(map(is_there, started))


# Between two conversions


def process_of(artifact: Artifact) -> int:
    return int(artifact.blobs["process"].numpy().tobytes())


@pytest.mark.slow
@pytest.mark.usefixtures("scratch_directory")
def test_the_next_conversion_finds_the_process_warm(started: list[int]) -> None:
    for _ in range(2):
        with compiling_in_isolation():
            assert process_of(compiled("scratch")) == started[0]
    assert len(started) == 1
    assert is_running(started[0])


@pytest.mark.slow
@pytest.mark.usefixtures("scratch_directory")
def test_a_changed_environment_starts_another_process(
    started: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def change() -> None:
        monkeypatch.setenv("HYBRID_RT_SOMETHING", "else")

    def move() -> None:
        monkeypatch.chdir(tmp_path)

    for surround in (lambda: None, change, move):
        surround()
        with compiling_in_isolation():
            compiled("scratch")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_one_block).result()
    assert len(started) == 4
    assert not any(map(is_there, started[:3]))


def _one_block() -> None:
    with compiling_in_isolation():
        compiled("scratch")


@pytest.mark.slow
@pytest.mark.usefixtures("scratch_directory")
def test_a_process_that_was_set_up_otherwise_is_not_kept(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "settings", lambda self: {"max_autotune": True})
    _one_block()
    assert not is_there(started[0])


@pytest.mark.usefixtures("scratch_directory")
def test_a_process_without_work_ends_after_a_while(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_module, "REST_SECONDS", 0.2)
    _one_block()
    deadline = time.monotonic() + 20
    while is_there(started[0]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("scratch_directory")
def test_a_forked_process_leaves_it_alone(started: list[int]) -> None:
    _one_block()
    child = os.fork()
    if child == 0:
        warm.end()
        os._exit(0)
    os.waitpid(child, 0)
    assert is_running(started[0])
    _one_block()
    assert len(started) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("scratch_directory")
def test_a_compiler_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch, started: list[int]) -> None:
    monkeypatch.setenv("HYBRID_RT_COMPILE_TIMEOUT", "0.5")
    with (
        compiling_in_isolation(),
        pytest.raises(BackendError, match=r"did not end within 0\.5 s and was stopped\. .*HYBRID_RT_COMPILE_TIMEOUT"),
    ):
        compiled("scratch", do="hang")
    assert not is_there(started[0])


@pytest.mark.usefixtures("scratch_directory")
def test_a_compiler_that_takes_all_memory_is_stopped(monkeypatch: pytest.MonkeyPatch, started: list[int]) -> None:
    monkeypatch.setenv("HYBRID_RT_COMPILE_MEMORY", "700M")
    with (
        compiling_in_isolation(),
        pytest.raises(BackendError, match="took more than 700 MiB of memory and was stopped"),
    ):
        compiled("scratch", do="memory")
    assert not is_there(started[0])


@pytest.mark.slow
@pytest.mark.usefixtures("scratch_directory")
@pytest.mark.filterwarnings("ignore:.*Falling back to the next engine:RuntimeWarning")
def test_a_crash_leaves_the_segment_to_the_next_engine(tmp_path: Path) -> None:
    detector, path = small_detector(), tmp_path / "x.pt"
    report = hybrid_rt.convert(
        detector,
        (small_image(),),
        path,
        engine=["scratch", "openvino"],
        options={"scratch": {"do": "segfault"}},
        segments=["backbone"],
        measure=False,
    ).report
    assert [variant.backend for variant in report.engines[0].variants] == ["openvino", "torchscript"]
    [given_up] = report.given_up
    assert (given_up.what, given_up.instead) == ("scratch:fp32 for backbone", "openvino")
    assert "the compiler's process ended by SIGSEGV" in given_up.reason
    torch.testing.assert_close(hybrid_rt.load(path)(small_image()), detector(small_image()), rtol=1e-3, atol=1e-3)


INTERRUPTED = """
import signal, sys
sys.path[:0] = sys.argv[1:3]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
import hybrid_rt
from helpers.small_detectors import small_detector, small_image
options = {"scratch": {"do": "hang"}}
hybrid_rt.convert(small_detector(), (small_image(),), sys.argv[3], engine=["scratch"], options=options)
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_compiler_too_and_leaves_no_file(scratch_directory: Path, tmp_path: Path) -> None:
    hangs, output = scratch_directory / "hangs", tmp_path / "output"
    output.mkdir()
    paths = [scratch_directory, Path(__file__).parents[1], output / "x.pt"]
    command = [sys.executable, "-c", INTERRUPTED, *map(str, paths)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as user:
        while not (hangs.exists() and hangs.read_text()) and user.poll() is None:
            time.sleep(0.05)
        user.send_signal(signal.SIGINT)
        printed, _ = user.communicate()
    assert printed.endswith("KeyboardInterrupt\n")
    assert user.returncode in (1, -signal.SIGINT)  # Python's exit codes, which differ between -c and a file
    assert not is_there(int(hangs.read_text()))
    assert list(output.iterdir()) == []


@pytest.mark.slow
def test_the_compiler_ends_with_a_parent_that_is_killed(scratch_directory: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            sys.path[:0] = [{str(scratch_directory)!r}, {str(Path(__file__).parents[1])!r}]
            from hybrid_rt.conversion.isolation.isolated_compiler import IsolatedCompiler
            compiler = IsolatedCompiler()
            process = compiler.start()
            process.wait_until_ready()
            print(process.pid, flush=True)
            time.sleep(3600)
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    process = int(parent.stdout.readline())
    assert is_there(process)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(process)


# Compilations that begin early


@contextlib.contextmanager
def process_at_hand() -> Iterator[None]:
    with compiling_in_isolation():
        current = isolated_compiler._current.get()
        assert current is not None
        current.start().wait_until_ready()
        yield


@pytest.mark.slow
def test_a_started_compilation_needs_no_further_message(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    send = CompilerProcess.send
    monkeypatch.setattr(CompilerProcess, "send", lambda self, message: sent.append(message) or send(self, message))
    segment, backend = program_of_free_sizes(), registry.backend("openvino").configured("cpu")
    with process_at_hand():
        isolated_compiler.begin(segment, VariantRequest(backend, "fp32"))
        isolated_compiler.begin(segment, VariantRequest(backend, "bf16"))  # busy: does nothing
        assert [message["precision"] for message in sent] == ["fp32"]
        artifact, _ = store.get_or_compile(backend, segment, "fp32")
    assert len(sent) == 1  # the forms that OpenVINO needs went with it
    assert artifact.spec == backend.compile(segment, "fp32").spec


@pytest.mark.usefixtures("scratch_directory")
def test_an_early_start_that_is_not_needed_is_stopped(started: list[int]) -> None:
    segment, scratch = program(), registry.backend("scratch")
    with process_at_hand():
        isolated_compiler.begin(segment, VariantRequest(scratch.configured("cpu", {"do": "hang"}), "fp32"))
        assert process_of(compiled("scratch")) == started[1]
    with process_at_hand():
        isolated_compiler.begin(segment, VariantRequest(scratch.configured("cpu", {"do": "hang"}), "fp32"))
    assert len(started) == 2
    assert not any(map(is_running, started))


@pytest.mark.usefixtures("scratch_directory")
def test_a_crash_after_an_early_start_is_the_same_error() -> None:
    segment, backend = program(), registry.backend("scratch").configured("cpu", {"do": "abort"})
    with process_at_hand():
        isolated_compiler.begin(segment, VariantRequest(backend, "fp32"))
        with pytest.raises(BackendError, match="the compiler's process ended by SIGABRT"):
            store.get_or_compile(backend, segment, "fp32")


@pytest.mark.slow
def test_the_next_segment_begins_before_the_fallback_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def noted(kind: type, method: str, what: str) -> None:
        original = getattr(kind, method)

        def call(self: Any, *arguments: Any) -> Any:
            events.append(f"{what} {next(one.name for one in arguments if isinstance(one, Program))}")
            return original(self, *arguments)

        monkeypatch.setattr(kind, method, call)

    noted(isolated_compiler.IsolatedCompiler, "_request", "request")
    noted(type(registry.fallback()), "compile", "fallback")
    hybrid_rt.convert(small_detector(), (small_image(),), tmp_path / "hybrid.pt", measure=False, fuse=False,
                      segments=["backbone", "classes"])  # fmt: skip
    assert events == ["request backbone", "request classes", "fallback backbone", "fallback classes"]


# Equal results with and without isolation


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "aot_inductor", "tvm"])
def test_an_artifact_is_the_same_as_one_compiled_here(
    name: str, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_VEC_ISA_OK")  # the process tries each instruction set, this one does not
    if not registry.backend(name).availability().available:
        pytest.skip("not installed")
    segment, backend = program_of_free_sizes(), registry.backend(name).configured("cpu")
    with compiling_in_isolation():
        artifact, _ = store.get_or_compile(backend, segment, "fp32")
    here = backend.compile(segment, "fp32")
    assert len(started) == 1
    assert artifact.spec == here.spec
    assert list(artifact.blobs) == list(here.blobs)
    assert {key: len(found) for key, found in artifact.weights.items()} == {
        key: len(found) for key, found in here.weights.items()
    }
    for blob in {"weights", "model", "conditions"} & set(here.blobs):  # the others differ between runs
        assert torch.equal(artifact.blobs[blob], here.blobs[blob]), blob
    engine = EngineBuild(segment, (BuiltVariant(artifact),)).engine
    prepare(engine)
    for call in segment.calls:
        for found, expected in zip(run_flat(engine, call.inputs), call.outputs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_inductor_settings_of_the_user_reach_the_compiler() -> None:
    backend = registry.backend("aot_inductor")
    assert "max_autotune" not in backend.settings()
    with torch._inductor.config.patch({"max_autotune": True}):
        settings = pickle.loads(pickle.dumps(backend.settings()))
    assert settings["max_autotune"] is True
    with torch._inductor.config.patch({"max_autotune": False}):
        backend.apply(settings)
        assert torch._inductor.config.max_autotune is True


@pytest.mark.usefixtures("scratch_directory")
def test_progress_warnings_and_prints_come_through(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[float, str]] = []
    backend = registry.backend("scratch").configured("cpu", {"do": "talk"}, lambda *progress: told.append(progress))
    with compiling_in_isolation(), pytest.warns(RuntimeWarning, match="what the vendor warns of"):
        store.get_or_compile(backend, program(), "fp32")
    assert told == [(0.5, "half of it")]
    assert "what the vendor prints" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_an_engines_own_refusal_is_the_same(name: str) -> None:
    class Unusual(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"coarse": torch.linalg.eigvals(x @ x.transpose(-1, -2)).real, "fine": x}

    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Unusual()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.backbone(x)["coarse"]

    refused = capture_alone(Detector().eval(), "backbone", [(small_image(16, 16),)])
    texts = []
    for block in (contextlib.nullcontext(), compiling_in_isolation()):
        with block, pytest.raises(BackendError) as caught:
            store.get_or_compile(registry.backend(name).configured("cpu"), refused, "fp32")
        texts.append(str(caught.value).splitlines()[0])
    assert texts[0] == texts[1]


# Cases without a process


@pytest.mark.slow
def test_cached_artifacts_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[int]) -> None:
    monkeypatch.setenv("HYBRID_RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HYBRID_RT_CACHE_SIZE")
    options: dict[str, Any] = {"segments": ["backbone"], "measure": False}
    for _ in range(2):
        hybrid_rt.convert(small_detector(), (small_image(),), tmp_path / "x.pt", engine="openvino", **options)
    assert len(started) == 1


def of_another_class(monkeypatch: pytest.MonkeyPatch) -> Backend:
    class Own(type(registry.backend("openvino"))):  # type: ignore[misc]
        pass

    return Own()


def with_a_replaced_method(monkeypatch: pytest.MonkeyPatch) -> Backend:
    kind = type(registry.backend("openvino"))
    before = kind.compile

    def other(self: Backend, program: Program, precision: str) -> Artifact:
        return before(self, program, precision)

    monkeypatch.setattr(kind, "compile", other)
    return registry.backend("openvino")


def switched_off(monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setenv("HYBRID_RT_COMPILE_ISOLATION", "0")
    return registry.backend("openvino")


def without_vendor(monkeypatch: pytest.MonkeyPatch) -> Backend:
    return registry.fallback()


@pytest.mark.parametrize("kind", [of_another_class, with_a_replaced_method, switched_off, without_vendor])
def test_modules_unknown_to_another_process_are_compiled_here(
    kind: Callable[[pytest.MonkeyPatch], Backend], monkeypatch: pytest.MonkeyPatch, started: list[int]
) -> None:
    backend = kind(monkeypatch)
    with compiling_in_isolation():
        artifact, _ = store.get_or_compile(backend, program(), "fp32")
    assert artifact.blobs
    assert not started


@pytest.mark.usefixtures("scratch_directory")
def test_a_compiler_that_needs_the_detector_itself_runs_here(started: list[int]) -> None:
    with compiling_in_isolation():
        artifact = compiled("scratch", do="members")
    assert artifact.blobs["names"].numpy().tobytes() == b"backbone"
    assert len(started) == 1


@pytest.mark.parametrize("executable", ["", "/no/such/python", "/bin/false"])
def test_without_a_process_it_compiles_here_and_says_so(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with compiling_in_isolation(), pytest.warns(RuntimeWarning, match="expected a separate process to start, got"):
        artifact = compiled("openvino")
    assert artifact.blobs


@pytest.mark.slow
def test_a_process_that_starts_too_slowly_is_named_with_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_rt.conversion.isolation.process._START_SECONDS", 0.0)
    late = "expected a separate process to start, got did not end within 0 s"
    with compiling_in_isolation(), pytest.warns(RuntimeWarning, match=late):
        assert compiled("openvino").blobs


def test_the_user_s_program_is_not_run_again(tmp_path: Path) -> None:
    """The multiprocessing module would run it again without ``if __name__ == "__main__"``."""
    script = tmp_path / "users.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            print("the program runs")
            sys.path.insert(0, {str(Path(__file__).parents[1])!r})
            import hybrid_rt
            from helpers.small_detectors import small_detector, small_image
            hybrid_rt.convert(small_detector(), (small_image(),), {str(tmp_path / "x.pt")!r}, measure=False)
            """
        )
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert run.stdout.count("the program runs") == 1


# Limits


def test_limits_have_defaults_that_fit_the_machine() -> None:
    found = limits()
    assert found.seconds == DEFAULT_SECONDS
    assert 2**28 < found.memory < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_limits_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_RT_COMPILE_TIMEOUT", "90")
    monkeypatch.setenv("HYBRID_RT_COMPILE_MEMORY", "2G")
    assert limits() == Limits(90.0, 2 * 2**30)
    monkeypatch.setenv("HYBRID_RT_COMPILE_TIMEOUT", "0")
    monkeypatch.setenv("HYBRID_RT_COMPILE_MEMORY", "0")
    assert limits() == Limits(0.0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HYBRID_RT_COMPILE_TIMEOUT", "soon"),
        ("HYBRID_RT_COMPILE_TIMEOUT", "-1"),
        ("HYBRID_RT_COMPILE_TIMEOUT", "nan"),
        ("HYBRID_RT_COMPILE_MEMORY", "much"),
    ],
)
def test_an_invalid_limit_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=rf"{name}: expected .*, got '{value}'"):
        limits()
