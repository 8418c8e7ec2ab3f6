"""Measures the cost of several engines in one file: bytes per variant, and resident memory after loading.

A bundle with all engines is compared with one that has only the first of them, which runs in both. Each is loaded in
separate processes, alternately.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]

import hybrid_rt
from hybrid_rt.cli.main import main as hybrid_rt_command
from models import torchvision_detectors

LOAD = """
import json, re, sys, time
import hybrid_rt
def resident():
    status = open("/proc/self/status").read()
    return {name: int(re.search(name + r":\\s+(\\d+)", status)[1]) / 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}
before = resident()
start = time.perf_counter()
module = hybrid_rt.load(sys.argv[1])
seconds = time.perf_counter() - start
names = [f"{engine['backend']}:{engine['precision']}" for engine in hybrid_rt.engines(module)]
print(json.dumps({"before": before, "after": resident(), "seconds": seconds, "engines": names}))
"""


def loaded(path: Path) -> dict[str, dict[str, float]]:
    """Loads a bundle in a separate process. Returns the resident MiB before and after."""
    process = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(process.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Converts twice and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="fasterrcnn_resnet50_fpn", choices=torchvision_detectors.NAMES)
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime", "torchscript"])
    parser.add_argument("--segments", nargs="+", default=["backbone"], help="their names, or auto")
    parser.add_argument("--min-size", type=int, default=320, help="that the detector resizes its images to")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    detector = torchvision_detectors.build(options.detector, min_size=options.min_size)
    images = torchvision_detectors.photographs([(240, 320)])
    segments = "auto" if options.segments == ["auto"] else options.segments
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory) / "one.pt", Path(directory) / "bank.pt"]
        for path, engines in zip(paths, (options.engines[:1], options.engines), strict=True):
            hybrid_rt.convert(
                detector,
                (images,),
                path,
                segments=segments,
                engine=engines,
                fallback=False,
                verify=False,
                measure=False,
                golden=False,
            )
        sys.stdout.flush()
        hybrid_rt_command(["inspect", str(paths[1])])
        runs = [[loaded(path) for path in paths] for _ in range(options.rounds)]
        table = Table(title=f"{options.detector}, medians of {options.rounds} processes, alternately, MiB resident")
        for heading in ("engines", "file MB", "before load", "after load", "anonymous", "peak", "load s"):
            table.add_column(heading, justify="left" if heading == "engines" else "right")
        after = []
        for path, each in zip(paths, zip(*runs, strict=True), strict=True):
            assert all(run["engines"] == each[0]["engines"] for run in each)
            medians = {
                (moment, name): statistics.median(run[moment][name] for run in each)
                for moment in ("before", "after")
                for name in ("VmRSS", "VmHWM", "RssAnon")
            }
            after.append(medians["after", "VmRSS"])
            table.add_row(
                ", ".join(options.engines[:1] if path is paths[0] else options.engines),
                f"{path.stat().st_size / 1e6:.1f}",
                *(f"{medians[key]:.0f}" for key in [("before", "VmRSS"), ("after", "VmRSS"), ("after", "RssAnon")]),
                f"{medians['after', 'VmHWM']:.0f}",
                f"{statistics.median(float(run['seconds']) for run in each):.2f}",
            )
        Console(width=None if sys.stdout.isatty() else 120).print(table)
        sizes = [path.stat().st_size for path in paths]
        print(f"ratio: {sizes[1] / sizes[0]:.3f} in bytes of the file, {after[1] / after[0]:.3f} resident after load")


if __name__ == "__main__":
    main()
