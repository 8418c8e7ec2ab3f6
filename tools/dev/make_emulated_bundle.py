"""Writes a bundle for the emulated GPUs of tests/cpp/emulated: python -m tools.dev.make_emulated_bundle OUTPUT.

Its TensorRT engines are plans for the stand-in, which computes the modules below: for two GPUs (compute capability 8.9
and 9.0), and for any version of TensorRT and TensorRT-RTX. The engine of `classes` for the first GPU is broken.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import nms

from hybrid_rt.backends import registry
from hybrid_rt.bundle import archive
from hybrid_rt.bundle.blob_table import pack
from hybrid_rt.bundle.manifest import Manifest, Member
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.common.specs import Artifact, blob_from_bytes
from hybrid_rt.common.submodules import with_submodules
from hybrid_rt.conversion.assemble.engine_module import engine_module
from hybrid_rt.torchscript import head_operators, jit

LIBRARIES = {"tensorrt": ">=10", "tensorrt_rtx": ">=1.5"}
GPUS = ("9.0", "8.9")  # the second and the first GPU of the stand-in for the driver
BROKEN = ("classes", "8.9")
BATCH, SIDE = (1, 4), (8, 64)


class Backbone(nn.Module):
    """Computes features [N, 4, H, W] of images [N, 3, H, W] with even H and W, and their means [N, 4]."""

    def __init__(self) -> None:
        """Creates the convolution."""
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features and means."""
        half = self.convolution(images) * 0.5 + 1.0
        return functional.interpolate(half, scale_factor=2.0), half.mean((2, 3))


class Detector(nn.Module):
    """Returns boxes [n, 4], scores [n] and labels [n] of the first image, and the means of all, [N, 4]."""

    def __init__(self) -> None:
        """Creates the segments."""
        super().__init__()
        self.backbone = Backbone()
        self.classes = nn.Conv2d(4, 2, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Runs the segments and the head."""
        features, means = self.backbone(images)
        scores, labels = self.classes(features)[0].sigmoid().max(0)
        rows, columns = torch.where(scores > scores.mean())
        corners = torch.stack([columns, rows], 1) * 2.0
        # A constant of the graph, and a tensor that is created on a named device: both move with the module.
        sides = torch.tensor([3.0, 5.0]) + torch.zeros([corners.size(0), 2], device=torch.device("cpu"))
        boxes = torch.cat([corners, corners + sides], 1)
        kept = nms(boxes, scores[rows, columns], 0.3)
        return boxes[kept], scores[rows, columns][kept], labels[rows, columns][kept], means


def convolution(module: nn.Conv2d, source: str, output: str) -> dict[str, Any]:
    """Returns a layer for the stand-in."""
    assert module.bias is not None
    weights, bias = module.weight.flatten().tolist(), module.bias.tolist()
    return {
        "kind": "conv", "inputs": [source], "output": output, "channels": module.out_channels, "stride": 2,
        "weights": weights, "bias": bias,
    }  # fmt: skip


def layers_of(detector: Detector) -> dict[str, list[dict[str, Any]]]:
    """Returns each segment's computation as the stand-in's layers: x is the input, y and z are the outputs."""
    return {
        "backbone": [
            convolution(detector.backbone.convolution, "x", "a"),
            {"kind": "scale", "inputs": ["a"], "output": "b", "weights": [0.5], "bias": [1.0]},
            {"kind": "upsample", "inputs": ["b"], "output": "y"},
            {"kind": "mean", "inputs": ["b"], "output": "z"},
        ],
        "classes": [convolution(detector.classes, "x", "y")],
    }


def engine(program: Program, layers: Sequence[Mapping[str, Any]], requirements: dict[str, str]) -> Artifact:
    """Returns a TensorRT artifact of a segment, in the form that newer versions run too."""
    (source,), outputs = program.inputs, program.outputs
    names = ["y", "z"][: len(outputs)]
    limits = {"min": list(source.min), "max": list(source.max)}
    free = [-1 if low != high else low for low, high in zip(source.min, source.max, strict=True)]
    plan = {
        "version": "any",
        "host_code": True,
        "inputs": [{"name": "x", "shape": free}],
        "outputs": [{"name": name, "shape": [-1] * len(spec.min)} for name, spec in zip(names, outputs, strict=True)],
        "layers": layers,
        "profiles": [{"x": limits}],
    }
    is_broken = (program.name, requirements["compute_capability"]) == BROKEN
    bindings = {"inputs": ["x"], "outputs": names, "profiles": [[limits]], "version_compatible": True}
    spec = registry.backend("tensorrt").spec(program, "fp32", versions={}, requirements=requirements)
    blobs = {
        "engine": blob_from_bytes(b"broken" if is_broken else json.dumps(plan).encode()),
        "bindings": blob_from_bytes(json.dumps(bindings).encode()),
    }
    return Artifact(replace(spec, device="cuda"), blobs)


def main(output: Path) -> None:
    """Writes the bundle."""
    torch.manual_seed(0)
    detector = Detector().requires_grad_(False).eval()
    modules, engines = {}, []
    ranges = {
        "backbone": [BATCH, (3, 3), SIDE, SIDE],
        "classes": [BATCH, (4, 4), SIDE, SIDE],
    }
    for name, layers in layers_of(detector).items():
        program = capture_alone(detector, name, [(torch.rand(1, 3, 16, 24),)], ranges[name])
        artifacts = [
            engine(program, layers, {"compute_capability": gpu, library: versions})
            for library, versions in LIBRARIES.items()
            for gpu in GPUS
        ]
        artifacts.append(registry.fallback().compile(program, "fp32"))
        modules[name] = engine_module(program, artifacts)
        engines.append(pack(artifacts).engine([Member(name, 0, len(program.outputs))]))
    frozen = jit.freeze(jit.script(with_submodules(detector, modules)))
    head_operators.rewrite(frozen)
    archive.save(frozen, output, Manifest(tuple(engines)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
