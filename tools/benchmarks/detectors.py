"""Compares every way to run detectors: eager, TorchScript, hybrids and whole graphs of each engine, Python and C++.

The demo detector is trained. torchvision's have random weights, treated as described in
models/torchvision_detectors.py: the arithmetic is realistic, and the boxes are meaningless but can be compared.
`hybrid-rt compare-engines` does the same with your own detector.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

from hybrid_rt.backends import registry
from hybrid_rt.backends.quantization import options as int8_options
from hybrid_rt.backends.selection import DEVICES
from hybrid_rt.bench.cases import RUNTIMES, cases
from hybrid_rt.bench.results import run_all
from hybrid_rt.bench.run import Settings, Subject, prepare
from hybrid_rt.cli.compare_engines import show
from hybrid_rt.common.progress import Steps
from models import digits_data, digits_detector, torchvision_detectors

DEMO = "demo"
CALIBRATION = 20
"""Number of training images that int8 is calibrated on."""

PHOTOGRAPHS = 4
"""Number of photographs that int8 of torchvision's detectors is calibrated on. There are five, and one is timed."""

NOTE = (
    "demo: the repository's digit detector, trained, on images of its own kind. The others: torchvision's, random "
    "weights scaled so that activations stay of order one; their boxes mean nothing, and are compared."
)


def main() -> None:
    """Runs the detectors, prints tables, and writes JSON, Markdown and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (DEMO, *torchvision_detectors.NAMES)
    parser.add_argument("--detectors", nargs="+", default=[DEMO, "fasterrcnn_resnet50_fpn"], choices=known)
    parser.add_argument("--engines", nargs="+", help="e.g. openvino openvino:bf16 (default: all that are available)")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument(
        "--size", nargs=2, type=int, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="torchvision's"
    )
    parser.add_argument("--min-size", type=int, help="to which torchvision's detectors resize (default: their 800)")
    parser.add_argument("--fixed-sizes", action="store_true", help="compile the hybrids for the images' sizes alone")
    parser.add_argument("--pictures", type=int, default=1, help="of one size, alternately")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where all of them run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--int8-seconds", type=float, help="for the search of layers that stay in fp32, per engine")
    parser.add_argument("--int8-max-error", type=float, help="largest relative error of an output in int8")
    parser.add_argument("--files", type=Path, help="directory that keeps the prepared files for a later run")
    parser.add_argument("--prepare-only", action="store_true", help="make the files of --files, and measure nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "bench")
    options = parser.parse_args()
    engines = options.engines or registry.available_for(options.device)
    subjects = [
        subject(name, size=tuple(options.size), min_size=options.min_size, count=options.pictures)
        for name in options.detectors
    ]
    chosen = cases(engines, runtimes=options.runtimes, device=options.device)
    settings = Settings(
        rounds=options.rounds,
        warm_up=options.warm_up,
        threads=options.threads,
        fixed_sizes=options.fixed_sizes,
        device=options.device,
        int8_options={name: value for name in int8_options.DEFAULTS if (value := getattr(options, name)) is not None},
    )
    if options.prepare_only:
        if options.files is None:
            parser.error("--prepare-only needs --files")
        for each in subjects:
            directory = options.files / each.name
            directory.mkdir(parents=True, exist_ok=True)
            for result in prepare(each, chosen, directory, settings, steps=Steps(True)):
                print(f"{each.name}, {result.case.name}: {result.failure or 'ready'}")
        return
    machine, results = run_all(
        subjects, chosen, options.output, settings, note=NOTE, files=options.files, steps=Steps(True)
    )
    show(results, f"{machine.processor}, {options.threads} threads, {options.rounds} rounds, alternately")
    print(f"written: {options.output}/bench.json, bench.md and one plot per detector")


def subject(name: str, *, size: tuple[int, int] = (480, 640), min_size: int | None = None, count: int = 1) -> Subject:
    """Returns a detector of the benchmark and its images.

    Args:
        name: DEMO, or the name of one of torchvision's detectors.
        size: (height, width) of the images for torchvision's detectors.
        min_size: Size to which these detectors resize; None for their own.
        count: Number of images.
    """
    if name == DEMO:
        samples = digits_data.make_split("held_out", count, seed=0)
        training = digits_data.make_split("train", CALIBRATION)
        images, calibration = (
            [digits_detector.to_tensor(sample.image) for sample in each] for each in (samples, training)
        )
        return Subject(name, digits_detector.load, images, calibration)
    build = partial(torchvision_detectors.build, name, min_size=min_size)
    found = torchvision_detectors.photographs([size] * (count + PHOTOGRAPHS))
    return Subject(name, build, found[:count], found[count:])


if __name__ == "__main__":
    main()
