"""Measures the steps of convert() with an empty and with a filled cache.

The default is Faster R-CNN R50-FPN with torchvision's own transform. On the second run, everything except verification
and measuring should take less than ten seconds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]

import hybrid_rt
from models import torchvision_detectors

BESIDES = ("verify", "measure")


def main() -> None:
    """Converts twice and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="fasterrcnn_resnet50_fpn", choices=torchvision_detectors.NAMES)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    detector = torchvision_detectors.build(options.detector)
    images = torchvision_detectors.photographs([(480, 640)])
    runs = []
    with tempfile.TemporaryDirectory() as directory:
        os.environ["HYBRID_RT_CACHE"] = str(Path(directory) / "cache")
        for _ in range(2):
            report = hybrid_rt.convert(detector, (images,), Path(directory) / "detector.pt").report
            runs.append(report.seconds)
    table = Table(title=f"convert {options.detector}, {options.threads} threads, seconds")
    for heading in ("step", "empty cache", "filled cache"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for step in dict.fromkeys([*runs[0], *runs[1]]):
        table.add_row(step, *(f"{run[step]:.1f}" if step in run else "-" for run in runs))
    table.add_section()
    besides = [sum(seconds for step, seconds in run.items() if step not in BESIDES) for run in runs]
    table.add_row(f"all but {' and '.join(BESIDES)}", *(f"{seconds:.1f}" for seconds in besides))
    Console().print(table)


if __name__ == "__main__":
    main()
