"""Detectors in the style of current transformers, with code that TorchScript does not support."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .small_detectors import Backbone

CHANNELS = 8


def _seeded(module: nn.Module) -> nn.Module:
    """Sets random weights, the same in each process, that make values differ between positions."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            spread = 0.5 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return module.requires_grad_(False).eval()


@dataclasses.dataclass
class Found:
    """Boxes [N, q, 4] and logits [N, q, c]; ``masks`` is None."""

    boxes: Tensor
    logits: Tensor
    masks: Tensor | None = None


class Transformer(nn.Module):
    """Applies attention over tokens [N, t, 8], and then from queries [N, q, 8] to them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        self.decoder = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        self.norm = nn.LayerNorm(CHANNELS)

    def forward(self, tokens: Tensor, queries: Tensor, **options: Any) -> Tensor:
        places = options.get("places", 0.0)
        tokens = self.norm(tokens + self.encoder(tokens + places, tokens + places, tokens, need_weights=False)[0])
        return self.norm(queries + self.decoder(queries, tokens, tokens, need_weights=False)[0])


class DetrLike(nn.Module):
    """Maps a batch [N, 3, H, W] to a dataclass. Has sine positions computed from the size, and learnt queries."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.transformer = Transformer()
        self.queries = nn.Embedding(5, CHANNELS)
        self.boxes = nn.Linear(CHANNELS, 4)
        self.classes = nn.Linear(CHANNELS, 3)

    def places(self, height: int, width: int) -> Tensor:
        """Returns positions [1, height * width, 8]."""
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        angles = torch.stack([rows / height, columns / width], dim=-1).flatten(0, 1) * 6.28
        return torch.cat([angles.sin(), angles.cos(), angles.sin() ** 2, angles.cos() ** 2], dim=-1)[None]

    def forward(self, pixels: Tensor, *, more: dict[str, Any] | None = None) -> Any:
        options = {"places": None, **(more or {})}
        features = self.backbone(pixels)["coarse"]
        options["places"] = self.places(*features.shape[2:])
        tokens = features.flatten(2).permute(0, 2, 1)
        queries = self.queries.weight.expand(pixels.shape[0], -1, -1)
        decoded = self.transformer(tokens, queries, **options)
        return Found(self.boxes(decoded).sigmoid(), self.classes(decoded))


class RtDetrLike(DetrLike):
    """Uses the best tokens as queries, with boxes around their cells, and returns a dict of several types."""

    def forward(self, pixels: Tensor, *, more: dict[str, Any] | None = None) -> Any:
        levels = self.backbone(pixels)
        height, width = levels["coarse"].shape[-2:]
        fine = functional.interpolate(levels["fine"], size=(height, width), mode="bilinear")
        tokens = (levels["coarse"] + fine).flatten(2).transpose(1, 2)
        logits = self.classes(tokens)
        best = logits.amax(-1).topk(6, dim=1).indices
        index = best.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        decoded = self.transformer(tokens, tokens.gather(1, index), places=self.places(height, width))
        centers = torch.stack([best % width / width, torch.div(best, width, rounding_mode="floor") / height], dim=-1)
        boxes = torch.cat([centers, self.boxes(decoded)[..., 2:].sigmoid()], dim=-1)
        return OrderedDict(
            boxes=boxes, logits=logits.gather(1, best.unsqueeze(-1).expand(-1, -1, 3)), size=pixels.shape[-1], kind="rt"
        )


class Pair(NamedTuple):
    """Boxes [N, q, 4] and the number of cells."""

    boxes: Tensor
    cells: int


class NamedDetr(DetrLike):
    """Returns a named tuple, and an empty list for auxiliary heads."""

    def forward(self, pixels: Tensor, *, more: dict[str, Any] | None = None) -> Any:
        found = super().forward(pixels, more=more)
        return Pair(found.boxes, pixels.shape[2] * pixels.shape[3] // 16), [], None, 0.5


def seeded(kind: type[nn.Module]) -> nn.Module:
    """Returns a detector of the class."""
    return _seeded(kind())
