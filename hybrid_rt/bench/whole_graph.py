"""A whole detector, post-processing included, in one engine: what a user would take instead of a hybrid.

Each by the vendor's own Python interface, on one picture a call.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import registry
from ..capture.program import capture_alone

Detect = Callable[[list[Tensor]], list[dict[str, Tensor]]]

_OUTPUTS = "outputs.json"
"""What the detector finds of a picture, in the order of the engine's outputs."""


class _OnePicture(nn.Module):
    """One picture [3, H, W] in; all that the detector finds out: without its masks, say, it would be less work."""

    def __init__(self, detector: nn.Module, outputs: list[str]) -> None:
        super().__init__()
        self.detector = detector
        self.outputs = outputs

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        found = self.detector([picture])[0]
        return tuple(found[name] for name in self.outputs)


class _Holder(nn.Module):
    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.whole(picture)
        return found


def build(engine: str, detector: nn.Module, pictures: Sequence[Tensor], precision: str, folder: Path) -> None:
    """Converts the detector as the engine's users do.

    Args:
        engine: one of ``cases.WHOLE_PRECISIONS``.
        detector: one with torchvision's interface.
        pictures: [3, H, W] each. For OpenVINO, what differs between them stays free.
        precision: of all of it: boxes, scores and NMS too.
        folder: for the engine's files.

    Raises:
        Exception: whatever the vendor's converter raises for a detector that it does not take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of exporters, about themselves
        outputs = list(detector([pictures[0].clone()])[0])
        (folder / _OUTPUTS).write_text(json.dumps(outputs))
        _BUILD[engine](_OnePicture(detector, outputs).eval(), list(pictures), precision, folder)


def open_whole(engine: str, precision: str, folder: Path, threads: int) -> Detect:
    """Opens what :func:`build` made; the result takes a list of one picture, as torchvision's detectors do."""
    call = _OPEN[engine](precision, folder, threads)
    outputs = json.loads((folder / _OUTPUTS).read_text())

    def detect(images: list[Tensor]) -> list[dict[str, Tensor]]:
        (image,) = images
        return [dict(zip(outputs, call(image), strict=True))]

    return detect


def _build_openvino(detector: _OnePicture, pictures: list[Tensor], precision: str, folder: Path) -> None:
    if len({picture.shape for picture in pictures}) == 1:
        turned = pictures[0].transpose(1, 2).contiguous()
        pictures = [pictures[0], turned]
    program = capture_alone(_Holder(detector).eval(), "whole", [(picture,) for picture in pictures])
    for name, blob in registry.backend("openvino").compile(program, precision).blobs.items():
        (folder / name).write_bytes(blob.numpy().tobytes())


def _open_openvino(precision: str, folder: Path, threads: int) -> Callable[[Tensor], Any]:
    import openvino

    core = openvino.Core()
    model = core.read_model((folder / "xml").read_bytes(), (folder / "weights").read_bytes())
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", options)
    return lambda picture: [torch.from_numpy(value.copy()) for value in compiled([picture.numpy()]).values()]


def _build_onnxruntime(detector: _OnePicture, pictures: list[Tensor], precision: str, folder: Path) -> None:
    torch.onnx.export(
        detector,
        (pictures[0],),
        str(folder / "detector.onnx"),
        dynamo=False,  # torch.export takes no detector of torchvision (data-dependent sizes)
        opset_version=18,
        input_names=["picture"],
        output_names=detector.outputs,
        dynamic_axes={"picture": {1: "height", 2: "width"}},
    )


def _open_onnxruntime(precision: str, folder: Path, threads: int) -> Callable[[Tensor], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "detector.onnx", options, providers=["CPUExecutionProvider"])
    return lambda picture: [torch.from_numpy(value) for value in session.run(None, {"picture": picture.numpy()})]


def _build_aot_inductor(detector: nn.Module, pictures: list[Tensor], precision: str, folder: Path) -> None:
    exported = torch.export.export(detector, (pictures[0],))
    torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / "detector.pt2"))


def _open_aot_inductor(precision: str, folder: Path, threads: int) -> Callable[[Tensor], Any]:
    loaded: Callable[[Tensor], Any] = torch._inductor.aoti_load_package(str(folder / "detector.pt2"))
    return loaded


_BUILD = {"openvino": _build_openvino, "onnxruntime": _build_onnxruntime, "aot_inductor": _build_aot_inductor}
_OPEN = {"openvino": _open_openvino, "onnxruntime": _open_onnxruntime, "aot_inductor": _open_aot_inductor}
