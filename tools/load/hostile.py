"""Attacks hybrid-rt-serve with clients that try to stop it: `tools/load_test --hostile`.

During each attack, a probe requests /healthz on a new connection four times per second. The table shows the outcome of
the attack, the slowest probe, and the server's CPU time and memory. Afterwards the service must answer an image as
before. Writes hostile.json and hostile.md.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import resource
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from hybrid_rt import OptionError
from hybrid_rt.common.atomic_files import atomic_write
from hybrid_rt.common.progress import Steps
from tools.dev.process_work import work_of
from tools.load import hostile_requests as hostile
from tools.load.client import connected
from tools.load.server import Server, started

PROBE_SECONDS = 0.25
GIVE_UP_SECONDS = 60.0
SPARE_DESCRIPTORS = 256
"""Descriptors in addition to the connections: the client's own files, the probe, the event loop."""
AT_ONE_TIME = 256
"""Maximum number of connections that are being opened."""


@dataclass
class Row:
    """Outcome of one attack. Times are in seconds, memory in MiB."""

    attack: str
    sent: int
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    probes: int = 0
    failed_probes: int = 0
    slowest_probe: float = 0.0
    cpu_seconds: float = 0.0
    memory_before: float = 0.0
    memory_after: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, rounded."""
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in vars(self).items()}
        return {**rounded, "outcomes": dict(sorted(self.outcomes.items()))}


@dataclass(frozen=True)
class Target:
    """The server under attack."""

    server: Server
    host: str
    port: int
    image: bytes

    @classmethod
    def of(cls, server: Server, image: bytes) -> Target:
        """Returns the target at a server's address."""
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        return cls(server, host, int(port), image)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Opens a connection."""
        return await asyncio.open_connection(self.host, self.port)

    async def answers(self, request: bytes, seconds: float = GIVE_UP_SECONDS) -> bytes:
        """Returns everything that one connection receives until the service closes it or is silent for `seconds`."""
        reader, writer = await self.connect()
        received = b""
        try:
            writer.write(request)
            while more := await asyncio.wait_for(reader.read(1 << 16), seconds):
                received += more
        except (asyncio.TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()
        return received

    async def health(self) -> bool:
        """Requests /healthz on a separate connection, which the service is asked to close."""
        request = hostile.HEALTH + b"Host: x\r\nConnection: close\r\n\r\n"
        with suppress(OSError):
            return (await self.answers(request)).startswith(b"HTTP/1.1 200")
        return False

    def cpu_seconds(self) -> float:
        """Returns the CPU time that the server has used."""
        return work_of(Path(f"/proc/{self.server.process.pid}/stat"))[0]


Attack = Callable[[Target, Row], Awaitable[None]]


async def under_probes(target: Target, row: Row, attack: Attack) -> Row:
    """Runs an attack while a probe requests /healthz, and fills in the row."""
    over = asyncio.Event()

    async def probe() -> None:
        while True:
            begin = time.monotonic()
            is_well = await target.health()
            row.slowest_probe = max(row.slowest_probe, time.monotonic() - begin)
            row.probes += 1
            row.failed_probes += not is_well
            if over.is_set():
                return
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(over.wait(), PROBE_SECONDS)

    row.memory_before, cpu, begin = target.server.memory_mib(), target.cpu_seconds(), time.monotonic()
    probing = asyncio.create_task(probe())
    try:
        await attack(target, row)
    finally:
        row.seconds = time.monotonic() - begin
        over.set()
        await probing
    row.cpu_seconds = target.cpu_seconds() - cpu
    row.memory_after = target.server.memory_mib()
    return row


async def _held(target: Target, row: Row, begin: bytes, seconds: float, drip: bytes) -> None:
    """Opens connections that each send ``begin``, then ``drip`` once per second, and counts their outcomes."""
    gate = asyncio.Semaphore(AT_ONE_TIME)

    async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        async with gate:
            try:
                reader, writer = await asyncio.wait_for(target.connect(), GIVE_UP_SECONDS)
            except (OSError, asyncio.TimeoutError):
                return None
            writer.write(begin)
            return reader, writer

    pairs = await asyncio.gather(*(opened() for _ in range(row.sent)))
    held = [pair for pair in pairs if pair is not None]
    row.outcomes["not opened"] += row.sent - len(held)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(1.0)
        for reader, writer in held if drip else []:
            if not reader.at_eof() and not writer.is_closing():
                writer.write(drip)
    for reader, writer in held:
        row.outcomes[await _state(reader, writer)] += 1
        writer.transport.abort()


async def _state(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    if writer.is_closing():
        return "closed by the service"
    try:
        received = await asyncio.wait_for(reader.read(12), 0.001)
    except asyncio.TimeoutError:
        return "open"
    except OSError:
        return "closed by the service"
    return received[9:12].decode("latin-1") if received else "closed by the service"


def slow_heads(seconds: float) -> Attack:
    """Returns an attack that sends half of a head, then one byte of it per second."""

    async def attack(target: Target, row: Row) -> None:
        await _held(target, row, hostile.HEALTH + b"Host: x\r\nX-Slow: ", seconds, b"x")

    return attack


def slow_bodies(seconds: float) -> Attack:
    """Returns an attack that announces a body of 900 kB, then sends one byte of it per second."""

    async def attack(target: Target, row: Row) -> None:
        await _held(target, row, hostile.DETECT + b"Content-Length: 900000\r\n\r\n", seconds, b"x")

    return attack


def silent_connections(seconds: float) -> Attack:
    """Returns an attack with connections that send nothing."""

    async def attack(target: Target, row: Row) -> None:
        await _held(target, row, b"", seconds, b"")

    return attack


async def leaving_clients(target: Target, row: Row) -> None:
    """Announces 900 kB, sends 200 bytes, and closes the connection."""
    gate = asyncio.Semaphore(AT_ONE_TIME)

    async def one() -> None:
        async with gate:
            try:
                _, writer = await asyncio.wait_for(target.connect(), GIVE_UP_SECONDS)
                writer.write(hostile.DETECT + b"Content-Length: 900000\r\n\r\n" + bytes(200_000))
                await asyncio.wait_for(writer.drain(), GIVE_UP_SECONDS)
                writer.close()
                row.outcomes["left"] += 1
            except (OSError, asyncio.TimeoutError):
                row.outcomes["closed by the service"] += 1

    await asyncio.gather(*(one() for _ in range(row.sent)))


def posted(body: bytes, content_type: str = "image/png") -> Attack:
    """Returns an attack that posts a body as often as the row says, one after another."""

    async def attack(target: Target, row: Row) -> None:
        head = (
            b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: "
            + f"{content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        for _ in range(row.sent):
            received = await target.answers(head + body)
            row.outcomes[received[9:12].decode("latin-1") or "no answer"] += 1

    return attack


async def odd_framing(target: Target, row: Row) -> None:
    """Sends heads whose end or headers are ambiguous, each followed by a request that must not be read."""
    for request in hostile.TWO_LENGTHS + hostile.ODD_HEADS:
        received = await target.answers(request, 2.0)
        statuses = sorted(set(re.findall(rb"HTTP/1\.1 (\d+)", received)))
        row.outcomes[b" and ".join(statuses).decode() or "no answer"] += 1


def mixed_bodies(image: bytes, number: int) -> Iterator[tuple[bytes, str]]:
    """Yields bodies and their types: good images of several sizes and kinds, and broken ones."""
    chance = np.random.default_rng(0)
    images = []
    for height, width in ((96, 128), (120, 160), (240, 320), (480, 640), (333, 517)):
        pixels = Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for kind in ("JPEG", "PNG"):
            stream = io.BytesIO()
            pixels.save(stream, kind)
            images.append((stream.getvalue(), f"image/{kind.lower()}"))
    whole = [*images, (image, "image/jpeg")]
    header = json.dumps({"a": {"dtype": "U8", "shape": [96, 96, 3], "data_offsets": [0, 96 * 96 * 3]}}).encode()
    tensor = struct.pack("<Q", len(header)) + header + bytes(96 * 96 * 3)
    part = b'--b0\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    for i in range(number):
        body, content_type = whole[int(chance.integers(len(whole)))]
        what = int(chance.integers(8))
        if what == 0:
            body = body[: int(chance.integers(len(body)))]
        elif what == 1:
            body, content_type = tensor[: -(i % 2) or None], "application/x-safetensors"
        elif what == 2:
            body = part + body + b"\r\n" + part + tensor[: i % 99] + b"\r\n--b0--\r\n"
            content_type = "multipart/form-data; boundary=b0"
        elif what == 3:
            body, content_type = bytes(chance.integers(0, 256, 2000, dtype=np.uint8)), "text/plain"
        yield body, content_type


async def mixed_images(target: Target, row: Row) -> None:
    """Sends valid and broken images of several kinds and sizes, four at a time, on persistent connections."""
    bodies = list(mixed_bodies(target.image, row.sent))
    async with connected(target.server.url, target.image) as client:

        async def sender(share: list[tuple[bytes, str]]) -> None:
            for body, content_type in share:
                headers = {"Content-Type": content_type}
                try:
                    async with client.session.post(f"{client.url}/v1/detect", data=body, headers=headers) as response:
                        await response.read()
                        row.outcomes[str(response.status)] += 1
                except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                    row.outcomes[type(error).__name__] += 1

        await asyncio.gather(*(sender(bodies[i::4]) for i in range(4)))


def descriptors(connections: int) -> int:
    """Raises the limit of descriptors as far as possible, and returns the number of connections that it allows.

    The server inherits the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = connections if hard == resource.RLIM_INFINITY else hard - SPARE_DESCRIPTORS
    return min(connections, room)


