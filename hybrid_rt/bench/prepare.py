"""``python -m hybrid_rt.bench.prepare JOB.json``: writes the file that a case runs, in its own process.

If a compiler exhausts the memory or crashes, only this case fails, and the others go on.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from ..conversion.convert import convert
from ..torchscript import jit
from . import whole_graph
from .protocol import failure_text, replies


def main(job_file: str) -> int:
    """Prepares the job, and prints one line of JSON: {"seconds", "segments"}, or {"error"}."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with replies() as reply:
        try:
            reply(_prepare(json.loads(Path(job_file).read_text())))
            return 0
        except Exception as error:  # of any compiler
            reply({"error": failure_text(error)})
            return 1


def _end_with_parent() -> None:
    """Ends this process with its parent, so that a compiler does not outlive a cancelled benchmark."""
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read(): its lock would be held when the interpreter ends
        pass
    os._exit(1)


def _prepare(job: dict[str, Any]) -> dict[str, Any]:
    detector = torch.load(job["detector"], weights_only=False)
    images = jit.open_archive(Path(job["images"])).images
    calibration = jit.open_archive(Path(job["calibration"])).images if job["precision"] == "int8" else []
    path = Path(job["path"])
    segments: list[str] = []
    start = time.perf_counter()
    if job["runtime"] == "torchscript":
        jit.save(jit.freeze(jit.script(detector)), path)
    elif job["runtime"] == "whole":
        whole_graph.build(job["engine"], detector, images, job["precision"], path, calibration)
    else:
        report = convert(
            detector,
            ([images[0]],),
            path,
            segments=job["segments"],
            shapes=[tuple(size) for size in job["shapes"]] if job["shapes"] else None,
            engine=[f"{job['engine']}:{job['precision']}"],
            device=job.get("device", "cpu"),
            calibration_data=[([image],) for image in calibration],
            options={job["engine"]: job["int8_options"]} if job.get("int8_options") else None,
            fallback=False,
            verify=False,  # whatever it finds is compared with eager's, and shown
            golden=False,
            measure=False,
        ).report
        segments = [name for engine in report.engines for name in engine.members]
    return {"seconds": time.perf_counter() - start, "segments": segments}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
