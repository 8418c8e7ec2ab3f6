"""Generates the loads of the load test and measures them.

An open loop sends at a constant rate regardless of the answers, as independent users would, and measures each latency
from the moment when the request was due. A loop that waits for answers sends less exactly when the server is slow, and
would omit those moments from its percentiles ("coordinated omission"; see docs.k6.io on its constant-arrival-rate).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from hybrid_rt.common.latency import percentile

Send = Callable[[], Awaitable[str]]
"""Sends a request and returns its outcome: "200", another status, or a description of the failure."""

ACCEPTED = "200"
PERCENTS = (50, 95, 99)
REQUEST_SECONDS = 60.0
"""Time limit of a request."""


@dataclass(frozen=True)
class Sample:
    """One request; times in seconds."""

    outcome: str
    latency: float
    """From the moment when it was due to the end of its answer."""
    delay: float
    """From the moment when it was due until it was sent: the client's own delay."""


@dataclass
class Load:
    """Result of a load on a server."""

    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    """Time from the first request to the last answer."""
    client_cores: float = 0.0
    """CPU time of the client relative to `seconds`, which it took from the server on the same machine."""

    def to_json(self) -> dict[str, Any]:
        """Returns counts, rates per second, and the accepted requests' latencies in milliseconds (null if none)."""
        outcomes = Counter(sample.outcome for sample in self.samples)
        accepted = [sample.latency * 1e3 for sample in self.samples if sample.outcome == ACCEPTED]
        delays = [sample.delay * 1e3 for sample in self.samples]
        return {
            "requests": len(self.samples),
            "accepted": outcomes[ACCEPTED],
            "refused": {key: count for key, count in sorted(outcomes.items()) if key.isdigit() and key != ACCEPTED},
            "failed": {key: count for key, count in sorted(outcomes.items()) if not key.isdigit()},
            "seconds": round(self.seconds, 3),
            "throughput": round(outcomes[ACCEPTED] / self.seconds, 3) if self.seconds else 0.0,
            "latency_ms": _percentiles(accepted),
            "send_delay_ms": _percentiles(delays),
            "client_cores": round(self.client_cores, 3),
        }


def _percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {f"p{percent}": round(percentile(values, percent), 3) for percent in PERCENTS} | {
        "max": round(max(values), 3)
    }


async def open_loop(send: Send, rate: float, seconds: float) -> Load:
    """Sends `rate` requests per second for `seconds`, evenly spaced, and waits for all answers."""
    load = Load()
    start, cpu = time.monotonic(), time.process_time()

    async def one(due: float) -> None:
        sent = time.monotonic()
        outcome = await send()
        load.samples.append(Sample(outcome, time.monotonic() - due, sent - due))

    tasks = []
    for number in range(max(1, round(rate * seconds))):
        due = start + number / rate
        # Sleeps even if it is late, so that answers are read meanwhile.
        await asyncio.sleep(max(due - time.monotonic(), 0.0))
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    load.seconds, load.client_cores = _since(start, cpu)
    return load


async def closed_loop(send: Send, concurrency: int, seconds: float) -> Load:
    """Keeps `concurrency` requests in flight for `seconds`."""
    load = Load()
    start, cpu = time.monotonic(), time.process_time()

    async def one_after_another() -> None:
        while (sent := time.monotonic()) < start + seconds:
            outcome = await send()
            load.samples.append(Sample(outcome, time.monotonic() - sent, 0.0))

    await asyncio.gather(*(one_after_another() for _ in range(concurrency)))
    load.seconds, load.client_cores = _since(start, cpu)
    return load


def _since(start: float, cpu: float) -> tuple[float, float]:
    seconds = time.monotonic() - start
    return seconds, (time.process_time() - cpu) / seconds


@dataclass(frozen=True)
class Client:
    """Persistent connections to one server."""

    session: aiohttp.ClientSession
    url: str
    image: bytes

    def detect(self, deadline_ms: int | None = None) -> Send:
        """Returns a function that requests detections for the image with this deadline."""
        query = {} if deadline_ms is None else {"deadline_ms": str(deadline_ms)}
        headers = {"Content-Type": "application/octet-stream"}

        async def send() -> str:
            try:
                async with self.session.post(
                    f"{self.url}/v1/detect", params=query, data=self.image, headers=headers
                ) as response:
                    await response.read()
                    return str(response.status)
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                return type(error).__name__

        return send


@asynccontextmanager
async def connected(url: str, image: bytes) -> AsyncIterator[Client]:
    """Yields a client that sends this image to the server at this address."""
    # No limit: a request that waits for a connection would not be sent when it is due.
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Client(session, url, image)
