"""A U-Net that pads upsampled features to the skipped level's size, and returns scores and a class per pixel.

python examples/convert/segmentation.py unet.pt
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

import hybrid_rt


class Twice(nn.Sequential):
    """Two convolutions."""

    def __init__(self, channels: int, out: int) -> None:
        """Builds two convolutions of three by three."""
        super().__init__(
            nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
        )  # fmt: skip


class Up(nn.Module):
    """Upsamples, pads to the skipped level's size, and concatenates both."""

    def __init__(self, channels: int, out: int) -> None:
        """Builds the upsampling layer and the convolutions after it."""
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.conv = Twice(channels, out)

    def forward(self, low: Tensor, skipped: Tensor) -> Tensor:
        """Returns the upsampled level concatenated with the skipped one."""
        low = self.up(low)
        rows, columns = skipped.size(2) - low.size(2), skipped.size(3) - low.size(3)
        low = functional.pad(low, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skipped, low], dim=1))


class UNet(nn.Module):
    """Maps a batch [N, 3, H, W] to {"scores": [N, classes, H, W], "classes": [N, H, W]}."""

    def __init__(self, classes: int = 4) -> None:
        """Builds the downsampling path, the upsampling path and the last layer."""
        super().__init__()
        self.first = Twice(3, 8)
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), Twice(channels, 2 * channels)) for channels in (8, 16, 32)
        )
        self.up = nn.ModuleList(Up(channels, channels // 2) for channels in (64, 32, 16))
        self.out = nn.Conv2d(8, classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the scores and the best class of each pixel."""
        levels = [self.first(images)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up in self.up:
            x = up(x, levels.pop())
        scores = self.out(x)
        return {"scores": scores, "classes": scores.argmax(dim=1)}


def build() -> nn.Module:
    """Returns a model with random weights. Load yours from a checkpoint."""
    torch.manual_seed(0)
    return UNet().eval().requires_grad_(False)


def main(path: str) -> None:
    """Converts the model, and compares the loaded file with it at a size that the conversion did not use."""
    network = build()
    example = torch.rand(1, 3, 128, 160)
    result = hybrid_rt.convert(network, (example,), path, shapes={"height": (32, 256), "width": (32, 256)})
    print(result.report)

    other = torch.rand(1, 3, 75, 133)
    torch.testing.assert_close(hybrid_rt.load(path)(other)["scores"], network(other)["scores"], rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1])
