"""Creates the seed bundles of fuzz_bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

import hybrid_rt
from tools.dev.fuzz_bundles import STRANGER, TRUSTED, pem, public_pem

FORMAT_1 = Path(__file__).resolve().parents[1] / "data" / "format_1"


class TinyDetector(nn.Module):
    """A convolution and one score per image. Its bundle is small, so that a mutation is cheap."""

    def __init__(self) -> None:
        """Creates the layer."""
        super().__init__()
        self.backbone = nn.Conv2d(3, 2, 3)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns one score per image of [N, 3, H, W]."""
        return {"scores": self.backbone(images).mean((1, 2, 3))}


def written_bundles(trusted: Path) -> dict[str, bytes]:
    """Returns bundles by name. Writes trusted.pub and signed.pt to the directory ``trusted``."""
    trusted.mkdir(parents=True, exist_ok=True)
    (trusted / "trusted.pub").write_bytes(public_pem(TRUSTED))
    key = trusted / "key.pem"
    signed, other = trusted / "signed.pt", trusted / "other.pt"
    hybrid_rt.convert(
        TinyDetector().eval(), (torch.rand(1, 3, 16, 16),), signed, segments="backbone", engine="torchscript",
        measure=False,
    )  # fmt: skip
    shutil.copyfile(signed, other)
    for path, private in ((signed, TRUSTED), (other, STRANGER)):
        key.write_text(pem(private))
        hybrid_rt.sign(path, key)
    key.unlink()
    found = {"signed.pt": signed.read_bytes(), "stranger.pt": other.read_bytes()}
    other.unlink()
    return found | {path.name: path.read_bytes() for path in (FORMAT_1 / "single.pt", FORMAT_1 / "fused.pt")}
