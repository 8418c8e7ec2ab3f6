"""Converts a tiny detector with the out-of-tree backend and runs three loads of it: convert_and_load.py OUTPUT."""

import sys

import torch
from torch import Tensor, nn

import hybrid_rt


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x).relu()


x = torch.rand(1, 3, 16, 16)
detector = Detector().eval()
with torch.no_grad():
    # Keep the result alive, because the loads share its engine.
    result = hybrid_rt.convert(detector, (x,), sys.argv[1], engine="interpreter")
    modules = [hybrid_rt.load(sys.argv[1]) for _ in range(3)]
    for module in modules:
        (engine,) = hybrid_rt.engines(module)
        assert engine["backend"] == "interpreter", engine
        torch.testing.assert_close(module(x), detector(x))
