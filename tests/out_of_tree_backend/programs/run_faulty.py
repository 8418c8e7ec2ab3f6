"""Runs a segment whose first variant belongs to a faulty plug-in: run_faulty.py NAME [FALLBACK]."""

import sys

import torch
from torch import nn

from hybrid_rt.backends import registry
from hybrid_rt.capture.program import capture_alone
from hybrid_rt.common.specs import Artifact, ArtifactSpec
from hybrid_rt.conversion.assemble.engine_module import engine_module

name, *fallbacks = sys.argv[1:]
x = torch.rand(1, 3, 8, 8)
detector = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
with torch.no_grad():
    program = capture_alone(detector, "0", [(x,)])
    spec = ArtifactSpec(name, "fp32", "cpu", program.inputs, program.outputs)
    artifacts = [Artifact(spec, {"bytes": torch.zeros(3, dtype=torch.uint8)})]
    artifacts += [registry.backend(fallback).compile(program, "fp32") for fallback in fallbacks]
    torch.testing.assert_close(engine_module(program, artifacts)(x), detector(x))
