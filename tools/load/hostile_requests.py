"""Creates requests of clients that try to stop the service: bombs, and heads that implementations parse differently."""

from __future__ import annotations

import struct
import zlib

HEALTH = b"GET /healthz HTTP/1.1\r\n"
DETECT = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
HIDDEN = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
"""A request in a place where another implementation sees a body."""

TWO_LENGTHS = [
    DETECT + framing + b"\r\nabc" + HIDDEN
    for framing in (
        b"Content-Length: 3\r\nContent-Length: 50\r\n",
        b"Content-Length: 3\r\nContent-Length: 3\r\n",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    )
]
"""RFC 9112, 6.3."""

ODD_HEADS = [
    DETECT + b"Content-Length : 3\r\n\r\nabc" + HIDDEN,
    DETECT + b"Content-Length\t: 3\r\n\r\nabc" + HIDDEN,
    DETECT + b"Content-Length: +3\r\n\r\nabc" + HIDDEN,
    DETECT + b"Content-Length: 3, 3\r\n\r\nabc" + HIDDEN,
    DETECT + b"Content-Length: -1\r\n\r\nabc" + HIDDEN,
    DETECT + b"Transfer-Encoding: gzip\r\n\r\nabc" + HIDDEN,
    DETECT + b"Transfer-Encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + HIDDEN,
    DETECT + b"Transfer-Encoding: chunked, identity\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + HIDDEN,
    DETECT + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n" + HIDDEN,
    HEALTH + b"\r\n",
    HEALTH + b"Host: x\r\nHost: y\r\n\r\n" + HIDDEN,
    HEALTH + b"Host: x\r\nA : b\r\n\r\n" + HIDDEN,
    HEALTH + b"Host: x\r\nA: b\rC: d\r\n\r\n" + HIDDEN,
    HEALTH + b" Host: x\r\n\r\n" + HIDDEN,
]
"""RFC 9112, 2.2, 3.2, 5.1, 6.1 and 6.3."""


def chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a chunk of a PNG with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, pixels: bytes, *before: bytes) -> bytes:
    """Returns a grey PNG with this compressed data, and with chunks before it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_with_texts(texts: int) -> bytes:
    """Returns a small PNG with that many compressed texts of 7 MiB each."""
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(7 << 20), 9))
    return png_of(96, 96, zlib.compress(bytes(97 * 96)), *[text] * texts)


def zeros(blocks: int) -> bytes:
    """Returns `blocks` times 16 MiB of zeros as deflated data, without deflating them all."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(16 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + block * blocks + deflate.flush() + b"\0\0\0\0"


def progressive_jpeg(side: int, scans: int) -> bytes:
    """Returns a grey JPEG with that many scans of a few bytes each, whose coefficients are all zero."""

    def segment(marker: int, data: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    # One code, '0', for "the next 16384 blocks and this many more are empty", and one for a difference of zero.
    tables = segment(0xC4, b"\x00\x01" + bytes(15) + b"\x00") + segment(0xC4, b"\x10\x01" + bytes(15) + b"\xe0")
    blocks = ((side + 7) // 8) ** 2
    assert 1 << 14 <= blocks < 1 << 15
    empty = (blocks - (1 << 14)) << 1 | 1  # the code, 14 bits, and a one as padding
    parts = [segment(0xC0 + 2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\x00"),
             segment(0xDB, bytes([0]) + bytes([1]) * 64), tables,
             segment(0xDA, b"\x01\x01\x00\x00\x00\x0d"), bytes(-(-blocks // 8))]  # fmt: skip
    bands = [(k, high, low) for k in range(1, 64) for high, low in [(0, 13), *((i + 1, i) for i in range(12, -1, -1))]]
    # Further scans repeat the last refinement, which libjpeg only warns about.
    bands += bands[-1:] * max(0, scans - 1 - len(bands))
    for k, high, low in bands[: scans - 1]:
        parts += [segment(0xDA, bytes([1, 1, 0, k, k, high << 4 | low])), struct.pack(">H", empty)]
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"
