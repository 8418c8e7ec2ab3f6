"""Measures the op's overhead: a no-op engine, and an OpenVINO engine compared with OpenVINO's own C++ call."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from hybrid_rt.backends import registry
from hybrid_rt.bench.run import Machine
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.common.specs import Artifact, ArtifactSpec, blob_from_bytes
from hybrid_rt.conversion.assemble.engine_module import engine_module
from hybrid_rt.torchscript import jit
from tools.benchmarks import native


class _Scriptable(nn.Module):
    """An engine module with an example to run it on."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.module = module
        self.example = nn.Buffer(example)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the engine."""
        return self.module(x)


def _segment(module: nn.Module, example: Tensor) -> Program:
    return capture_alone(nn.Sequential(module).eval(), "0", [(example,)])


def main() -> None:
    """Builds the models, runs the C++ program and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    plugins = native.program("bench_op").parents[1] / "benchmark_plugins"
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        program = _segment(nn.Identity(), torch.rand(1, 3, 8, 8))
        spec = ArtifactSpec("noop", "fp32", "cpu", program.inputs, program.outputs)
        artifact = Artifact(spec, {"nothing": blob_from_bytes(b"nothing")})
        _save(_Scriptable(engine_module(program, [artifact]), program.examples[0]), directory / "noop.pt")

        trunk = nn.Sequential(*list(resnet50(weights=None).children())[:-2]).eval()
        program = _segment(trunk, torch.rand(1, 3, 320, 320))
        artifact = registry.backend("openvino").compile(program, "fp32")
        _save(_Scriptable(engine_module(program, [artifact]), program.examples[0]), directory / "engine.pt")
        (directory / "engine.xml").write_bytes(artifact.blobs["xml"].numpy().tobytes())
        (directory / "engine.bin").write_bytes(artifact.blobs["weights"].numpy().tobytes())
        result = native.run(
            "bench_op",
            plugins,
            directory / "noop.pt",
            directory / "engine.pt",
            directory / "engine.xml",
            options.rounds,
        )
    print(f"a no-op engine through the op: {result['noop_us']:.1f} us a call")
    for case, latency in result["engine"].items():
        print(
            f"ResNet-50 trunk at 320x320, {case}: median {latency['median_ms']:.2f} ms, p95 {latency['p95_ms']:.2f} ms"
        )
    print(f"op / OpenVINO's own C++ call: {result['op_over_openvino']:.4f}")
    if options.output:
        machine = asdict(Machine.here(torch.get_num_threads()))
        options.output.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")


def _save(module: nn.Module, path: Path) -> None:
    jit.save(jit.script(module.eval()), path)


if __name__ == "__main__":
    main()
