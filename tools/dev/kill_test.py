"""Kills each verb that writes at random moments, and fills the disk: the old file or the new one must remain.

Each job runs in a separate process, forked from a server that has imported everything, so that only the work on a small
detector is killed, and the moments are close together. First, a job runs to its end, which gives its duration and the
new file. Exit code 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

import torch
from torch import nn

import hybrid_rt
from hybrid_rt.common.atomic_files import TEMPORARY_PREFIX

DAY = 24 * 3600
FAILED = 3
"""Exit code of a job that failed with one of our errors."""


class SmallDetector(nn.Module):
    """A detector with a megabyte of weights, so that a write takes some time, and one box per image."""

    def __init__(self) -> None:
        """Creates the weights with a fixed seed."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.backbone = nn.Sequential(nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 256, 3))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns boxes, labels and scores of images [N, 3, H, W]."""
        scores = self.backbone(images).mean((2, 3)).sigmoid()
        labels = scores.argmax(1)
        return {"boxes": torch.ones(len(labels), 4), "labels": labels, "scores": scores.amax(1)}


def _image() -> torch.Tensor:
    return torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)


def convert(path: str) -> None:
    """Replaces the bundle by one without a TorchScript variant."""
    hybrid_rt.convert(
        SmallDetector().eval(), (_image(),), path, segments="backbone", fallback=False, measure=False, golden=False
    )


def add_variant(path: str) -> None:
    """Adds a variant that needs no vendor's compiler."""
    hybrid_rt.add_variant(path, "torchscript:bf16", verify=False)


def remove_variant(path: str) -> None:
    """Removes OpenVINO's variant."""
    hybrid_rt.remove_variant(path, "openvino")


def swap(path: str) -> None:
    """Replaces the backbone by itself."""
    hybrid_rt.swap_backbone(path, SmallDetector().eval().backbone, path, engine="torchscript", verify=False)


def made_bundle(path: Path) -> None:
    """Writes the bundle that the jobs change."""
    hybrid_rt.convert(SmallDetector().eval(), (_image(),), path, segments="backbone", measure=False)


JOBS: dict[str, Callable[[str], None]] = {
    "convert": convert,
    "add-variant": add_variant,
    "remove-variant": remove_variant,
    "swap": swap,
}


def _run(job: str, path: str, cache: str, most_bytes: int | None) -> None:
    """Runs a job in its process, which has the server's environment."""
    os.environ["HYBRID_RT_CACHE"] = cache
    os.environ["HYBRID_RT_COMPILE_ISOLATION"] = "0"
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        JOBS[job](path)
    except hybrid_rt.HybridRTError:
        os._exit(FAILED)
    os._exit(0)


@dataclass(frozen=True)
class Outcome:
    """Outcome of one run: the file is the "old" one, a "new" one, or a description of the fault."""

    file: str
    code: int
    leftovers: int


class Trial:
    """Runs jobs on copies of a bundle in a separate directory."""

    def __init__(self, bundle: Path, directory: Path, cache: Path) -> None:
        """Reads the bundle.

        Args:
            bundle: The bundle.
            directory: Directory for the copies.
            cache: Directory of the jobs' cache.
        """
        self.cache = cache
        self.bundle = bundle.read_bytes()
        self.directory = directory
        self.path = directory / "model.pt"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tools.dev.kill_test"])

    def start(self, job: str, path: Path | None = None, most_bytes: int | None = None):
        """Starts a job. ``most_bytes`` limits the bytes that it may write to one file."""
        process = self._context.Process(target=_run, args=(job, str(path or self.path), str(self.cache), most_bytes))
        process.start()
        return process

    def run(self, job: str, *, kill_after: float | None = None, most_bytes: int | None = None) -> Outcome:
        """Runs a job on the old bundle until it ends or is killed."""
        for entry in self.directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.path.write_bytes(self.bundle)
        process = self.start(job, most_bytes=most_bytes)
        process.join(kill_after)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        return Outcome(self._state(), process.exitcode, len(self.leftovers()))

    def _state(self) -> str:
        if not self.path.exists():
            return "gone"
        if self.path.read_bytes() == self.bundle:
            return "old"
        try:
            hybrid_rt.check(self.path)
        except hybrid_rt.HybridRTError as error:
            return f"broken: {error}"
        return "new"

    def leftovers(self) -> list[Path]:
        """Returns the files that a process left next to the bundle."""
        return [entry for entry in self.directory.iterdir() if entry.name.startswith(TEMPORARY_PREFIX)]

    def a_day_later(self) -> int:
        """Returns the number of leftovers that a write keeps once they are a day old."""
        for entry in self.leftovers():
            os.utime(entry, (time.time() - 2 * DAY,) * 2)
        hybrid_rt.remove_variant(self.path, "torchscript", self.directory / "other.pt")
        return len(self.leftovers())