async def _detections(target: Target) -> object:
    async with connected(target.server.url, target.image) as client:
        headers = {"Content-Type": "application/octet-stream"}
        async with client.session.post(f"{client.url}/v1/detect", data=client.image, headers=headers) as response:
            answer = await response.json()
            return answer.get("pictures", answer)


@contextmanager
def _target(model: Path, options: argparse.Namespace, image: bytes, **server_options: object) -> Iterator[Target]:
    log = options.output / f"hostile-server-{'-'.join(map(str, server_options.values())) or 'default'}.log"
    with started(model, log, workers=2, threads=1, warm_up="96x96", **server_options) as server:
        yield Target.of(server, image)


async def _attacks(target: Target, options: argparse.Namespace, steps: Steps) -> list[Row]:
    seconds, many = options.hold_seconds, options.slow_clients
    attacks: list[tuple[str, int, Attack]] = [
        ("heads sent one byte per second", many, slow_heads(seconds)),
        ("bodies sent one byte per second", many, slow_bodies(seconds)),
        ("clients that leave in the middle of a body", many, leaving_clients),
        ("silent connections, more than may be open", options.connections, silent_connections(seconds)),
        ("PNG with 2 GiB of compressed texts (300 of them, 2.1 MB)", 3, posted(hostile.png_with_texts(300))),
        ("PNG of 96x96 with 4 GiB of image data (4 MB)", 3, posted(hostile.png_of(96, 96, hostile.zeros(256)))),
        ("PNG whose header says 16000x16000", 3, posted(hostile.png_of(16_000, 16_000, hostile.zeros(16)))),
        ("progressive JPEG of 1100x1100 with 490 scans", 3, posted(hostile.progressive_jpeg(1100, 490), "image/jpeg")),
        ("the same with 5,000 scans", 3, posted(hostile.progressive_jpeg(1100, 5000), "image/jpeg")),
        ("request smuggling shapes", len(hostile.TWO_LENGTHS + hostile.ODD_HEADS), odd_framing),
        ("mixed good and broken images, to warm up", options.requests // 4, mixed_images),
        ("mixed good and broken images", options.requests, mixed_images),
    ]
    rows = []
    for name, sent, attack in attacks:
        with steps.step(name):
            rows.append(await under_probes(target, Row(name, sent), attack))
    return rows


async def measure(options: argparse.Namespace, model: Path, image: bytes) -> dict[str, Any]:
    """Runs all attacks.

    Returns:
        Contents of hostile.json: one row per attack.

    Raises:
        OptionError: The service answers differently than before, or accepts fewer connections than it promises.
    """
    steps = Steps(True)
    connections = options.connections = descriptors(options.connections)
    with _target(model, options, image) as target:
        before = await _detections(target)
        rows = await _attacks(target, options, steps)
        after = await _detections(target)
    name = f"{connections} connections that are let in and stay silent"
    with _target(model, options, image, max_connections=connections + 1) as target, steps.step(name):
        rows.append(await under_probes(target, Row(name, connections), silent_connections(5.0)))
        last = await _detections(target)
    if not before == after == last:
        raise OptionError.make(
            "load_test", "detections", expected="the same as before the attacks", got="others", remedy="See the logs."
        )
    return {
        "schema_version": 1,
        "model": model.stem,
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "rows": [row.to_json() for row in rows],
    }


def markdown(results: dict[str, Any]) -> str:
    """Returns the table."""
    lines = [
        "| Attack | Sent | Outcome | Seconds | Slowest /healthz, ms | Failed | Server CPU, s | MiB before | after |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        outcome = ", ".join(f"{count} {name}" for name, count in row["outcomes"].items() if count)
        lines.append(
            f"| {row['attack']} | {row['sent']} | {outcome} | {row['seconds']:.1f} | "
            f"{row['slowest_probe'] * 1e3:.0f} | "
            f"{row['failed_probes']} of {row['probes']} | {row['cpu_seconds']:.1f} | {row['memory_before']:.0f} | "
            f"{row['memory_after']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def save(results: dict[str, Any], directory: Path) -> None:
    """Writes hostile.json and hostile.md."""
    for name, text in (("hostile.json", json.dumps(results, indent=2) + "\n"), ("hostile.md", markdown(results))):
        with atomic_write(directory / name) as temporary:
            temporary.write_text(text)
