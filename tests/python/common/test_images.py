"""Tests that Python and the C++ programs read the same pixels from an image."""

from __future__ import annotations

import json
import struct
import subprocess
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import hybrid_rt
from helpers.small_detectors import small_list_detector
from hybrid_rt import OptionError
from hybrid_rt.common.executables import program
from hybrid_rt.common.images import read_image
from models import digits_detector


def grey_16(values: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=np.uint16))


def test_images_of_16_bits_use_the_high_byte(tmp_path: Path) -> None:
    """Pillow's convert() would turn all values above 255 white."""
    path = tmp_path / "depth.png"
    grey_16([[0, 255, 256, 4000, 65535]]).save(path)
    assert (read_image(path) * 255).round().to(torch.uint8).tolist() == [[[0, 0, 1, 15, 255]]] * 3


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
def test_python_and_cpp_see_the_same_pixels(
    name: str, tmp_path: Path, detector_file: Path, demo_image_path: Path
) -> None:
    with Image.open(demo_image_path) as opened:
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
    found = module([read_image(path)])[0]
    command = [program("hybrid-rt-detect", "detect"), str(detector_file), str(path), "--json", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    detections = json.loads(done.stdout)["detections"]
    assert [item["label"] for item in detections] == found["labels"].tolist()
    torch.testing.assert_close(
        torch.tensor([item["box"] for item in detections]).reshape(-1, 4), found["boxes"], rtol=0, atol=1e-2
    )


# EXIF orientation


def image_of_noise(width: int = 11, height: int = 7) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tiff(orientation: int, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """Returns Exif data with an orientation and another entry."""
    number = struct.pack(order + ("HH" if kind == 3 else "I"), orientation, *([0] if kind == 3 else []))
    entries = struct.pack(order + "HHI", 0x0100, 4, 1) + struct.pack(order + "I", 9)
    entries += struct.pack(order + "HHI", 0x0112, kind, count) + number
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(order + "HIH", 42, 8, 2) + entries + b"\0" * 4


def save_with(exif: bytes, path: Path, *, is_last: bool = False) -> Image.Image:
    """Writes an image with Exif data, after the pixels of a PNG if ``is_last``. Returns it as Pillow turns it."""
    image = image_of_noise()
    if path.suffix == ".jpg":
        image.save(path, quality=95, exif=b"Exif\0\0" + exif)
    else:
        image.save(path)
        data = path.read_bytes()
        chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        at = len(data) - 12 if is_last else 33
        path.write_bytes(data[:at] + chunk + data[at:])
    with Image.open(path) as opened:
        opened.load()
        return ImageOps.exif_transpose(opened).convert("RGB")


def pixels_of(path: Path, *, exif: bool) -> Any:
    return (read_image(path, exif=exif) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["in.jpg", "in.png"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_as_pillow_turns_it(name: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / name
    for exif in (tiff(orientation), tiff(orientation, ">"), tiff(orientation, "<", 4), tiff(orientation, ">", 4)):
        for is_last in (False, True):
            expected = np.asarray(save_with(exif, path, is_last=is_last))
            assert np.array_equal(pixels_of(path, exif=True), expected)
            assert pixels_of(path, exif=False).shape == (7, 11, 3)
            assert expected.shape == ((11, 7, 3) if 5 <= orientation <= 8 else (7, 11, 3))


ODD_EXIF = {
    "empty": b"",
    "short": tiff(6)[:9],
    "cut": tiff(6)[:-8],
    "other order": b"XX" + tiff(6)[2:],
    "other magic": tiff(6)[:2] + b"\x2b\0" + tiff(6)[4:],
    "beyond the end": tiff(6)[:4] + b"\xff\xff\xff\x7f" + tiff(6)[8:],
    "two values": tiff(6, count=2),
    "huge": tiff(2**31, kind=4),
    "marked": b"Exif\0\0" + tiff(6),
    "right": tiff(6),
}


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a bundle that takes images of any size and finds few boxes."""
    path = tmp_path_factory.mktemp("any") / "any.pt"
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    hybrid_rt.convert(
        small_list_detector(), ([image],), path, segments="backbone", engine="torchscript", measure=False,
        shapes={"height": (4, 64), "width": (4, 64)},
    )  # fmt: skip
    return path


def turned_by_cpp(bundle: Path, path: Path, *options: str) -> Any:
    """Returns the output of hybrid-rt-detect for an image without boxes."""
    output = path.with_suffix(".out.png")
    command = [program("hybrid-rt-detect", "detect"), str(bundle), str(path), "--min-score", "1", *options]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(output))


def mostly_slow(values: Iterable[Any], quick: Any) -> list[Any]:
    """Marks all parameters but one as slow, because each starts the program several times."""
    return [value if value == quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("name", ["in.jpg", "in.png"])
@pytest.mark.parametrize("orientation", mostly_slow(range(1, 9), 6))
def test_cpp_rotates_an_image_like_python(name: str, orientation: int, tmp_path: Path, any_size: Path) -> None:
    path = tmp_path / name
    expected = save_with(tiff(orientation, "<>"[orientation % 2]), path, is_last=orientation > 5)
    assert np.array_equal(turned_by_cpp(any_size, path, "--exif"), np.asarray(expected))
    if orientation == 6:
        assert np.array_equal(turned_by_cpp(any_size, path), pixels_of(path, exif=False))


@pytest.mark.filterwarnings("ignore:.*(EXIF data|Metadata Warning):UserWarning")  # from Pillow's reader
@pytest.mark.parametrize("case", mostly_slow(ODD_EXIF, "marked"))
def test_odd_exif_data_is_read_alike(case: str, tmp_path: Path, any_size: Path) -> None:
    for name in ("in.jpg", "in.png"):
        path = tmp_path / name
        try:
            expected = np.asarray(save_with(ODD_EXIF[case], path))
        except (SyntaxError, struct.error):  # Pillow's reader fails on it
            expected = pixels_of(path, exif=False)
        turned = pixels_of(path, exif=True)
        assert np.array_equal(turned, expected)
        assert turned.shape == ((11, 7, 3) if case in ("marked", "right", "two values") else (7, 11, 3))
        assert np.array_equal(turned_by_cpp(any_size, path, "--exif"), turned)


@pytest.mark.parametrize("width", [20_000, 2**31 - 1])
def test_a_header_of_endless_pixels_is_refused(width: int, tmp_path: Path) -> None:
    """The error for Pillow's own limit is not an OSError."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, 20_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "endless.png").write_bytes(data)
    with pytest.raises(OptionError, match="expected an image file, got "):
        read_image(tmp_path / "endless.png")