def kills(trial: Trial, job: str, number: int, chance: random.Random) -> Counter[str]:
    """Kills a job at that many moments of its duration, and counts the outcomes."""
    trial.run(job)  # starts the server and fills the cache
    begin = time.monotonic()
    whole = trial.run(job)
    seconds = time.monotonic() - begin
    found: Counter[str] = Counter()
    if whole != Outcome("new", 0, 0):
        found[f"not killed: {whole}"] += 1
    for _ in range(number):
        begin = time.monotonic()
        outcome = trial.run(job, kill_after=chance.uniform(0, seconds))
        if outcome.code == 0:  # it was faster than the timed run
            seconds = min(seconds, time.monotonic() - begin)
        found[outcome.file] += 1
        found["leftovers"] += outcome.leftovers
        found["ended by itself"] += outcome.code == 0
        if outcome.leftovers > 1:
            found["several leftovers"] += 1
        if outcome.leftovers and outcome.file == "old" and trial.a_day_later():
            found["leftovers that stay"] += 1
    return found


def full_disk(trial: Trial, job: str, number: int) -> Counter[str]:
    """Runs a job with a decreasing limit on the bytes that it may write, down to none."""
    trial.run(job)
    size = trial.path.stat().st_size
    found: Counter[str] = Counter()
    for i in range(number):
        outcome = trial.run(job, most_bytes=size * i // number)
        found[outcome.file] += 1
        found["leftovers"] += outcome.leftovers
        if outcome.code != FAILED:
            found[f"ended with {outcome.code}"] += 1
    return found


def caches(trial: Trial, number: int, chance: random.Random) -> Counter[str]:
    """Runs two conversions on one empty cache and kills one: the other one, and a third, must be right."""
    found: Counter[str] = Counter()
    seconds = 0.0
    for i in range(number + 1):
        trial.cache = trial.directory / "cache"
        shutil.rmtree(trial.cache, ignore_errors=True)
        begin = time.monotonic()
        paths = [trial.directory / f"{name}.pt" for name in ("killed", "other", "third")]
        for path in paths:
            path.unlink(missing_ok=True)
        killed, other = (trial.start("convert", path) for path in paths[:2])
        killed.join(chance.uniform(0, seconds) if i else None)
        if killed.is_alive():
            os.kill(killed.pid, signal.SIGKILL)
        for process in (killed, other):
            process.join()
        seconds = seconds or time.monotonic() - begin
        third = trial.start("convert", paths[2])
        third.join()
        for path in paths[1:]:
            try:
                hybrid_rt.check(path)
                found["whole"] += 1
            except hybrid_rt.HybridRTError as error:
                found[f"broken: {error}"] += 1
    return found


def is_fine(found: Counter[str]) -> bool:
    """Returns true if every outcome keeps the promise."""
    promised = {"old", "new", "whole", "leftovers", "ended by itself"}
    return all(name in promised for name, count in found.items() if count)


def table(rows: dict[str, Counter[str]]) -> str:
    """Returns a table in Markdown."""
    lines = ["| what | found | leftovers beside the file |", "|---|---|---|"]
    for name, found in rows.items():
        rest = ", ".join(f"{count} {what}" for what, count in found.items() if count and what != "leftovers")
        lines.append(f"| {name} | {rest} | {found['leftovers']} |")
    return "\n".join(lines)


def main() -> int:
    """Runs all jobs and prints the table."""
    parser = argparse.ArgumentParser(prog="tools/kill_test", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each verb (default: 100)")
    parser.add_argument("--sizes", type=int, default=20, help="of the disk, for each verb (default: 20)")
    parser.add_argument("--caches", type=int, default=10, help="pairs of processes on one cache (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args()
    rows: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="hybrid_rt_kills_") as temporary:
        bundle, directory, cache = (Path(temporary) / name for name in ("bundle.pt", "trial", "warm_cache"))
        os.environ["HYBRID_RT_CACHE"] = str(cache)
        directory.mkdir()
        made_bundle(bundle)
        trial = Trial(bundle, directory, cache)
        for job in JOBS:
            rows[f"{job}, {options.kills} kills"] = kills(trial, job, options.kills, random.Random(options.seed))
            rows[f"{job}, {options.sizes} full disks"] = full_disk(trial, job, options.sizes)
            print(table(rows), flush=True)  # intermediate results, because it takes long
        rows[f"two on one cache, {options.caches} kills"] = caches(trial, options.caches, random.Random(options.seed))
    print(table(rows))
    return 0 if all(map(is_fine, rows.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
