#!/usr/bin/env python3
"""Times parts of torchvision's heads in torchvision's version and with hybrid_rt's operators, on the CPU.

Both are scripted, use nms and roi_align of hybrid_rt, and run alternately, so that other load on the machine affects
both. Each row gives the medians in milliseconds and the median of the ratios. The tensors are noise of the sizes for an
image of 800x1088 (SSDLite: 320x320), with few logits above the threshold. The results are compared first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from hybrid_rt.capture.working_copy import working_copy
from hybrid_rt.torchscript import head_operators, jit, known_heads

_SIZE = (800, 1088)
_CLASSES = 91


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15, help="calls of each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time, for busy cores")
    return parser.parse_args()


class Pyramid(nn.Module):
    """Placeholder for a backbone, which is never called."""

    out_channels = 256

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns a value of the right type."""
        return {"0": images}


class Given(nn.Module):
    """Replaces ``rpn.head``: returns stored tensors."""

    def __init__(self, objectness: list[Tensor], deltas: list[Tensor]) -> None:
        """Stores the tensors.

        Args:
            objectness: One tensor per level.
            deltas: One tensor per level.
        """
        super().__init__()
        self.objectness = objectness
        self.deltas = deltas

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the stored tensors, whatever ``maps`` are."""
        return self.objectness, self.deltas


def levels(first: int, count: int = 5) -> list[tuple[int, int]]:
    """Returns rows and columns of feature maps, starting at a stride."""
    strides = [first * 2**i for i in range(count)]
    return [(-(-_SIZE[0] // stride), -(-_SIZE[1] // stride)) for stride in strides]


def boxes_of(count: int) -> Tensor:
    """Returns boxes in the image with sides of 8 to 300 pixels."""
    corners = torch.rand(count, 2) * torch.tensor([_SIZE[1] - 8.0, _SIZE[0] - 8.0])
    return torch.cat([corners, corners + 8 + torch.rand(count, 2) ** 2 * 292], 1)


def dense(anchors_per_pixel: int, first_stride: int, mean: float) -> tuple[dict[str, list[Tensor]], list[list[Tensor]]]:
    """Returns the outputs of a dense head, and its anchors."""
    counts = [rows * columns * anchors_per_pixel for rows, columns in levels(first_stride)]
    outputs = {
        "cls_logits": [torch.randn(1, count, _CLASSES) + mean for count in counts],
        "bbox_regression": [torch.randn(1, count, 4) * 0.2 for count in counts],
        "bbox_ctrness": [torch.randn(1, count, 1) for count in counts],
    }
    return outputs, [[boxes_of(count) for count in counts]]


def both_scripted(detector: nn.Module) -> list[torch.jit.ScriptModule]:
    """Returns the scripted detector as in torchvision, and with hybrid_rt's operators."""
    ours = working_copy(detector)
    known_heads.use_operators(ours)
    scripted = [jit.script(module) for module in (detector, ours)]
    for module in scripted:
        head_operators.rewrite(module)
    return scripted


Case = tuple[nn.Module, Callable[[Any], Any]]
"""A detector, and a function that calls a part of it once it is scripted."""


def retinanet() -> Case:
    """Returns RetinaNet's post-processing."""
    outputs, anchors = dense(9, 8, -7.0)
    return RetinaNet(Pyramid(), _CLASSES).eval(), lambda d: d.postprocess_detections(outputs, anchors, [_SIZE])


def fcos() -> Case:
    """Returns FCOS's post-processing."""
    outputs, anchors = dense(1, 8, -6.0)
    return FCOS(Pyramid(), _CLASSES).eval(), lambda d: d.postprocess_detections(outputs, anchors, [_SIZE])


def ssdlite() -> Case:
    """Returns SSDLite320's post-processing."""
    detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    logits = torch.randn(1, 3234, _CLASSES) + 4 * torch.eye(_CLASSES)[0]
    outputs = {"cls_logits": logits, "bbox_regression": torch.randn(1, 3234, 4)}
    anchors = [boxes_of(3234) * 0.3]
    return detector, lambda d: d.postprocess_detections(outputs, anchors, [(320, 320)])


def proposals() -> Case:
    """Returns Faster R-CNN's RPN after its head."""
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    detector = FasterRCNN(Pyramid(), _CLASSES, rpn_anchor_generator=anchors)
    sizes = levels(4)
    detector.rpn.head = Given(
        [torch.randn(1, 3, *size) for size in sizes], [torch.randn(1, 12, *size) * 0.2 for size in sizes]
    )
    maps = {str(i): torch.empty(1, 1, *size) for i, size in enumerate(sizes)}
    images = ImageList(torch.empty(1, 3, *_SIZE), [_SIZE])
    return detector.rpn.eval(), lambda rpn: rpn(images, maps)[0]


def pooling() -> Case:
    """Returns the pooling of 1,000 boxes on four levels."""
    detector = FasterRCNN(Pyramid(), _CLASSES)
    maps = {str(i): torch.randn(1, 256, *size) for i, size in enumerate(levels(4, 4))}
    boxes = [boxes_of(1000)]
    return detector.roi_heads.box_roi_pool.eval(), lambda pooler: pooler(maps, boxes, [_SIZE])


def box_results() -> Case:
    """Returns Faster R-CNN's post-processing of 1,000 boxes."""
    detector = FasterRCNN(Pyramid(), _CLASSES)
    logits, codes, boxes = torch.randn(1000, _CLASSES) * 2, torch.randn(1000, _CLASSES * 4) * 0.1, [boxes_of(1000)]
    return detector.roi_heads.eval(), lambda heads: heads.postprocess_detections(logits, codes, boxes, [_SIZE])


def transform_of(detector: nn.Module) -> Case:
    """Returns a detector's transform of an image of 480x640."""
    images = [torch.rand(3, 480, 640)]
    return detector.transform.eval(), lambda transform: {"tensors": transform(images)[0].tensors}


def small_transform() -> Case:
    """Returns SSDLite320's transform of 480x640."""
    return transform_of(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None))


def large_transform() -> Case:
    """Returns Faster R-CNN's transform of 480x640."""
    return transform_of(FasterRCNN(Pyramid(), _CLASSES))


def assert_same(theirs: Any, ours: Any) -> None:
    """Compares nested results."""
    if isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    else:
        keys = theirs.keys() if isinstance(theirs, dict) else range(len(theirs))
        for their, our in ((theirs[key], ours[key]) for key in keys):
            assert_same(their, our)


def main() -> None:
    """Prints the table."""
    arguments = parse_arguments()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    unit = "CPU time" if arguments.cpu_time else "wall-clock time"
    table = Table(title=f"median of {arguments.repeat} calls, {arguments.threads} threads, {unit}")
    for column in ("", "torchvision, ms", "hybrid_rt, ms", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for make in (ssdlite, retinanet, fcos, proposals, pooling, box_results, small_transform, large_transform):
        with torch.no_grad():
            detector, call = make()
            modules = both_scripted(detector)
            assert_same(*(call(module) for module in modules))
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.repeat):
                for module, spent in zip(modules, times, strict=True):
                    begin = clock()
                    call(module)
                    spent.append((clock() - begin) * 1e3)
        ratios = [theirs / ours for theirs, ours in zip(*times, strict=True)]
        theirs, ours = map(statistics.median, times)
        table.add_row(str(make.__doc__), f"{theirs:.2f}", f"{ours:.2f}", f"{statistics.median(ratios):.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
