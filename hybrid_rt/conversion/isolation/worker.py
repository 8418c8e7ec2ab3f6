"""Main loop of a compiler's process: compiles each program that it receives, runs the artifact once, and returns it.

Messages are pickled. A request is a dict (see ``isolated_compiler.py``). The process answers with any number of
("progress", share, what), ("ask", form, arguments), to which the parent replies ("form", value) or
("error", exception), and ("first run",), then with one of

- ("done", artifact, warnings)
- ("raised", exception, warnings)
- ("exit", text): the compiler called sys.exit, or raised another BaseException
- ("not here", why): the compiler needs an object that only the parent's process has
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ... import _native
from ...backends import registry
from ...backends.base import Backend, CompileContext
from ...common.error_text import causes_of
from ...common.errors import BackendError, OptionError
from ...common.specs import Artifact
from .first_run import run_once
from .programs import NotHere, RemoteProgram

_ = _native  # it defines what an artifact runs in


def serve(descriptor: int) -> None:
    """Serves the parent until it closes its end of the socket, or ends."""
    with contextlib.suppress(OSError):  # if memory runs out, the kernel shall end this process, not the parent
        Path("/proc/self/oom_score_adj").write_text("500")
    parent = _Parent(Connection(descriptor))
    parent.send("ready", str(Path(__file__).parents[2]))
    while True:
        try:
            request = parent.receive()
        except (EOFError, OSError):
            os._exit(0)  # no destructor of a vendor's
        parent.send(*_answered(parent, request))


@dataclass(frozen=True)
class _Parent:
    """The connection to the parent's process."""

    connection: Connection

    def send(self, *message: Any) -> None:
        self.connection.send_bytes(pickle.dumps(message))

    def receive(self) -> Any:
        return pickle.loads(self.connection.recv_bytes())

    def ask(self, form: str, *arguments: Any) -> Any:
        """Requests a form of the program from the parent, and returns it."""
        self.send("ask", form, arguments)
        kind, value = self.receive()
        if kind == "error":
            raise value
        return value


def _answered(parent: _Parent, request: dict[str, Any]) -> tuple[Any, ...]:
    with warnings.catch_warnings(record=True) as seen:
        answer = _compiled(parent, request)
    return (*answer, [(str(one.message), one.category) for one in seen]) if answer[0] in ("done", "raised") else answer


def _compiled(parent: _Parent, request: dict[str, Any]) -> tuple[Any, ...]:
    program = RemoteProgram(request["program"], parent.ask)
    try:
        torch.set_num_threads(request["threads"])
        backend = _backend(parent, request)
        backend.apply(request["settings"])
        with torch.no_grad():
            artifact = _sendable(backend, program.name, backend.compile(program, request["precision"]))
            parent.send("first run")
            run_once(artifact, program.examples)
        return "done", artifact
    except Exception as error:
        missing = next((cause for cause in causes_of(error) if isinstance(cause, NotHere)), None)
        if missing is not None:
            return "not here", str(missing)
        return "raised", _sendable_error(error, request["backend"], program.name)
    except BaseException as error:
        return "exit", f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {error!r}"


def _backend(parent: _Parent, request: dict[str, Any]) -> Backend:
    """Returns the backend, with the same context as in the parent.

    Raises:
        NotHere: This process has no such backend, or another class for it.
    """
    try:
        backend = registry.backend(request["backend"])
    except OptionError as error:
        raise NotHere(str(error)) from error
    kind = type(backend)
    if f"{kind.__module__}.{kind.__qualname__}" != request["kind"]:
        raise NotHere(request["kind"])
    progress = functools.partial(parent.send, "progress")
    return backend._within(CompileContext(request["device"], request["options"], progress))


def _sendable(backend: Backend, segment: str, artifact: Any) -> Artifact:
    """Returns an artifact after checking that it can be sent to another process.

    Raises:
        BackendError: It can't be sent.
    """
    try:
        same = pickle.loads(pickle.dumps(artifact))
        assert isinstance(same, Artifact), type(artifact).__name__
    except Exception as error:  # whatever pickling an object of the backend's raises
        raise BackendError.make(
            backend.name,
            f"segment '{segment}'",
            expected="an artifact of a spec and named bytes",
            got=f"{type(artifact).__name__} that can't be sent from one process to another: {error}",
            remedy="This is a fault in the backend; use another engine.",
            code="engine-crashed",
        ) from error
    return artifact  # type: ignore[no-any-return]


def _sendable_error(error: BaseException, backend: str, segment: str) -> BaseException:
    """Returns an error if it can be sent to another process, else a BackendError with its text."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error) and not isinstance(error, MemoryError):
            return error
    except Exception:  # whatever pickling it raises
        pass
    return BackendError.not_compiled(
        backend, segment, expected="a segment that it compiles", got=f"{type(error).__name__}: {error}"
    )
