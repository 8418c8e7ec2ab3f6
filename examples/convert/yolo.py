"""A YOLO whose head caches its grids and recomputes them when the size changes. The file accepts any image size.

python examples/convert/yolo.py yolo.pt
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

import hybrid_rt

CLASSES = 5


class Block(nn.Module):
    """A convolution with batch norm and SiLU."""

    def __init__(self, channels: int, out: int, kernel: int = 3, stride: int = 1) -> None:
        """Builds a convolution that keeps the size at stride 1."""
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated features."""
        return functional.silu(self.bn(self.conv(x)))


class CrossStage(nn.Module):
    """Passes half of the channels through bottlenecks, and concatenates the other half."""

    def __init__(self, channels: int, out: int) -> None:
        """Builds the bottlenecks and the layers that split and join."""
        super().__init__()
        self.through = Block(channels, out // 2, 1)
        self.past = Block(channels, out // 2, 1)
        self.bottleneck = nn.Sequential(Block(out // 2, out // 2, 1), Block(out // 2, out // 2))
        self.joined = Block(out, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns both halves, concatenated and mixed."""
        through = self.through(x)
        return self.joined(torch.cat([through + self.bottleneck(through), self.past(x)], dim=1))


class Detect(nn.Module):
    """Decodes boxes of three anchors per cell from two levels.

    Returns [N, boxes, 5 + classes] with (cx, cy, w, h, object, classes).
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], anchors: Sequence[Sequence[int]]) -> None:
        """Builds one layer per level for its anchors."""
        super().__init__()
        self.strides = strides
        self.levels = nn.ModuleList(nn.Conv2d(c, 3 * (5 + CLASSES), 1) for c in channels)
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32).view(len(strides), 3, 2))
        self.grids = [torch.empty(0) for _ in strides]

    def forward(self, features: list[Tensor]) -> Tensor:
        """Returns the decoded boxes of all levels."""
        found = []
        for i, level in enumerate(self.levels):
            x = level(features[i])
            batch, _, height, width = x.shape
            x = x.view(batch, 3, 5 + CLASSES, height, width).permute(0, 1, 3, 4, 2).contiguous()
            if self.grids[i].shape[2:4] != x.shape[2:4]:
                self.grids[i] = self.grid(width, height)
            y = x.sigmoid()
            centre = (y[..., 0:2] * 2 - 0.5 + self.grids[i]) * self.strides[i]
            size = (y[..., 2:4] * 2) ** 2 * self.anchors[i].view(1, 3, 1, 1, 2)
            found.append(torch.cat([centre, size, y[..., 4:]], dim=-1).view(batch, -1, 5 + CLASSES))
        return torch.cat(found, dim=1)

    def grid(self, width: int, height: int) -> Tensor:
        """Returns the cells' positions, [1, 1, height, width, 2]."""
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack([x, y], dim=-1).view(1, 1, height, width, 2).float()


class Yolo(nn.Module):
    """A detector that takes a batch [N, 3, H, W] in 0..1, with H and W multiples of 16."""

    def __init__(self) -> None:
        """Builds the backbone, the neck and the head."""
        super().__init__()
        self.stem = nn.Sequential(Block(3, 8, 3, 2), Block(8, 16, 3, 2), CrossStage(16, 16))
        self.stride8 = nn.Sequential(Block(16, 32, 3, 2), CrossStage(32, 32))
        self.stride16 = nn.Sequential(Block(32, 64, 3, 2), CrossStage(64, 64))
        self.lateral = Block(64, 32, 1)
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.merged = CrossStage(64, 32)
        self.detect = Detect([32, 64], [8, 16], [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]])

    def forward(self, images: Tensor) -> Tensor:
        """Returns the boxes of all cells; the caller runs NMS."""
        fine = self.stride8(self.stem(images))
        coarse = self.stride16(fine)
        merged = self.merged(torch.cat([self.up(self.lateral(coarse)), fine], dim=1))
        return self.detect([merged, coarse])


def build() -> nn.Module:
    """Returns a model with random weights. Load yours from a checkpoint."""
    torch.manual_seed(0)
    return Yolo().eval().requires_grad_(False)


def main(path: str) -> None:
    """Converts the model, and compares the loaded file with it at a size that the conversion did not use."""
    detector = build()
    example = torch.rand(1, 3, 128, 160)
    result = hybrid_rt.convert(detector, (example,), path, shapes={"height": (64, 256), "width": (64, 256)})
    print(result.report)

    other = torch.rand(1, 3, 96, 208)
    torch.testing.assert_close(hybrid_rt.load(path)(other), detector(other), rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main(sys.argv[1])
