"""Measures hybrid-rt-serve under load: its limit, latencies at fractions of it, and its behaviour beyond it.

Starts the server itself, on loopback, and loads nothing else. By default the model is torchvision's
ssdlite320_mobilenet_v3_large with random weights (models/torchvision_detectors.py), converted for OpenVINO.

    limit     closed loops, with each number of workers alternately
    ladder    an open loop at fractions of the limit of the last number of workers
    overload  an open loop at a multiple of it, with deadlines, while the server's memory is monitored

Writes load.json, load.md and load.png. With --hostile, attacks the server instead (tools/load/hostile.py), and writes
hostile.json and hostile.md.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

from PIL import Image

import hybrid_rt
from hybrid_rt import HybridRTError, OptionError
from hybrid_rt.bench.run import Machine
from hybrid_rt.common.atomic_files import atomic_write
from hybrid_rt.common.progress import Steps
from models import torchvision_detectors
from tools.load import hostile
from tools.load import report as load_test_report
from tools.load.client import ACCEPTED, Client, Load, closed_loop, connected, open_loop
from tools.load.server import Server, started

SCHEMA_VERSION = 1
DETECTOR = "ssdlite320_mobilenet_v3_large"
MEMORY_SECONDS = 5.0
UNDER_WAY = (1, 2, 4)
"""Requests in flight per worker in the search for the limit."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses and checks the options.

    Raises:
        OptionError: A number is out of range.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help=f"a bundle (default: {DETECTOR}, made when it is not there)")
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--queue", type=int, help="of the server (default: its own)")
    parser.add_argument("--limit-seconds", type=float, default=15, help="of each closed loop")
    parser.add_argument("--shares", nargs="+", type=float, default=[25, 50, 70, 85, 100, 120], help="%% of the limit")
    parser.add_argument("--seconds", type=float, default=30, help="of each share")
    parser.add_argument("--overload", type=float, default=3, help="times the limit")
    parser.add_argument("--overload-seconds", type=float, default=60)
    parser.add_argument("--deadline-ms", type=int, default=1000, help="of each request of the overload")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "load")
    parser.add_argument("--hostile", action="store_true", help="clients that want to stop the service, instead of load")
    parser.add_argument("--connections", type=int, default=10_000, help="of --hostile, where descriptors allow it")
    parser.add_argument("--slow-clients", type=int, default=1_200, help="of --hostile, at the same time")
    parser.add_argument("--hold-seconds", type=float, default=12, help="of --hostile: how long slow clients stay")
    parser.add_argument("--requests", type=int, default=2_000, help="of --hostile: good and broken images")
    options = parser.parse_args(arguments)
    for name in ("size", "workers", "threads", "queue", "limit_seconds", "shares", "seconds", "overload",
                 "overload_seconds", "deadline_ms", "connections", "slow_clients", "hold_seconds",
                 "requests"):  # fmt: skip
        value = getattr(options, name)
        if value is not None and min(value if isinstance(value, (list, tuple)) else [value]) <= 0:
            option = f"--{name.replace('_', '-')}"
            raise OptionError.make("load_test", option, expected="more than 0", got=str(value), remedy="Raise it.")
    if len(set(options.workers)) < len(options.workers):
        raise OptionError.make(
            "load_test", "--workers", expected="each once", got=str(options.workers), remedy="Leave one out."
        )
    return options


def main() -> None:
    """Runs everything, prints the tables and writes the files."""
    try:
        options = parse()
        options.output.mkdir(parents=True, exist_ok=True)
        model = options.model or made_model(options.output / "ssdlite.pt")
        if options.hostile:
            found = asyncio.run(hostile.measure(options, model, encoded_image(*options.size)))
            hostile.save(found, options.output)
            print(hostile.markdown(found))
            return
        results = asyncio.run(measure(options, model))
        save(results, options.output)
    except HybridRTError as error:
        sys.exit(f"load_test: error: {error}")
    print(load_test_report.markdown(results))
    print(f"written: {options.output}/load.json, load.md and load.png")


def made_model(path: Path) -> Path:
    """Returns the bundle of the default detector, and converts it unless it exists."""
    if not path.exists():
        with Steps(True).step(f"convert {DETECTOR}"):
            detector = torchvision_detectors.build(DETECTOR)
            example = torchvision_detectors.photographs([(480, 640)])
            hybrid_rt.convert(detector, (example,), path, engine="openvino", measure=False)
    return path


def encoded_image(height: int, width: int) -> bytes:
    """Returns a photograph of this size as JPEG."""
    (image,) = torchvision_detectors.photographs([(height, width)])
    target = io.BytesIO()
    Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()).save(target, "JPEG", quality=90)
    return target.getvalue()


