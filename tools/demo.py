"""Runs the main workflow on real images: the demo detector becomes one .pt that runs in Python and in C++."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hybrid_rt
from hybrid_rt.common.class_names import class_colour, text_colour, text_of
from hybrid_rt.common.images import read_image
from hybrid_rt.common.latency import percentile
from hybrid_rt.torchscript import jit
from hybrid_rt.verification.verify import match_boxes
from models import digits_detector

ROOT = Path(__file__).resolve().parents[1]
Detections = dict[str, Tensor]

ROUNDS = 4
CALLS_PER_ROUND = 5
SHOWN_SCORE = 0.5


def main() -> int:
    """Converts, runs, compares and draws. Returns the exit code: 1 if the boxes of any way of running differ."""
    output = ROOT / "out"
    output.mkdir(exist_ok=True)
    bundle, page, drawn = output / "detector.pt", output / "report.html", output / "demo.png"
    console = Console()
    paths = sorted((ROOT / "models" / "held_out").glob("*.png"))
    images = [read_image(path) for path in paths]
    detector = digits_detector.load()

    console.rule("convert")
    print(_convert(detector, images, bundle, page).report)

    console.rule("run")
    cases = _cases(detector, bundle)
    with torch.inference_mode():
        found = {name: [run(image) for image in images] for name, run in cases.items()}
        with console.status("hybrid in C++ ..."):
            found["hybrid in C++"] = [_detect(bundle, path)[0] for path in paths]
        with console.status("latency, side by side ..."):
            times = _latencies(cases, images[0], bundle, paths[0])

    print(f"{len(paths)} images; latency on {paths[0].name}, {torch.get_num_threads()} threads")
    table, agree = _compare(found, times)
    console.print(table)
    _draw(paths, [("eager", found["eager"]), ("hybrid in C++", found["hybrid in C++"])], drawn)
    written = {"bundle": bundle, "report": page, "image with the boxes": drawn}
    print("   ".join(f"{what}: {path.relative_to(ROOT)}" for what, path in written.items()))
    if not agree:
        print("The hybrid found other boxes than the detector.", file=sys.stderr)
    return 0 if agree else 1


def _convert(detector: nn.Module, images: list[Tensor], bundle: Path, page: Path) -> hybrid_rt.ConversionResult:
    """Converts the detector, comparing it with the hybrid on all images. The first image is the example."""
    return hybrid_rt.convert(
        detector,
        ([images[0]],),
        bundle,
        verify_inputs=[([image],) for image in images[1:]],
        report=page,
        progress=True,
    )


def _cases(detector: nn.Module, bundle: Path) -> dict[str, Callable[[Tensor], Detections]]:
    """Returns the ways of running in this process."""
    hybrid = hybrid_rt.load(bundle)
    frozen = jit.freeze(jit.script(detector))
    # torchvision warns about this in the first call; TorchScript's case takes the detections out of the pair.
    warnings.filterwarnings("ignore", message="RCNN always returns a")
    return {
        "eager": lambda image: detector([image])[0],
        "TorchScript": lambda image: frozen([image])[1][0],
        "hybrid in Python": lambda image: hybrid([image])[0],
    }


def _compare(
    found: Mapping[str, list[Detections]], times: Mapping[str, list[tuple[float, float]]]
) -> tuple[Table, bool]:
    """Returns a table with one row per way of running, and True if the hybrid's boxes match eager's."""
    table = Table()
    for heading in ("", "median ms", "p95 ms", "times faster", "boxes", "same boxes as eager"):
        table.add_column(heading, justify="right" if heading else "left")
    expected, baseline = found["eager"], percentile([median for median, _ in times["eager"]], 50)
    total = sum(len(entry["boxes"]) for entry in expected)
    agree = True
    for name, detections in found.items():
        same = sum(match_boxes(e, f, iou=0.99, score=1e-3).matched for e, f in zip(expected, detections, strict=True))
        boxes = sum(len(entry["boxes"]) for entry in detections)
        # TorchScript's row may differ, because torchvision's scripted transform resizes some images to one pixel less.
        agree = agree and (name == "TorchScript" or same == total == boxes)
        median, p95 = (percentile([entry[i] for entry in times[name]], 50) for i in (0, 1))
        figures = (f"{median:.1f}", f"{p95:.1f}", f"{baseline / median:.2f}")
        table.add_row(name, *figures, str(boxes), f"{same} of {total}")
    return table, agree


def _detect(bundle: Path, path: Path, repeat: int = 1) -> tuple[Detections, tuple[float, float]]:
    """Runs the C++ program. Returns the boxes, and (median, p95) of the latency in milliseconds."""
    program = Path(sys.executable).parent / "hybrid-rt-detect"
    command = [program, bundle, path, "--json", "--repeat", repeat, "--threads", torch.get_num_threads()]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    detections = answer["detections"]
    return {
        "boxes": torch.tensor([entry["box"] for entry in detections]).reshape(-1, 4),
        "labels": torch.tensor([entry["label"] for entry in detections], dtype=torch.int64),
        "scores": torch.tensor([entry["score"] for entry in detections]),
    }, (answer["timing_ms"]["median"], answer["timing_ms"]["p95"])


def _latencies(
    cases: Mapping[str, Callable[[Tensor], Detections]], image: Tensor, bundle: Path, path: Path
) -> dict[str, list[tuple[float, float]]]:
    """Returns (median, p95) in milliseconds of each round, in which the ways of running alternate."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in [*cases, "hybrid in C++"]}
    for _ in range(ROUNDS):
        for name, latency in hybrid_rt.benchmark(cases, (image,), repeat=CALLS_PER_ROUND).items():
            times[name].append((latency.median, latency.p95))
        times["hybrid in C++"].append(_detect(bundle, path, CALLS_PER_ROUND)[1])
    return times


