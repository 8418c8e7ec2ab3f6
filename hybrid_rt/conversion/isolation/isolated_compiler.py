"""Compiles in a separate process, so that a crash becomes an error and the next engine can be tried."""

from __future__ import annotations

import contextlib
import pickle
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from ...backends import registry
from ...backends.base import Backend
from ...backends.cache import store
from ...backends.selection import VariantRequest
from ...capture.program import Program
from ...common.errors import BackendError, CaptureError, OptionError
from ...common.specs import Artifact
from ...torchscript.graph_digest import NoDigest
from .limits import ISOLATION, MEMORY, SECONDS, Limits, is_wanted, limits
from .process import CantStart, CompilerProcess, Ended
from .programs import form_of, plain_parts
from .warm import warm

_current: ContextVar[IsolatedCompiler | None] = ContextVar("isolated_compiler", default=None)

_CANT_SEND = (pickle.PicklingError, TypeError, AttributeError)


@contextlib.contextmanager
def compiling_in_isolation() -> Iterator[None]:
    """Compiles everything within the block in one separate process, which starts when it is needed.

    After the block, the process waits a while for the next block. A nested block uses the outer block's process.

    Raises:
        OptionError: An environment variable holds an invalid limit.
    """
    if _current.get() is not None or not is_wanted():
        yield
        return
    limits()  # raises an error before long work
    compiler = IsolatedCompiler()
    tokens = _current.set(compiler), store.compiler.set(compiler.compile)
    try:
        yield
    finally:
        _current.reset(tokens[0])
        store.compiler.reset(tokens[1])
        compiler.rest()


def expect(segments: Sequence[str], variants: Sequence[VariantRequest]) -> None:
    """Starts the process of the enclosing :func:`compiling_in_isolation` if the cache probably lacks a segment.

    The process then imports torch while the segments are captured.

    Args:
        segments: names of the segments that will be compiled.
        variants: the variants that they will be compiled into.
    """
    compiler = _current.get()
    needed = {(variant.backend.name, variant.precision) for variant in variants if runs_isolated(variant.backend)}
    if compiler is None or not needed:
        return
    with contextlib.suppress(OptionError):  # the first look-up in the cache raises it again
        known = {(entry.segment, entry.backend, entry.precision) for entry in store.entries() if store.bound()}
        if any((segment, *kind) not in known for segment in segments for kind in needed):
            with contextlib.suppress(CantStart):  # compile() warns of it
                compiler.start()


def begin(program: Program, variant: VariantRequest) -> None:
    """Begins to compile a variant that will be needed, if the process of the enclosing block is idle.

    The caller continues meanwhile. The later call that needs the artifact waits for it.

    Args:
        program: the segment.
        variant: the variant. If the cache has it, nothing begins.
    """
    compiler = _current.get()
    if compiler is None or not runs_isolated(variant.backend):
        return
    key = _key_of(variant.backend, program, variant.precision)
    if key and not store.holds(key):
        compiler.begin(variant.backend, program, variant.precision, key)


def runs_isolated(backend: Backend) -> bool:
    """Returns true if a compiler can run in another process.

    It must be an installed one, because another process would not find a class that was created or changed in this
    process. The fallback, which keeps the segment as it was captured, runs no vendor's code.
    """
    kind = type(backend)
    if backend.is_fallback or registry.installed_class(backend.name) is not kind:
        return False
    base = next(base for base in kind.__mro__ if "compile" in vars(base))
    return getattr(vars(base)["compile"], "__qualname__", "") == f"{base.__qualname__}.compile"


@dataclass(frozen=True)
class _Begun:
    """A compilation in progress: its key in the cache, and the time at which it is stopped."""

    key: str
    deadline: float


