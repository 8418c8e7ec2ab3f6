"""Measures TorchScript's own options on a detector, each case in a separate process, called alternately.

Some switches apply to the whole process (the profiling executor, the number of threads), and a graph keeps the executor
of its first call, so each case needs its own process. All of them keep running, so that fluctuations of the machine
affect all cases.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]

from hybrid_rt.common.images import read_image
from hybrid_rt.common.latency import percentile
from models import digits_detector, torchvision_detectors

FIRST_CALLS = 3


@dataclass(frozen=True)
class Case:
    """One way to run a detector."""

    name: str
    form: str = "frozen"  # eager, scripted, frozen, optimized
    profiling: bool = True
    channels_last: bool = False
    bf16: bool = False
    threads: int | None = None


CASES = (
    Case("eager", form="eager"),
    Case("eager, channels_last", form="eager", channels_last=True),
    Case("scripted", form="scripted"),
    Case("frozen"),
    Case("frozen, optimize_for_inference", form="optimized"),
    Case("frozen, no profiling executor", profiling=False),
    Case("frozen, channels_last", channels_last=True),
    Case("frozen, channels_last, backbone in bf16", channels_last=True, bf16=True),
    Case("frozen, one thread", threads=1),
)


def detector_of(name: str) -> tuple[nn.Module, Tensor]:
    """Returns a detector and an image for it."""
    if name == "demo":
        return digits_detector.load(), read_image(sorted((ROOT / "models" / "held_out").glob("*.png"))[0])
    (image,) = torchvision_detectors.photographs([(480, 640)])
    return torchvision_detectors.build(name), image


class InBfloat16(nn.Module):
    """Backbone that computes in bf16 and returns float32, like the torchscript backend in bf16."""

    def __init__(self, backbone: nn.Module) -> None:
        """Casts a backbone in place.

        Args:
            backbone: The backbone.
        """
        super().__init__()
        self.backbone = backbone.to(torch.bfloat16)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the backbone's features in float32."""
        features: dict[str, Tensor] = self.backbone(images.to(torch.bfloat16))
        return {name: level.to(torch.float32) for name, level in features.items()}


def prepared(detector: nn.Module, case: Case) -> nn.Module:
    """Returns the detector in the form that the case describes."""
    if case.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    if case.bf16:
        detector.backbone = InBfloat16(detector.get_submodule("backbone"))
    if case.form == "eager":
        return detector
    module = torch.jit.script(detector)
    if case.form == "scripted":
        return module
    module = torch.jit.freeze(module)
    return torch.jit.optimize_for_inference(module) if case.form == "optimized" else module


def worker(connection: Any, path: str, case: Case, threads: int) -> None:
    """Prepares a case, then answers each requested number of calls with their milliseconds and the result."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(case.threads or threads)
    torch._C._jit_set_profiling_executor(case.profiling)
    torch._C._jit_set_profiling_mode(case.profiling)
    detector, image = torch.load(path, weights_only=False)
    try:
        start = time.perf_counter()
        module = prepared(detector, case)
        connection.send({"prepare_ms": (time.perf_counter() - start) * 1e3})
        while count := connection.recv():
            times = []
            for _ in range(count):
                start = time.perf_counter()
                with torch.inference_mode():
                    result = module([image])
                times.append((time.perf_counter() - start) * 1e3)
            found = result[1] if isinstance(result, tuple) else result
            connection.send({"times": times, "boxes": len(found[0]["boxes"])})
    except Exception as error:
        connection.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"})


def measure(name: str, options: argparse.Namespace, directory: Path) -> dict[str, dict[str, Any]]:
    """Runs all cases of a detector, alternately."""
    path = directory / f"{name}.pt"
    torch.save(detector_of(name), path)
    context = multiprocessing.get_context("spawn")
    connections, processes, results = {}, [], {}
    for case in options.cases:
        connections[case.name], theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, str(path), case, options.threads), daemon=True)
        process.start()
        processes.append(process)
        # One after another, because preparing uses more cores than a call.
        results[case.name] = {**asdict(case), **connections[case.name].recv()}

    def call(case: str, count: int) -> list[float]:
        if "error" in results[case]:
            return []
        connections[case].send(count)
        answer = connections[case].recv()
        results[case] |= {key: answer[key] for key in ("boxes", "error") if key in answer}
        return answer.get("times", [])

    for case, result in results.items():
        result["first_ms"] = call(case, FIRST_CALLS)
    for case, result in results.items():
        call(case, 2)
        result["times_ms"] = []
    for _ in range(options.rounds):
        for case, result in results.items():
            result["times_ms"] += call(case, options.calls)
    for case, result in results.items():
        if "error" not in result:
            connections[case].send(0)
    for process in processes:
        process.join()
    return results


def main() -> None:
    """Measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--detectors", nargs="+", default=["demo", "ssdlite320_mobilenet_v3_large"],
        choices=["demo", *torchvision_detectors.NAMES],
    )  # fmt: skip
    parser.add_argument("--cases", nargs="+", default=[], choices=[case.name for case in CASES], help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=3, help="of a case in a row within a round")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "bench_torchscript.json")
    options = parser.parse_args()
    options.cases = [case for case in CASES if case.name in ["eager", *options.cases] or not options.cases]
    table = Table(title=f"{options.threads} threads, {options.rounds} rounds of {options.calls} calls, alternately")
    for heading in ("detector", "case", "first calls ms", "median ms", "p95 ms", "times faster", "boxes"):
        table.add_column(heading, justify="left" if heading in ("detector", "case") else "right")
    results = {}
    for name in options.detectors:
        with tempfile.TemporaryDirectory() as directory:
            results[name] = measure(name, options, Path(directory))
        base = percentile(results[name]["eager"]["times_ms"], 50)
        for case, result in results[name].items():
            if "error" in result:
                table.add_row(name, case, result["error"])
                continue
            median, p95 = (percentile(result["times_ms"], share) for share in (50, 95))
            first = ", ".join(f"{milliseconds:.0f}" for milliseconds in result["first_ms"])
            table.add_row(
                name, case, first, f"{median:.1f}", f"{p95:.1f}", f"{base / median:.2f}", str(result["boxes"])
            )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
