"""Tests of processes that fork after running a module, as a server that loads before it forks its workers."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

import hybrid_rt
from helpers.bundle_surgery import save_with_backends
from helpers.processes import run_while_it_works
from helpers.small_detectors import small_detector
from hybrid_rt.backends import registry
from hybrid_rt.capture.program import capture_alone

PROGRAM = """
import os, sys
import torch
import hybrid_rt

path, where, backend = sys.argv[1:]
threads = 2
torch.set_num_threads(threads)
image = torch.rand(3, 480, 640, generator=torch.Generator().manual_seed(0))

def boxes(module):
    with torch.no_grad():
        return module([image])[0]["boxes"]

module = hybrid_rt.load(path, backend=backend, threads=threads)
expected = boxes(module)
boxes(module)
child = os.fork()
if child == 0:
    try:
        if where == "child":
            module = hybrid_rt.load(path, backend=backend, threads=1)  # another engine than the one that is there
        found = boxes(module)
        print("same" if torch.allclose(found, expected, atol=1e-2) else f"{found} {expected}", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(0)
os.waitpid(child, 0)
assert torch.equal(boxes(module), expected)
"""


def forked(bundle: Path, where: str, backend: str) -> tuple[str, str]:
    """Returns the child's output and the log of both processes."""
    done = run_while_it_works([sys.executable, "-c", PROGRAM, bundle, where, backend])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torchscript", "openvino"])
def test_modules_loaded_by_the_parent_run_in_a_child(demo_bundle: Path, backend: str) -> None:
    said, log = forked(demo_bundle, "parent", backend)
    assert said == "same"
    assert "this process was forked after a module had run in 2 threads" in log


@pytest.mark.slow
def test_a_child_loads_for_itself(demo_bundle: Path) -> None:
    assert forked(demo_bundle, "child", "torchscript")[0] == "same"


@pytest.mark.slow
def test_a_child_gets_an_error_that_openvino_cannot_compile_in_it(demo_bundle: Path) -> None:
    said, _ = forked(demo_bundle, "child", "openvino")
    assert said.startswith("BackendError: ")
    assert "expected one that compiles with OpenVINO for the first time, got a fork of process " in said
    assert "Load in the children only, or start them with 'spawn'." in said


# A server that loads first (gunicorn --preload) and runs engines while its workers fork again (multiprocessing).
SERVER = """
import multiprocessing, os, sys, threading, time
import torch
import hybrid_rt

path, backend = sys.argv[1:]
torch.set_num_threads(2)
image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))

def result():
    with torch.no_grad():
        return module(image)

def said():
    try:
        return "same" if all(torch.allclose(a, b, atol=1e-4) for a, b in zip(result(), expected)) else "other"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def in_child(work):
    child = os.fork()
    if child == 0:
        print(work(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)

def serve():
    while not stop.is_set():
        result()
        time.sleep(0.001)  # as between two requests

module = hybrid_rt.load(path, backend=backend, threads=2)
for _ in range(3):
    expected = result()
for _ in range(2):
    in_child(said)
in_child(lambda: in_child(said) or said())
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*[each.get() for each in [pool.apply_async(said) for _ in range(4)]], sep="\\n", flush=True)
stop = threading.Event()
threads = [threading.Thread(target=serve) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(6):
    time.sleep(0.005)
    in_child(said)
stop.set()
for thread in threads:
    thread.join()
print(said(), flush=True)
"""
BACKENDS = [info.name for info in hybrid_rt.backends() if info.available]


@pytest.fixture(scope="module")
def every_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a small detector with a variant of each backend that runs on this CPU."""
    program = capture_alone(small_detector(), "backbone", [(torch.rand(1, 3, 256, 256),)])
    artifacts = [registry.backend(name).compile(program, "fp32") for name in BACKENDS]
    return save_with_backends(tmp_path_factory.mktemp("fork") / "every.pt", artifacts)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_children_run_what_a_server_loaded_and_ran(every_engine: Path, backend: str) -> None:
    """Checks forks of a server, forks of its children, and forks while its threads run the engine."""
    done = run_while_it_works([sys.executable, "-c", SERVER, every_engine, backend])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["same"] * 15, done.stdout


UNLOADING = """
import os, sys
import torch
import hybrid_rt

path, backend = sys.argv[1:]
torch.set_num_threads(2)
module = hybrid_rt.load(path, backend=backend, threads=2)
with torch.no_grad():
    module(torch.rand(1, 3, 256, 256))
if os.fork() == 0:
    del module
    print("unloaded", flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_child_unloads_what_its_parent_ran(every_engine: Path, backend: str) -> None:
    """ONNX Runtime's session would wait for the threads of its pool, which a fork lacks."""
    done = run_while_it_works([sys.executable, "-c", UNLOADING, every_engine, backend])
    assert (done.returncode, done.stdout.strip()) == (0, "unloaded"), done.stderr


# With --preload, gunicorn imports this before it forks its workers; --max-requests makes it fork replacements later.
APPLICATION = """
import os
import torch
import hybrid_rt

torch.set_num_threads(2)
image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
modules = [hybrid_rt.load({path!r}, backend=name, threads=2) for name in {backends!r}]

def results():
    with torch.no_grad():
        return [result for module in modules for result in module(image)]

expected = results()

def application(environ, start_response):
    is_same = all(torch.allclose(a, b, atol=1e-4) for a, b in zip(results(), expected, strict=True))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{{'same' if is_same else 'other'}} {{os.getpid()}} {{os.getppid()}}".encode()]
"""


def asked(address: Path) -> str:
    """Returns the response of a server on a Unix domain socket, which closes the connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(300)
        connection.connect(str(address))
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        received = b""
        while more := connection.recv(4096):
            received += more
    return received.decode().rpartition("\r\n\r\n")[2]


@pytest.mark.slow
def test_workers_of_gunicorn_run_what_it_preloaded(every_engine: Path, tmp_path: Path) -> None:
    """Checks every engine in workers forked at the start and in their replacements."""
    (tmp_path / "served.py").write_text(APPLICATION.format(path=str(every_engine), backends=BACKENDS))
    with tempfile.TemporaryDirectory(prefix="g") as directory:  # the path of a socket is limited to 107 bytes
        address = Path(directory) / "socket"
        command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--max-requests", "3", "--timeout",
                   "600", "--bind", f"unix:{address}", "served:application"]  # fmt: skip
        server = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        try:
            while not address.exists():
                assert server.poll() is None, server.communicate()[1]
                time.sleep(0.1)
            answers = [asked(address).split() for _ in range(12)]
        finally:
            server.terminate()
            _, log = server.communicate(timeout=300)
    assert {said for said, _, _ in answers} == {"same"}, log
    assert len({worker for _, worker, _ in answers}) > 2, answers
    assert {parent for _, _, parent in answers} == {str(server.pid)}
    assert server.returncode == 0, log


@pytest.mark.parametrize("program", ["import time; time.sleep(60)", "while True: pass"])
def test_a_process_that_hangs_is_found(program: str) -> None:
    """Checks that the tests above can fail."""
    with pytest.raises(AssertionError, match="hangs"):
        run_while_it_works([sys.executable, "-c", program], idle_seconds=0.5, cpu_seconds=0.5)
