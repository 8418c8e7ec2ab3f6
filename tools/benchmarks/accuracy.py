"""mAP of the demo detector on held-out pictures: eager, hybrid in bf16, the whole detector in one bf16 graph.

A hybrid computes boxes, scores and NMS in fp32; a whole graph computes them in bf16 too. On a CPU without bf16
instructions OpenVINO emulates the rounding, which is slow but right.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]

import hybrid_rt
from hybrid_rt.bench import whole_graph
from models import digits_data, digits_detector


def main() -> None:
    """Converts, evaluates, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="held-out pictures")
    options = parser.parse_args()
    detector = digits_detector.load()
    samples = digits_data.make_split("held_out", options.pictures, seed=0)
    pictures = [digits_detector.to_tensor(sample.image) for sample in samples[:2]]
    table = Table(title=f"digits, {options.pictures} held-out pictures")
    for heading in ("case", "mAP", "mAP@0.5", "s"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        hybrid_rt.convert(detector, (pictures[:1],), folder / "hybrid.pt", precision="bf16", fallback=False)
        cases = {
            "eager fp32": detector,
            "hybrid bf16": hybrid_rt.load(folder / "hybrid.pt", emulate_precision=True),
            **{
                f"whole graph {precision}": _whole(detector, pictures, precision, folder)
                for precision in ("bf16", "fp32")
            },
        }
        for case, detect in cases.items():
            start = time.perf_counter()
            found = digits_detector.evaluate(detect, samples)
            table.add_row(case, f"{found['mAP']:.4f}", f"{found['mAP50']:.4f}", f"{time.perf_counter() - start:.0f}")
    Console().print(table)


def _whole(
    detector: torch.nn.Module, pictures: list[torch.Tensor], precision: str, folder: Path
) -> digits_detector.Detect:
    """The whole detector in one OpenVINO graph."""
    whole_graph.build("openvino", detector, pictures, precision, folder / precision)
    return whole_graph.open_whole("openvino", precision, folder / precision, torch.get_num_threads())


if __name__ == "__main__":
    main()
