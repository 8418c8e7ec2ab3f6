"""A whole detector in one OpenVINO graph, as a bundle: what a user would pick instead of a hybrid."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hybrid_rt import bundle, registry, torchscript
from hybrid_rt.capture import capture_alone
from hybrid_rt.engine_module import engine_module
from hybrid_rt.specs import pack


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

    Args:
        detector: one with torchvision's interface.
        pictures: [3, H, W] each, of at least two sizes: what differs between them stays free.
        precision: "fp32" or "bf16": then boxes, scores and NMS are computed in bf16 too.
        path: the bundle.
    """
    holder = _Holder(_Detections(detector)).eval()
    program = capture_alone(holder, "whole", [(picture,) for picture in pictures])
    artifact = registry.backend("openvino").compile(program, precision)
    with torch.no_grad():
        frozen = torchscript.freeze(torchscript.script(_AsDetector(engine_module(program, [artifact])).eval()))
    bundle.save(frozen, path, {"segments": [{"name": "whole", "variants": pack([artifact])[0]}]})