class IsolatedCompiler:
    """Compiles in a separate process, and starts a new one if it ends."""

    def __init__(self) -> None:
        """Does not start the process yet."""
        self._process: CompilerProcess | None = None
        self._cant_start = ""
        self._is_as_started = True
        self._begun: _Begun | None = None

    def start(self) -> CompilerProcess:
        """Returns the process, which may not be ready yet.

        Raises:
            CantStart: The process can't be started, now or at an earlier attempt.
        """
        if self._cant_start:
            raise CantStart(self._cant_start)
        if self._process is None:
            try:
                self._process = warm.take() or CompilerProcess()
            except CantStart as error:
                self._cant_start = str(error)
                raise
        return self._process

    def rest(self) -> None:
        """Keeps the process for the next conversion, or ends it if a backend's settings have changed it."""
        process = self._process
        is_idle = process is not None and process.is_ready and self._begun is None and not process.has_ended
        if process is not None and is_idle and self._is_as_started:
            self._process = None
            warm.put(process)
        self.end()

    def end(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None and self._begun is not None:
            process.kill()
        self._begun = None
        if process is not None:
            process.close()

    def begin(self, backend: Backend, program: Program, precision: str, key: str) -> None:
        """Begins a compilation whose result :meth:`compile` returns later; ``key``: that of the artifact in the cache.

        Does nothing if the process has not started yet, is not ready, or is busy.
        """
        process = self._process
        if process is None or self._begun is not None:
            return
        try:
            if process.is_ready_now():
                self._begun = _Begun(key, self._request(process, backend, program, precision, limits()))
        except CantStart as error:
            self._cant_start = str(error)
            self.end()
        except _NotIsolated:  # compile() compiles it here
            pass

    def compile(self, backend: Backend, program: Program, precision: str) -> Artifact:
        """Compiles a segment in the separate process, or in this process if the separate one can't.

        Raises:
            BackendError: The compiler refuses, ends its process, or exceeds a limit.
            CaptureError: The segment can't be captured in the form that the compiler needs.
        """
        if not runs_isolated(backend):
            return backend.compile(program, precision)
        allowed = limits()
        begun, self._begun = self._begun, None
        if begun is not None and self._process is not None and begun.key != _key_of(backend, program, precision):
            self._drop(self._process)
            begun = None
        try:
            process = self.start()
            process.wait_until_ready()
        except CantStart as error:
            self._cant_start = str(error)
            self.end()
            warnings.warn(
                f"hybrid_rt[{backend.name}]: compiler: expected a separate process to start, got {error}. The "
                f"compiler runs in this process, which a crash would end. Set {ISOLATION}=0 to silence this warning.",
                RuntimeWarning,
                stacklevel=2,
            )
            return backend.compile(program, precision)
        try:
            deadline = begun.deadline if begun else self._request(process, backend, program, precision, allowed)
            return self._answered(process, backend, program, deadline, allowed)
        except _NotIsolated:
            return backend.compile(program, precision)
        except Exception:
            if process.has_ended:
                self._drop(process)
            raise
        except BaseException:  # after Ctrl-C, the late answer would be taken for that of the next request
            self._drop(process)
            raise

    def _drop(self, process: CompilerProcess) -> None:
        """Kills the process, because it can't take another request."""
        process.kill()
        process.close()
        self._process = None

    def _request(
        self, process: CompilerProcess, backend: Backend, program: Program, precision: str, allowed: Limits
    ) -> float:
        """Sends a request, and returns the time at which the compilation is stopped.

        Raises:
            _NotIsolated: The request can't be sent.
        """
        settings = dict(backend.settings())
        self._is_as_started = self._is_as_started and not settings
        request = {
            "backend": backend.name,
            "kind": _name_of(type(backend)),
            "device": backend.context.device,
            "options": dict(backend.context.options),
            "settings": settings,
            "precision": precision,
            "program": plain_parts(program),
            "forms": _forms(backend, program),
            "threads": torch.get_num_threads(),
        }
        try:
            process.send(request)
        except _CANT_SEND as error:
            raise _NotIsolated from error
        return time.monotonic() + (allowed.seconds or float("inf"))

    def _answered(
        self, process: CompilerProcess, backend: Backend, program: Program, deadline: float, allowed: Limits
    ) -> Artifact:
        """Waits for the answer to a request, and answers the questions that come before it."""
        stage = "the compiler's process"
        while True:
            try:
                kind, *content = process.receive(deadline, allowed)
            except Ended as error:
                raise _ended(backend, program, f"{stage} {error}") from error
            if kind == "progress":
                if backend.progress is not None:
                    backend.progress(*content)
            elif kind == "ask":
                before = time.monotonic()
                process.send(_answer(program, *content))
                deadline += time.monotonic() - before
            elif kind == "first run":
                stage = "its compiler's artifact, whose first run in a separate process"
                sys.stderr.write(process.printed())
            else:
                text = process.printed()  # on a first run: this process's own run prints the same
                sys.stderr.write("" if kind == "done" else text)
                for warning, category in content[1:] and content[1]:
                    warnings.warn(warning, category, stacklevel=2)
                return _result(backend, program, kind, content[0])


class _NotIsolated(Exception):
    """The compilation needs an object that only this process has."""


def _key_of(backend: Backend, program: Program, precision: str) -> str:
    """Returns the key of an artifact in the cache; empty if its segment has none."""
    try:
        return store.key_of(backend, program, precision)
    except (NoDigest, CaptureError):
        return ""


def _forms(backend: Backend, program: Program) -> dict[str, Any]:
    """Returns the forms of a program that a compiler needs in any case, but for those that can't be made."""
    forms = {}
    for form in backend.forms:
        with contextlib.suppress(Exception):  # the compiler asks for it, and decides what it does about the error
            forms[form] = form_of(program, form)
    return forms


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _answer(program: Program, form: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "form", form_of(program, form, *arguments)
    except Exception as error:  # the compiler decides what it does about it
        return "error", error


def _result(backend: Backend, program: Program, kind: str, content: Any) -> Artifact:
    if kind == "not here":
        raise _NotIsolated(content)
    if kind == "exit":
        raise _ended(backend, program, f"the compiler {content}")
    if kind == "raised":
        raise content
    artifact: Artifact = pickle.loads(content)
    return artifact


def _ended(backend: Backend, program: Program, got: str) -> BackendError:
    return BackendError.make(
        backend.name,
        f"segment '{program.name}'",
        expected="an artifact that runs",
        got=got,
        remedy="The fault is in the vendor's code: name smaller submodules in "
        f"segments=, or use another engine. {SECONDS} and {MEMORY} set the limits of time and memory.",
        code="engine-crashed",
    )
