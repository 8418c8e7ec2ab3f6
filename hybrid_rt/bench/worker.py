"""``python -m hybrid_rt.bench.worker JOB.json``: runs one case in its own process, at the benchmark's requests.

Answers in lines of JSON: {"load_ms", "engines"} when the detector is loaded; then for each line on stdin

- ``run I``: {"ms"} of one call on image I
- ``boxes I``: {"boxes": 4 n numbers, "labels", "scores"} on image I, or {"not_compared": why}
- ``memory``: {"peak"}, bytes of resident memory

and {"error"} when something fails, which ends the process. The job's "device" ("cpu", "cuda") is where the detector
runs and the images lie, "cpu" if it names none. cpp/apps/bench_worker is the same for C++.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..bundle import archive
from ..torchscript import jit
from ..verification.boxes import detections_of
from . import whole_graph
from .protocol import failure_text, replies


def main(job_file: str) -> int:
    """Answers requests until stdin ends."""
    job = json.loads(Path(job_file).read_text())
    with replies() as reply:
        try:
            _work(job, reply)
            return 0
        except Exception as error:  # of any runtime
            reply({"error": failure_text(error)})
            return 1


def _work(job: dict[str, Any], reply: Callable[[Any], None]) -> None:
    torch.set_num_threads(job["threads"])
    if job["runtime"] in ("torchscript", "eager", "compile"):
        import torchvision  # noqa: F401  its operators are loaded before the clock starts
    device = torch.device(job.get("device", "cpu"))
    start = time.perf_counter()
    detector = _open(job, device)
    _wait_for(device)
    loaded = {"load_ms": (time.perf_counter() - start) * 1e3, "engines": {}}
    if job["runtime"] == "hybrid":
        loaded["engines"] = {choice["engine"]: choice["description"] for choice in archive.engines(detector)}
    images = [image.to(device) for image in jit.open_archive(Path(job["images"])).images]
    _wait_for(device)
    gc.collect()
    gc.freeze()  # else a call may wait for Python's collector, which takes 200 ms to look through torch's objects
    reply(loaded)
    with torch.inference_mode():
        for line in sys.stdin:
            command, *numbers = line.split()
            if command == "memory":
                reply({"peak": _peak_memory()})
                continue
            image = images[int(numbers[0])]
            start = time.perf_counter()
            result = detector([image])
            _wait_for(device)
            milliseconds = (time.perf_counter() - start) * 1e3
            reply(_boxes(result) if command == "boxes" else {"ms": milliseconds})


def _wait_for(device: torch.device) -> None:
    """Waits for a device, because a GPU's work goes on after the call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _open(job: dict[str, Any], device: torch.device) -> Any:
    path = Path(job["path"])
    if job["runtime"] == "hybrid":
        return archive.load(path, device, threads=job["threads"], pin_threads=True)
    if job["runtime"] == "torchscript":
        module = jit.open_archive(path).eval()
        return module if device.type == "cpu" else jit.move_to_device(module, str(device))
    if job["runtime"] == "whole":
        return whole_graph.open_whole(job["engine"], job["precision"], path, job["threads"])
    detector = torch.load(path, weights_only=False).to(device)
    return torch.compile(detector) if job["runtime"] == "compile" else detector


def _boxes(result: Any) -> dict[str, Any]:
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], dict):
        result = result[1]  # torchvision's scripted detectors: losses, detections
    found = detections_of(result)
    if not found:
        return {"not_compared": "the detector does not return a list of dicts with boxes, labels and scores"}
    return {name: found[0][name].flatten().tolist() for name in ("boxes", "labels", "scores")}


def _peak_memory() -> int:
    """Returns the peak of resident memory in bytes; that of getrusage starts with the parent's peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
