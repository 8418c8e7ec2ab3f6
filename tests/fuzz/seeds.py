"""Writes the fuzzers' seeds: `tests/fuzz/seeds.py DIRECTORY FUZZER...` creates DIRECTORY/FUZZER.

The seeds are small images of each kind that the decoder distinguishes, bodies of the type application/x-safetensors,
and bundles, for which DIRECTORY/signed gets a trusted key and the bundle that it signed.
"""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def images(_: Path) -> dict[str, bytes]:
    """Returns files by name, of some ten pixels each."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    colours = Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    found = {
        "rgb.png": _saved(colours, "PNG"),
        "rgba.png": _saved(colours.convert("RGBA"), "PNG"),
        "grey.png": _saved(colours.convert("L"), "PNG"),
        "bits.png": _saved(colours.convert("1"), "PNG"),
        "palette.png": _saved(colours.quantize(4), "PNG", transparency=1),
        "deep.png": _saved(deep, "PNG"),
        "rgb.jpg": _saved(colours, "JPEG"),
        "grey.jpg": _saved(colours.convert("L"), "JPEG"),
        "progressive.jpg": _saved(colours, "JPEG", progressive=True),
        "subsampled.jpg": _saved(colours.resize((33, 17)), "JPEG", subsampling=2, restart_marker_blocks=1),
        "cmyk.jpg": _saved(colours.convert("CMYK"), "JPEG"),
        "other.bmp": _saved(colours, "BMP"),
    }
    return found | {f"cut-{name}": data[: len(data) // 2] for name, data in found.items()}


def bodies(_: Path) -> dict[str, bytes]:
    """Returns valid and invalid bodies by name."""
    of_bytes = ("U8", [1, 2, 3], 6)
    of_floats = ("F32", [3, 2, 1], 24)
    return {
        "bytes": _body({"a": of_bytes}),
        "floats": _body({"a": of_floats}),
        "both": _body({"b": of_floats, "a": of_bytes}, {"format": "np"}),
        "three": _body({str(i): of_bytes for i in range(3)}),
        "half": _body({"a": ("F16", [3, 1, 1], 6)}),
        "flat": _body({"a": ("U8", [6], 6)}),
        "empty": _body({"a": ("U8", [0, 2, 3], 0)}),
        "none": _body({}),
        "cut": _body({"a": of_bytes})[:-1],
        "longer": _body({"a": of_bytes}) + b"x",
        "twice": _raw('{"a":{"dtype":"U8","shape":[1,1,3],"data_offsets":[0,3]},"a":{}}', 3),
        "overlap": _raw(
            '{"a":{"dtype":"U8","shape":[1,1,3],"data_offsets":[0,3]},'
            '"\\u00e9":{"dtype":"U8","shape":[1,1,3],"data_offsets":[1,4]}}',
            4,
        ),
        # The same total number of bytes as the tensors.
        "gap-and-overlap": _raw(
            '{"a":{"dtype":"U8","shape":[1,1,3],"data_offsets":[1,4]},'
            '"b":{"dtype":"U8","shape":[1,1,3],"data_offsets":[3,6]}}',
            6,
        ),
    }


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def _body(tensors: dict[str, tuple[str, list[int], int]], metadata: dict[str, str] | None = None) -> bytes:
    """Returns a body of tensors by name, each with dtype, shape and number of bytes."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return _raw(json.dumps(header), end)


def _raw(header: str, size: int) -> bytes:
    text = header.encode()
    return struct.pack("<Q", len(text)) + text + bytes(index % 256 for index in range(size))


def main() -> None:
    """Writes the files of the named fuzzers."""
    directory, *fuzzers = sys.argv[1:]
    for fuzzer in fuzzers:
        files = {"fuzz_image": images, "fuzz_safetensors": bodies, "fuzz_bundle": bundles}[fuzzer]
        target = Path(directory) / fuzzer
        target.mkdir(parents=True, exist_ok=True)
        for name, data in files(Path(directory)).items():
            (target / name).write_bytes(data)


def bundles(directory: Path) -> dict[str, bytes]:
    """Returns bundles by name, and writes the trusted key."""
    from bundle_seeds import written_bundles  # torch takes seconds to import

    return written_bundles(directory / "signed")


if __name__ == "__main__":
    main()
