"""A whole detector in one OpenVINO graph, as a bundle: what a user would pick instead of a hybrid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import openvino
import torch
from torch import Tensor, nn

from hybrid_rt import bundle, registry, torchscript
from hybrid_rt.capture import Program, capture_alone
from hybrid_rt.engine_module import engine_module
from hybrid_rt.packing import pack

Detect = Callable[[list[Tensor]], list[dict[str, Tensor]]]


class _Detections(nn.Module):
    """One picture [3, H, W] in; boxes, labels and scores out."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.detector([picture])[0]
        return found["boxes"], found["labels"], found["scores"]


class _Holder(nn.Module):
    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.whole(picture)


class _AsDetector(nn.Module):
    """The interface of torchvision's detectors around the engine; its loop takes batches, the engine one picture."""

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for image in images:
            boxes, labels, scores = self.engine(image)
            found.append({"boxes": boxes, "labels": labels, "scores": scores})
        return found


def save_whole_graph(detector: nn.Module, pictures: list[Tensor], precision: str, path: Path) -> None:
    """Converts the detector, post-processing included, with OpenVINO and saves it as a bundle of one segment.

    For timing on one picture: our op takes an engine's output sizes to follow from its input sizes, which a number of
    boxes does not. :func:`whole_graph` runs any.

    Args:
        detector: one with torchvision's interface.
        pictures: [3, H, W] each, of at least two sizes: what differs between them stays free.
        precision: "fp32" or "bf16": then boxes, scores and NMS are computed in bf16 too.
        path: the bundle.
    """
    program = _program(detector, pictures)
    artifact = registry.backend("openvino").compile(program, precision)
    with torch.no_grad():
        frozen = torchscript.freeze(torchscript.script(_AsDetector(engine_module(program, [artifact])).eval()))
    bundle.save(frozen, path, {"segments": [pack([artifact]).segment("whole")]})


def whole_graph(detector: nn.Module, pictures: list[Tensor], precision: str) -> Detect:
    """The same through OpenVINO's own Python interface, in the precision asked for, emulated where need be."""
    blobs = registry.backend("openvino").compile(_program(detector, pictures), precision).blobs
    core = openvino.Core()
    model = core.read_model(blobs["xml"].numpy().tobytes(), blobs["weights"].numpy().tobytes())
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})

    def detect(images: list[Tensor]) -> list[dict[str, Tensor]]:
        (image,) = images
        boxes, labels, scores = (torch.from_numpy(value.copy()) for value in compiled([image.numpy()]).values())
        return [{"boxes": boxes, "labels": labels, "scores": scores}]

    return detect


def _program(detector: nn.Module, pictures: list[Tensor]) -> Program:
    holder = _Holder(_Detections(detector)).eval()
    return capture_alone(holder, "whole", [(picture,) for picture in pictures])
