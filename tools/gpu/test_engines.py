"""Builds engines for the tests of tests/cpp/backends/tensorrt/emulated: python -m tools.gpu.test_engines OUTPUT.

On a GPU, these tests run with TensorRT's own library, so they need its engines instead of the stand-in's plans: engines
of the network that Artifact (plugin.h) describes, one per set of profiles, and a bundle of the detector in
tools/dev/make_emulated_bundle.py. --stand-in writes plans anyway, for a rehearsal on the emulated GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hybrid_rt
from hybrid_rt.backends import registry
from hybrid_rt.capture.program import capture_alone
from hybrid_rt.common.specs import Artifact
from tools.dev import make_emulated_bundle
from tools.dev.make_emulated_bundle import Backbone, Detector, convolution

Sizes = tuple[Sequence[int], Sequence[int]]
"""Smallest and largest [N, C, H, W]."""

PROFILES: tuple[tuple[Sizes, ...], ...] = (
    (((1, 3, 8, 8), (4, 3, 64, 64)),),
    (((1, 3, 8, 8), (2, 3, 32, 32)), ((1, 3, 32, 32), (4, 3, 64, 64))),
)
"""Same as one_profile() and two_profiles() in plugin.h."""

BUNDLE = "bundle.pt"
LIBRARY = "library.txt"
STAND_IN = "tensorrt 10.14.1"


def backbone() -> Backbone:
    """Returns the module with the weights of plugin.cpp."""
    module = Backbone()
    weights = [0.01 * (i % 23 - 11) for i in range(module.convolution.weight.numel())]
    module.convolution.weight.data = torch.tensor(weights).reshape(module.convolution.weight.shape)
    module.convolution.bias = nn.Parameter(torch.full((4,), 0.25))
    return module.requires_grad_(False).eval()


def name_of(profiles: Sequence[Sizes]) -> str:
    """Returns the name of an engine's files, like the function of the same name in plugin.cpp."""
    return "+".join("-".join("x".join(map(str, limit)) for limit in sizes) for sizes in profiles)


def built(profiles: Sequence[Sizes]) -> Artifact:
    """Returns the backbone's engine for this machine's GPU."""
    names = ("batch", None, "height", "width")
    ranges = [
        {name: (low, high) for name, low, high in zip(names, *sizes, strict=True) if name is not None}
        for sizes in profiles
    ]
    options = {"compute_capabilities": "current", "profiles": ranges}
    lows, highs = zip(*profiles, strict=True)
    whole = [(min(low), max(high)) for low, high in zip(zip(*lows, strict=True), zip(*highs, strict=True), strict=True)]
    program = capture_alone(nn.Sequential(backbone()).eval(), "0", [(torch.rand(1, 3, 16, 24),)], whole)
    return registry.backend("tensorrt").configured("cuda", options).compile(program, "fp32")


def planned(profiles: Sequence[Sizes]) -> Mapping[str, Any]:
    """Returns the stand-in's plan and bindings of the backbone."""
    limits = [{"min": list(low), "max": list(high)} for low, high in profiles]
    layers = [
        convolution(backbone().convolution, "x", "a"),
        {"kind": "scale", "inputs": ["a"], "output": "b", "weights": [0.5], "bias": [1.0]},
        {"kind": "upsample", "inputs": ["b"], "output": "y"},
        {"kind": "mean", "inputs": ["b"], "output": "z"},
    ]
    plan = {
        "version": STAND_IN.split()[1],
        "inputs": [{"name": "x", "shape": [-1, 3, -1, -1]}],
        "outputs": [{"name": "y", "shape": [-1, 4, -1, -1]}, {"name": "z", "shape": [-1, 4]}],
        "layers": layers,
        "profiles": [{"x": limit} for limit in limits],
    }
    bindings = {"inputs": ["x"], "outputs": ["y", "z"], "profiles": [[limit] for limit in limits]}
    return {"engine": json.dumps(plan).encode(), "bindings": json.dumps(bindings).encode()}


def write(output: Path, *, stand_in: bool = False) -> str:
    """Writes the files, and returns the library that built them: "tensorrt_rtx 1.7.1"."""
    output.mkdir(parents=True, exist_ok=True)
    library = STAND_IN
    for profiles in PROFILES:
        if stand_in:
            blobs = planned(profiles)
        else:
            artifact = built(profiles)
            blobs = {name: blob.numpy().tobytes() for name, blob in artifact.blobs.items()}
            versions = artifact.spec.requirements
            [(name, version)] = [(key, versions[key]) for key in ("tensorrt", "tensorrt_rtx") if key in versions]
            library = f"{name} {version.removeprefix('==')}"
        (output / f"{name_of(profiles)}.engine").write_bytes(blobs["engine"])
        (output / f"{name_of(profiles)}.json").write_bytes(blobs["bindings"])
    if stand_in:
        make_emulated_bundle.main(output / BUNDLE)
    else:
        torch.manual_seed(0)
        hybrid_rt.convert(
            Detector().requires_grad_(False).eval(),
            (torch.rand(1, 3, 16, 24),),
            output / BUNDLE,
            engine="tensorrt:fp32",
            segments=["backbone", "classes"],
            device="cuda",
            shapes={"batch": (1, 4), "height": (8, 64), "width": (8, 64)},
            options={"tensorrt": {"compute_capabilities": "current"}},
            verify=False,
            golden=False,
            measure=False,
            progress=False,
        )
    (output / LIBRARY).write_text(library)
    return library


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory for the files")
    parser.add_argument("--stand-in", action="store_true", help="plans of the stand-in of TensorRT")
    options = parser.parse_args()
    print(write(options.output, stand_in=options.stand_in))


if __name__ == "__main__":
    main()
