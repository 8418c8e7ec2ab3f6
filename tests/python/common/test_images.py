"""Images: the same pixels in Python as in the C++ programs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hybrid_rt
from hybrid_rt.common.executables import program
from hybrid_rt.common.images import read_picture
from models import digits_detector


def grey_16(values: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=np.uint16))


def test_of_16_bits_the_high_byte_is_taken(tmp_path: Path) -> None:
    """Pillow's own convert() makes all above 255 white."""
    path = tmp_path / "depth.png"
    grey_16([[0, 255, 256, 4000, 65535]]).save(path)
    assert (read_picture(path) * 255).round().to(torch.uint8).tolist() == [[[0, 0, 1, 15, 255]]] * 3


def variants(rgb: Image.Image) -> dict[str, Image.Image]:
    grey = np.asarray(rgb.convert("L"))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(grey // 2 + 60))
    return {
        "rgb.png": rgb,
        "grey16.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "palette.png": rgb.quantize(64),
        "alpha.png": alpha,
        "grey_alpha.png": alpha.convert("LA"),
        "bits.png": rgb.convert("1"),
        "grey.jpg": rgb.convert("L"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "progressive.jpg": rgb,
        "subsampled.jpg": rgb,
    }


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory: pytest.TempPathFactory, demo_image: torch.Tensor) -> Path:
    path = tmp_path_factory.mktemp("images") / "digits.pt"
    hybrid_rt.convert(
        digits_detector.load(), ([demo_image],), path, segments="backbone", engine="torchscript", measure=False
    )
    return path


@pytest.mark.parametrize("name", [*variants(Image.new("RGB", (8, 8))), "gamma.png"])
def test_python_and_cpp_see_the_same_pixels(name: str, tmp_path: Path, detector_file: Path, demo_picture: Path) -> None:
    with Image.open(demo_picture) as opened:
        rgb = opened.convert("RGB")
    path = tmp_path / name
    if name == "gamma.png":
        rgb.save(path)
        data = path.read_bytes()
        gamma = bytes.fromhex("0000000467414d41000186a031e8965f")  # 1.0: linear light
        path.write_bytes(data[:33] + gamma + data[33:])
    else:
        image = variants(rgb)[name]
        options = {"progressive": name.startswith("progressive"), "quality": 90} if name.endswith("jpg") else {}
        image.save(path, **options)
    module = hybrid_rt.load(detector_file)
    found = module([read_picture(path)])[0]
    command = [program("hybrid-rt-detect", "detect"), str(detector_file), str(path), "--json", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    detections = json.loads(done.stdout)["detections"]
    assert [item["label"] for item in detections] == found["labels"].tolist()
    torch.testing.assert_close(
        torch.tensor([item["box"] for item in detections]).reshape(-1, 4), found["boxes"], rtol=0, atol=1e-2
    )
