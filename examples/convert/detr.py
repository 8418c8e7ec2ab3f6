"""A DETR: convolutions, sine positions computed from the size, a transformer, learnt queries, a dataclass as result.

python examples/convert/detr.py detr.pt
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import hybrid_rt

CHANNELS = 32


@dataclass
class Found:
    """Logits [N, queries, classes + 1] and boxes [N, queries, 4] as (cx, cy, w, h) in 0..1; no masks."""

    logits: Tensor
    boxes: Tensor
    masks: Tensor | None = None


class Detr(nn.Module):
    """A detector that takes a batch of images [N, 3, H, W] of any size."""

    def __init__(self, classes: int = 10, queries: int = 20) -> None:
        """Builds the backbone, the transformer and the heads."""
        super().__init__()
        self.backbone = nn.Sequential(
            *(layer for i in range(4) for layer in (nn.Conv2d(8 * i or 3, 8 * i + 8, 3, 2, 1), nn.ReLU())),
            nn.Conv2d(32, CHANNELS, 1),
        )
        self.transformer = nn.Transformer(CHANNELS, 4, 2, 2, 64, batch_first=True)
        self.queries = nn.Embedding(queries, CHANNELS)
        self.classes = nn.Linear(CHANNELS, classes + 1)
        self.boxes = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.ReLU(), nn.Linear(CHANNELS, 4))

    def forward(self, images: Tensor) -> Found:
        """Returns the logits and the box of each query."""
        features = self.backbone(images)
        tokens = features.flatten(2).transpose(1, 2) + self.places(*features.shape[2:])
        decoded = self.transformer(tokens, self.queries.weight.expand(images.shape[0], -1, -1))
        return Found(self.classes(decoded), self.boxes(decoded).sigmoid())

    def places(self, height: int, width: int) -> Tensor:
        """Returns sine positions of the cells, [1, height * width, CHANNELS]."""
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        waves = 10000 ** (-torch.arange(CHANNELS // 4) * 4 / CHANNELS)
        angles = [places.flatten()[:, None] * waves for places in (rows, columns)]
        return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=-1)[None]


def build() -> nn.Module:
    """Returns a model with random weights. Load yours from a checkpoint."""
    torch.manual_seed(0)
    return Detr().eval().requires_grad_(False)


def main(path: str) -> None:
    """Converts the model, and compares the loaded file with it at a size that the conversion did not use."""
    detector = build()
    example = torch.rand(1, 3, 128, 160)
    result = hybrid_rt.convert(detector, (example,), path, shapes={"height": (64, 256), "width": (64, 256)})
    print(result.report)

    other = torch.rand(1, 3, 101, 203)
    found, expected = hybrid_rt.load(path)(other), detector(other)  # the fields of a dataclass are returned as a dict
    assert found["masks"] is None
    torch.testing.assert_close(found["boxes"], expected.boxes, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found["logits"], expected.logits, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main(sys.argv[1])