async def measure(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Runs the whole load test.

    Returns:
        Contents of load.json. Rates are images per second, latencies milliseconds, memory MiB.
    """
    height, width = options.size
    image = encoded_image(height, width)
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": model.stem,
        "machine": asdict(Machine.here(options.threads)),
        "picture": {"height": height, "width": width, "bytes": len(image)},
        "options": {name: value for name, value in vars(options).items() if name not in ("output", "model")},
    }
    steps = Steps(True)
    # Python's garbage collector pauses the client, for 200 ms with torch imported.
    gc.collect()
    gc.freeze()
    async with AsyncExitStack() as stack:
        sides = [await started_side(stack, workers, image, model, options) for workers in options.workers]
        with steps.step(f"limits with --workers {' '.join(str(side.workers) for side in sides)}"):
            results["limits"] = await find_limits(sides, options)
        limit, last = results["limits"][-1]["throughput"], sides[-1]
        with steps.step("ladder"):
            results["ladder"] = [
                await at_share(last.client, share / 100, limit, options.seconds) for share in options.shares
            ]
        with steps.step("overload"):
            results["overload"] = await overload(last.client, last.server, limit, options)
    return results


@dataclass(frozen=True)
class Side:
    """A server with a number of workers, and its client."""

    workers: int
    server: Server
    client: Client


async def started_side(
    stack: AsyncExitStack, workers: int, image: bytes, model: Path, options: argparse.Namespace
) -> Side:
    """Starts and warms up a server, which ends with `stack`."""
    height, width = options.size
    server_options = {"workers": workers, "threads": options.threads, "queue": options.queue,
                      "warm_up": f"{height}x{width}"}  # fmt: skip
    server = stack.enter_context(started(model, options.output / f"server-{workers}.log", **server_options))
    client = await stack.enter_async_context(connected(server.url, image))
    await warm_up(client, workers)
    return Side(workers, server, client)


async def warm_up(client: Client, workers: int) -> None:
    """Makes the first calls of each worker, which create engines and connections.

    Raises:
        OptionError: A request fails, so that all would.
    """
    load = await closed_loop(client.detect(), 2 * workers, 1.0)
    wrong = {sample.outcome for sample in load.samples} - {ACCEPTED}
    if wrong:
        raise OptionError.make(
            "load_test", "first requests", expected="200", got=", ".join(sorted(wrong)), remedy="See the server's log."
        )


async def find_limits(sides: list[Side], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the best throughput of closed loops of several sizes, for each number of workers.

    The servers alternate, and the others are idle meanwhile: if the machine is slower for a while, this affects all of
    them.
    """
    steps: list[list[dict[str, Any]]] = [[] for _ in sides]
    for under_way in UNDER_WAY:
        for side, taken in zip(sides, steps, strict=True):
            load = await closed_loop(side.client.detect(), under_way * side.workers, options.limit_seconds)
            taken.append({"concurrency": under_way * side.workers, **load.to_json()})
    best = [max(step["throughput"] for step in taken) for taken in steps]
    return [
        {"workers": side.workers, "threads": options.threads, "throughput": throughput,
         "ratio": round(throughput / best[0], 3), "steps": taken}
        for side, throughput, taken in zip(sides, best, steps, strict=True)
    ]  # fmt: skip


async def at_share(
    client: Client, share: float, limit: float, seconds: float, deadline_ms: int | None = None
) -> dict[str, Any]:
    """Runs an open loop at a fraction of the limit."""
    load = await open_loop(client.detect(deadline_ms), share * limit, seconds)
    return described(load, share, limit)


def described(load: Load, share: float, limit: float) -> dict[str, Any]:
    """Returns the result of an open loop, with the offered rate."""
    return {"share": share, "offered": round(share * limit, 3), **load.to_json()}


async def overload(client: Client, server: Server, limit: float, options: argparse.Namespace) -> dict[str, Any]:
    """Offers more than the limit, with deadlines, then the lightest load again."""
    start = time.monotonic()
    memory = [{"second": 0.0, "mib": server.memory_mib()}]

    def sample() -> None:
        memory.append({"second": round(time.monotonic() - start, 3), "mib": server.memory_mib()})

    async def watch() -> None:
        while True:
            await asyncio.sleep(MEMORY_SECONDS)
            sample()

    watching = asyncio.create_task(watch())
    try:
        load = await open_loop(client.detect(options.deadline_ms), options.overload * limit, options.overload_seconds)
    finally:
        watching.cancel()
    sample()
    after = await at_share(client, min(options.shares) / 100, limit, options.seconds)
    late = sum(each.outcome == ACCEPTED and each.latency * 1e3 > options.deadline_ms for each in load.samples)
    return {
        "load": described(load, options.overload, limit),
        "late": late,
        "after": after,
        "memory_mib": {
            "start": memory[0]["mib"],
            "end": memory[-1]["mib"],
            "peak": server.memory_mib("VmHWM"),
            "samples": memory,
        },
    }


def save(results: dict[str, Any], directory: Path) -> None:
    """Writes load.json, load.md and load.png."""
    texts = {"load.json": json.dumps(results, indent=2) + "\n", "load.md": load_test_report.markdown(results)}
    for name, text in texts.items():
        with atomic_write(directory / name) as temporary:
            temporary.write_text(text)
    load_test_report.plot(results, directory / "load.png")


if __name__ == "__main__":
    main()
