#!/usr/bin/env python3
"""Times hybrid_rt's nms and roi_align next to torchvision's, on the CPU or a CUDA device.

Both run alternately, so that other load on the machine affects both. Each row gives the medians in milliseconds and
their ratio. On CUDA, times are between two events around a call, and include the host's waits within it. First, all
values of hybrid_rt's results are compared with torchvision's on the CPU, because the speed of a wrong answer is
worthless.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision  # noqa: F401  (registers the operators)
from rich.console import Console
from rich.table import Table
from torch import Tensor

import hybrid_rt  # noqa: F401  (registers the operators)

_SPATIAL_SCALE = 0.25


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu, cuda or cuda:INDEX")
    parser.add_argument("--repeat", type=int, default=11, help="calls of each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--seed", type=int, default=0, help="of boxes and features")
    arguments = parser.parse_args()
    if arguments.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch finds no CUDA device here")
    return arguments


class Case(NamedTuple):
    """One operator and its arguments."""

    name: str
    operator: str
    tensors: tuple[Tensor, ...]
    options: tuple[float, ...]

    def to(self, device: torch.device) -> Case:
        """Returns the case with its tensors on a device."""
        return self._replace(tensors=tuple(tensor.to(device) for tensor in self.tensors))

    def run(self, library: str) -> Tensor:
        """Calls the operator of ``hybrid_rt`` or ``torchvision``."""
        result: Tensor = getattr(getattr(torch.ops, library), self.operator)(*self.tensors, *self.options)
        return result


def milliseconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Returns the milliseconds of one call."""
    if device.type == "cpu":
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e3
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def medians(case: Case, device: torch.device, repeat: int) -> tuple[float, float]:
    """Returns the median milliseconds of torchvision and of hybrid_rt, called alternately."""
    placed = case.to(device)
    if not torch.equal(placed.run("hybrid_rt").cpu(), case.run("torchvision")):
        raise SystemExit(f"the results differ: {case.name}")
    placed.run("torchvision")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        for library, spent in zip(("torchvision", "hybrid_rt"), times, strict=True):
            spent.append(milliseconds(lambda: placed.run(library), device))  # noqa: B023
    return statistics.median(times[0]), statistics.median(times[1])


def make_boxes(count: int, width: float, height: float, size: float) -> Tensor:
    """Returns boxes around random centres, with sides from ``size`` / 2 to 1.5 * ``size``."""
    centres = torch.rand(count, 2) * torch.tensor([width, height])
    sides = (torch.rand(count, 2) + 0.5) * size
    return torch.cat([centres - sides / 2, centres + sides / 2], 1)


def nms_case(count: int, size: float, iou_threshold: float) -> Case:
    """Returns a case of nms with boxes in an image of 1088 x 800 pixels."""
    boxes, scores = make_boxes(count, 1088, 800, size), torch.rand(count)
    kept = len(torch.ops.torchvision.nms(boxes, scores, iou_threshold))
    name = f"nms: {count} boxes of {size:.0f} px, IoU {iou_threshold}, {kept} stay"
    return Case(name, "nms", (boxes, scores), (iou_threshold,))


def roi_align_case(
    count: int, shape: tuple[int, int, int], size: float, output: int = 7, ratio: int = 2, channels_last: bool = False
) -> Case:
    """Returns a case of roi_align.

    ``count`` boxes have sides of about ``size`` pixels on a feature map of ``shape`` (channels, height, width).
    """
    features = torch.randn(1, *shape)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    boxes = make_boxes(count, shape[2], shape[1], size) / _SPATIAL_SCALE
    rois = torch.cat([torch.zeros(count, 1), boxes], 1)
    name = f"roi_align: {count} boxes of {size:.0f} px, {list(shape)}{', channels_last' if channels_last else ''}"
    name += f", {output} x {output}, ratio {ratio}"
    return Case(name, "roi_align", (features, rois), (_SPATIAL_SCALE, output, output, ratio, False))


def main() -> None:
    """Prints the table."""
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    p2, p4 = (256, 200, 272), (256, 50, 68)  # shapes of an FPN at 800 x 1088
    cases: list[Callable[[], Case]] = [
        lambda: nms_case(100, 60, 0.5),
        lambda: nms_case(1000, 60, 0.7),
        lambda: nms_case(4000, 60, 0.7),
        lambda: nms_case(4000, 200, 0.5),
        lambda: roi_align_case(1, p2, 28),
        lambda: roi_align_case(1, p2, 100),
        lambda: roi_align_case(10, p2, 28),
        lambda: roi_align_case(100, p2, 28),
        lambda: roi_align_case(1000, p2, 28),
        lambda: roi_align_case(1000, p4, 28),
        lambda: roi_align_case(100, p2, 28, output=14),
        lambda: roi_align_case(100, p2, 28, ratio=0),
        lambda: roi_align_case(100, p2, 28, channels_last=True),
        lambda: roi_align_case(1000, p2, 28, channels_last=True),
    ]
    on_cuda = arguments.device.type == "cuda"
    where = torch.cuda.get_device_name(arguments.device) if on_cuda else f"{arguments.threads} threads"
    table = Table(title=f"median of {arguments.repeat} calls, {where}")
    for column in ("", "torchvision, ms", "hybrid_rt, ms", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    decimals = 3 if on_cuda else 2
    with torch.inference_mode():
        for make in cases:
            case = make()
            theirs, ours = medians(case, arguments.device, arguments.repeat)
            table.add_row(case.name, f"{theirs:.{decimals}f}", f"{ours:.{decimals}f}", f"{theirs / ours:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
