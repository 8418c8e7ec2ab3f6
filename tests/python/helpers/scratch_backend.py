"""A backend whose compiler fails in the way that its option "do" names; tests install a copy as a package."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hybrid_rt.backends import Artifact, Availability, Backend, blob_from_bytes


class Odd(Exception):
    """An error that can't be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def without_end() -> None:
    """Takes memory until the process is stopped."""
    held = []
    while True:
        held.append(bytearray(b"x") * 2**24)


def crash_when_it_runs() -> bytes:
    """Returns an artifact for the engine torchscript, which calls an operator that only this process has."""
    library = globals().setdefault("library", torch.library.Library("scratch", "DEF"))
    library.define("crash(Tensor x) -> Tensor")
    library.impl("crash", lambda x: os.kill(os.getpid(), signal.SIGSEGV), "CPU")
    module = torch.jit.ScriptModule()
    module.define("def forward(self, x: Tensor) -> Tuple[Tensor]:\n    return (torch.ops.scratch.crash(x),)\n")
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(module.eval(), stream)
    return stream.getvalue()


class ScratchBackend(Backend):
    """The backend."""

    name = "scratch"
    precisions = ("fp32",)
    is_candidate = False

    def availability(self) -> Availability:
        return Availability(True, version="1")

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return dict(options)

    def compile(self, program: Any, precision: str) -> Artifact:
        do = self.given.get("do", "")
        spec = self.spec(program, precision, versions={})
        if do == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif do == "abort":
            print("pure virtual method called", file=sys.stderr, flush=True)
            os.abort()
        elif do == "exit":
            os._exit(3)
        elif do == "sys.exit":
            sys.exit("enough")
        elif do == "interrupt":
            raise KeyboardInterrupt
        elif do == "hang":
            Path(__file__).with_name("hangs").write_text(str(os.getpid()))
            time.sleep(3600)
        elif do == "memory":
            without_end()
        elif do == "no memory":
            raise MemoryError
        elif do == "odd error":
            raise Odd("an odd ", "error")
        elif do == "odd artifact":
            odd: Any = {"code": lambda: 0}
            return Artifact(spec, odd)
        elif do == "crash later":
            object.__setattr__(spec, "backend", "torchscript")
            return Artifact(spec, {"module": blob_from_bytes(crash_when_it_runs())})
        elif do == "members":
            return Artifact(spec, {"names": blob_from_bytes(",".join(program.segments).encode())})
        elif do == "talk":
            print("what the vendor prints", file=sys.stderr)
            warnings.warn("what the vendor warns of", RuntimeWarning, stacklevel=1)
            assert self.progress is not None
            self.progress(0.5, "half of it")
        return Artifact(spec, {"process": blob_from_bytes(str(os.getpid()).encode())})