def _draw(files: list[Path], columns: list[tuple[str, list[Detections]]], output: Path) -> None:
    """Draws one row per image and one column per way of running."""
    images = [Image.open(file).convert("RGB") for file in files]
    width, heights, header = max(image.width for image in images), [image.height for image in images], 16
    sheet = Image.new("RGB", (len(columns) * (width + 8), header + sum(heights) + 8 * len(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (title, detections) in enumerate(columns):
        left, top = column * (width + 8), header
        pen.text((left + 2, 2), f"{title} (score >= {SHOWN_SCORE})", fill="black")
        for image, found in zip(images, detections, strict=True):
            sheet.paste(image, (left, top))
            rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
            for box, label, score in reversed(list(rows)):  # drawn in reverse, so that the best are on top
                if score >= SHOWN_SCORE:
                    _draw_box(pen, box, label, score, (left, top, left + image.width))
            top += image.height + 8
    sheet.save(output)


def _draw_box(
    pen: ImageDraw.ImageDraw, box: list[float], label: int, score: float, place: tuple[int, int, int]
) -> None:
    """Draws a box in its class's colour, with a caption above it, or inside it at the image's upper edge.

    ``place`` is left, top and right of the image on the sheet.
    """
    left, top, right = place
    colour = class_colour(label)
    text, font = f"{text_of(label, digits_detector.CLASS_NAMES)} {score:.2f}", ImageFont.load_default(12)
    corners = [left + box[0], top + box[1], left + box[2], top + box[3]]
    pen.rectangle(corners, outline=colour, width=2)
    width, height = pen.textlength(text, font) + 6, 15
    x, y = min(corners[0], right - width), corners[1] - height if box[1] >= height else corners[1]
    pen.rectangle([x, y, x + width, y + height], fill=colour)
    pen.text((x + 3, y), text, fill=text_colour(colour), font=font)


if __name__ == "__main__":
    sys.exit(main())
