"""Measures one and two callers of a bundle, with one thread per core and with one thread per call.

"latency" is threads=2 and concurrency=1, "throughput" is threads=1 and concurrency=2. Each mode runs in a separate
process, in which the callers are threads; TorchScript releases Python's lock while it runs. A call's time includes
waiting for the other caller.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MODES = {"latency": (2, 1), "throughput": (1, 2)}
"""Threads per call, and concurrent calls, for two cores."""

_PROCESS = """
import json, sys, threading, time
import torch, hybrid_rt
from tools.benchmarks.bundle_inputs import inputs_of

path, threads, concurrency, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
torch.set_num_threads(threads)
inputs = inputs_of(path)
module = hybrid_rt.load(path, threads=threads, concurrency=concurrency)

def calls(seconds, times):
    torch.set_num_threads(threads)  # of this thread alone
    with torch.inference_mode():
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            module(*inputs)
            times.append((time.perf_counter() - start) * 1e3)

calls(1.0, [])
found = {}
for callers in (1, 2):
    times = []
    workers = [threading.Thread(target=calls, args=(seconds, times)) for _ in range(callers)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    times.sort()
    found[callers] = {
        "median": times[len(times) // 2],
        "p95": times[min(len(times) - 1, int(len(times) * 0.95))],
        "per_second": len(times) / (time.perf_counter() - start),
    }
print(json.dumps(found))
"""


def main() -> None:
    """Measures the bundles and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=4.0, help="per mode and number of callers (default: 4)")
    options = parser.parse_args()
    table = Table(title="callers of one bundle, two cores, ms per call")
    for heading in ("bundle", "mode", "callers", "median", "p95", "images per second"):
        table.add_column(heading, justify="left" if heading in ("bundle", "mode") else "right")
    for path in options.bundles:
        for mode, (threads, concurrency) in MODES.items():
            for callers, found in _measured(path, threads, concurrency, options.seconds).items():
                table.add_row(
                    f"{path.parent.name}/{path.stem}",
                    mode,
                    callers,
                    f"{found['median']:.1f}",
                    f"{found['p95']:.1f}",
                    f"{found['per_second']:.1f}",
                )
    Console(width=120).print(table)


def _measured(path: Path, threads: int, concurrency: int, seconds: float) -> dict[str, dict[str, Any]]:
    arguments = [str(path), str(threads), str(concurrency), str(seconds)]
    done = subprocess.run([sys.executable, "-c", _PROCESS, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
