"""Latency in C++, side by side in one process: frozen TorchScript, hybrids, the whole detector in one OpenVINO graph.

The detectors are torchvision's, with random weights treated as models/torchvision_detectors.py says: the arithmetic is
the real one, the boxes mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import native
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from whole_graph import save_whole_graph

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

import hybrid_rt
from hybrid_rt import torchscript
from models import torchvision_detectors

PRECISIONS = ("fp32", "bf16")
BACKBONE = "hybrid fp32, backbone only"


class _Picture(nn.Module):
    """Carries a picture to the C++ program."""

    def __init__(self, picture: Tensor) -> None:
        super().__init__()
        self.picture = nn.Buffer(picture)

    def forward(self) -> Tensor:
        """The picture, [3, H, W]."""
        return self.picture


def main() -> None:
    """Converts, measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--detectors", nargs="+", default=["fasterrcnn_resnet50_fpn"], choices=torchvision_detectors.NAMES
    )
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "bench.json")
    options = parser.parse_args()
    console = Console()
    results = {}
    for name in options.detectors:
        with tempfile.TemporaryDirectory() as folder, console.status(f"{name} ..."):
            results[name] = _measure(name, options, Path(folder))
    _print(results, options, console)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


def _measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, object]]:
    torch.set_num_threads(options.threads)
    detector = torchvision_detectors.build(name)
    (picture,) = torchvision_detectors.pictures([tuple(options.size)])
    torchscript.save(torchscript.script(_Picture(picture)), folder / "picture.pt")
    torchscript.save(torchscript.freeze(torchscript.script(detector)), folder / "plain.pt")
    arguments = [f"torchscript=torchscript:{folder / 'plain.pt'}"]
    engines = {}
    for precision in options.precisions:
        # Speed is measured here; in bf16, random weights can't judge accuracy.
        options_of = {"precision": precision, "fallback": False, "verify": precision == "fp32", "measure": False}
        path = folder / f"{precision}.pt"
        report = hybrid_rt.convert(detector, ([picture],), path, **options_of).report
        engines[precision] = [segment.name for segment in report.segments]
        arguments.append(f"hybrid {precision}=hybrid:{path}")
        path = folder / f"whole_{precision}.pt"
        other = nn.functional.interpolate(picture[None], size=(picture.shape[2], picture.shape[1]))[0]
        save_whole_graph(detector, [picture, other], precision, path)
        arguments.append(f"whole graph {precision}=hybrid:{path}")
    path = folder / "backbone.pt"
    hybrid_rt.convert(detector, ([picture],), path, segments="backbone", fallback=False, verify=False, measure=False)
    arguments.append(f"{BACKBONE}=hybrid:{path}")
    print(f"{name}: engines {engines}")
    library = Path(torchvision.__file__).parent / "_C_stable.so"
    return native.run("bench_latency", options.threads, 2, options.rounds, folder / "picture.pt", library, *arguments)


def _print(results: dict[str, dict[str, dict[str, object]]], options: argparse.Namespace, console: Console) -> None:
    height, width = options.size
    table = Table(title=f"{height}x{width} in, {options.threads} threads, C++, {options.rounds} rounds in turns")
    for heading in ("case", "median ms", "p95 ms", "times faster", "load ms", "boxes"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    engines = set()
    for detector, cases in results.items():
        base = float(cases["torchscript"]["median_ms"])
        for case in cases:
            row = cases[case]
            engines |= {f"{case}: {json.loads(text)['description']}" for text in row.get("engines", [])}
            table.add_row(
                f"{detector}, {case}",
                f"{row['median_ms']:.0f}",
                f"{row['p95_ms']:.0f}",
                f"{base / float(row['median_ms']):.2f}",
                f"{row['load_ms']:.0f}",
                str(row["boxes"]),
            )
    console.print(table)
    print("\n".join(sorted(engines)))
    print(f"{platform.processor() or platform.machine()}, {_cpu()}, torch {torch.__version__}")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


if __name__ == "__main__":
    main()
