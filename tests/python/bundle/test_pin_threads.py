"""Tests of load(pin_threads=True): which calls bind threads to CPUs, and what is left of it afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helpers.bundle_surgery import run_python

pytest.importorskip("openvino")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a thread on the only CPU is never bound"),
]

PROGRAM = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
import torch
import hybrid_rt
from helpers.small_detectors import small_image

path, settings, seconds = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
everywhere = os.sched_getaffinity(0)

def bound():
    # Returns the threads of this process that may not run everywhere.
    found = []
    for thread in os.listdir("/proc/self/task"):
        try:
            if os.sched_getaffinity(int(thread)) != everywhere:
                found.append(thread)
        except ProcessLookupError:
            pass
    return found

other = hybrid_rt.load(path, **{**settings, "pin_threads": not settings["pin_threads"]})  # must not be shared
module = hybrid_rt.load(path, **settings)

def wait_until_free():
    # A thread of an engine is released when it has waited for work for some time.
    deadline = time.monotonic() + 20
    while bound() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bound() == []

def call(times):
    with torch.inference_mode():
        for _ in range(times):
            module(small_image())

def call_on_one_cpu():
    os.sched_setaffinity(0, {max(everywhere)})
    call(1)
    return os.sched_getaffinity(0)

assert wait_until_free()  # of the compilation
with ThreadPoolExecutor(1) as pool:
    seen, deadline = [], time.monotonic() + seconds
    while not seen and time.monotonic() < deadline:
        calls = pool.submit(call, 200)
        while not seen and not calls.done():
            seen = bound()
        calls.result()
    is_free_again = wait_until_free()
    caller_keeps_its_cpus = pool.submit(call_on_one_cpu).result() == {max(everywhere)}
(engine,) = hybrid_rt.engines(module)
print(" pinned threads" in engine["description"], bool(seen), is_free_again, caller_keeps_its_cpus)
"""

CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("settings", "binds"),
    [
        ({"pin_threads": True, "threads": CPUS}, True),
        ({"pin_threads": False, "threads": CPUS}, False),
        ({"pin_threads": True, "threads": CPUS - 1}, False),
        ({"pin_threads": True, "threads": CPUS, "concurrency": 2}, False),
    ],
    ids=["pinned", "not requested", "a CPU is left", "two calls at a time"],
)
def test_threads_are_bound_only_if_they_occupy_every_cpu(
    small_bundle: Path, settings: dict[str, object], binds: bool
) -> None:
    done = run_python(PROGRAM, small_bundle, json.dumps({"backend": "openvino", **settings}), 60 if binds else 2)
    assert done.returncode == 0, done.stderr
    said, seen, are_free_again, caller_keeps_its_cpus = done.stdout.split()
    assert (said, seen) == (str(binds), str(binds))
    assert (are_free_again, caller_keeps_its_cpus) == ("True", "True")
