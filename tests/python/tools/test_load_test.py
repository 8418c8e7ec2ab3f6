"""Tests of tools/load_test: the counts of its loops, and the files of a short run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tools.load import client as load_test_client
from tools.load import report as load_test_report

# The loops


def test_an_open_loop_sends_all_that_is_due_and_counts_outcomes() -> None:
    outcomes = iter(["200", "503", "200", "504", "TimeoutError", "200"])

    async def send() -> str:
        return next(outcomes)

    load = asyncio.run(load_test_client.open_loop(send, rate=60, seconds=0.1))
    counted = load.to_json()
    assert counted["requests"] == 6
    assert counted["accepted"] == 3
    assert counted["refused"] == {"503": 1, "504": 1}
    assert counted["failed"] == {"TimeoutError": 1}


def test_an_open_loop_does_not_wait_for_answers() -> None:
    under_way = most = 0

    async def send() -> str:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.3)
        under_way -= 1
        return "200"

    asyncio.run(load_test_client.open_loop(send, rate=50, seconds=0.2))
    assert most == 10


def test_latency_counts_from_when_a_request_was_due() -> None:
    async def send() -> str:
        time.sleep(0.2)  # the whole client pauses, as in a garbage collection
        return "200"

    load = asyncio.run(load_test_client.open_loop(send, rate=1000, seconds=0.003))
    latencies = sorted(sample.latency for sample in load.samples)
    # All three were due within 2 ms, and run one after the other.
    assert [latency > 0.19 * (i + 1) for i, latency in enumerate(latencies)] == [True] * 3
    assert max(sample.delay for sample in load.samples) > 0.19


def test_a_closed_loop_keeps_a_fixed_number_in_flight() -> None:
    seen: Counter[int] = Counter()
    under_way = 0

    async def send() -> str:
        nonlocal under_way
        under_way += 1
        seen[under_way] += 1
        await asyncio.sleep(0.01)
        under_way -= 1
        return "200"

    load = asyncio.run(load_test_client.closed_loop(send, concurrency=3, seconds=0.1))
    assert max(seen) == 3
    assert len(load.samples) == sum(seen.values()) >= 3


def test_nothing_accepted_has_no_latency_but_a_send_delay() -> None:
    async def send() -> str:
        time.sleep(0.2)  # the second request is due after 10 ms
        return "503"

    counted = asyncio.run(load_test_client.open_loop(send, rate=100, seconds=0.02)).to_json()
    assert counted["latency_ms"] is None
    assert counted["throughput"] == 0
    assert counted["send_delay_ms"]["p99"] > 180


# The whole tool


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.load.main", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, demo_bundle: Path) -> Path:
    """Returns the directory written by a run of a few seconds."""
    directory = tmp_path_factory.mktemp("load")
    done = run(
        *("--model", demo_bundle, "--size", 120, 160, "--workers", 1, 2, "--limit-seconds", 0.5, "--seconds", 0.5),
        *("--shares", 50, 100, "--overload-seconds", 1, "--deadline-ms", 200, "--queue", 4, "--output", directory),
    )
    assert done.returncode == 0, done.stderr
    assert "## The limit" in done.stdout
    return directory


@pytest.fixture(scope="module")
def results(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "load.json").read_text())


def check_load(load: dict[str, Any]) -> None:
    assert load["accepted"] + sum(load["refused"].values()) + sum(load["failed"].values()) == load["requests"] > 0
    assert load["failed"] == {}
    assert set(load["refused"]) <= {"503", "504"}
    assert load["throughput"] == pytest.approx(load["accepted"] / load["seconds"], rel=0.01)
    latency = load["latency_ms"]
    assert (latency is None) == (load["accepted"] == 0)
    if latency:
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]


@pytest.mark.slow
@pytest.mark.service
def test_a_short_run_has_all_parts(results: dict[str, Any]) -> None:
    assert results["schema_version"] == 1
    assert results["picture"]["height"] == 120
    assert results["machine"]["cores"] > 0
    assert [limit["workers"] for limit in results["limits"]] == [1, 2]
    for limit in results["limits"]:
        assert [step["concurrency"] // limit["workers"] for step in limit["steps"]] == [1, 2, 4]
        assert limit["throughput"] == max(step["throughput"] for step in limit["steps"]) > 0
        assert limit["ratio"] == pytest.approx(limit["throughput"] / results["limits"][0]["throughput"], abs=0.01)
        for step in limit["steps"]:
            check_load(step)
    assert [step["share"] for step in results["ladder"]] == [0.5, 1.0]
    for step in results["ladder"]:
        check_load(step)
        assert step["offered"] == pytest.approx(step["share"] * results["limits"][1]["throughput"], rel=0.01)


@pytest.mark.slow
@pytest.mark.service
def test_the_overload_says_what_became_of_each_request(results: dict[str, Any]) -> None:
    overload = results["overload"]
    check_load(overload["load"])
    check_load(overload["after"])
    assert overload["load"]["share"] == 3
    assert overload["load"]["requests"] == pytest.approx(overload["load"]["offered"], abs=1)  # in one second
    assert 0 <= overload["late"] <= overload["load"]["accepted"]
    memory = overload["memory_mib"]
    assert len(memory["samples"]) >= 2
    assert [sample["second"] for sample in memory["samples"]] == sorted(
        sample["second"] for sample in memory["samples"]
    )
    assert memory["start"] == memory["samples"][0]["mib"] > 10
    assert memory["end"] == memory["samples"][-1]["mib"]
    assert memory["peak"] >= max(sample["mib"] for sample in memory["samples"])


@pytest.mark.slow
@pytest.mark.service
def test_the_files_are_whole(directory: Path, results: dict[str, Any]) -> None:
    names = {path.name for path in directory.iterdir()}
    assert names == {"load.json", "load.md", "load.png", "server-1.log", "server-2.log"}
    assert (directory / "load.md").read_text() == load_test_report.markdown(results)
    with Image.open(directory / "load.png") as plot:
        assert len(plot.convert("RGB").getcolors(1 << 24) or []) > 100
    for log in directory.glob("*.log"):
        assert all(isinstance(json.loads(line), dict) for line in log.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.service
def test_hostile_clients_block_nobody(tmp_path: Path, demo_bundle: Path) -> None:
    done = run(
        *("--hostile", "--model", demo_bundle, "--size", 96, 128, "--connections", 40, "--slow-clients", 20),
        *("--hold-seconds", 1, "--requests", 16, "--output", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "hostile.json").read_text())
    rows = {row["attack"]: row for row in found["rows"]}
    assert all(row["failed_probes"] == 0 < row["probes"] for row in rows.values()), rows
    assert all(sum(row["outcomes"].values()) == row["sent"] for row in rows.values()), rows
    assert rows["request smuggling shapes"]["outcomes"] == {"400": rows["request smuggling shapes"]["sent"]}
    assert rows["the same with 5,000 scans"]["outcomes"] == {"422": 3}
    assert set(rows["mixed good and broken images"]["outcomes"]) <= {"200", "400", "415", "422"}
    assert rows["40 connections that are let in and stay silent"]["outcomes"]["open"] == 40
    assert (tmp_path / "hostile.md").read_text() in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "hybrid_rt[load_test]: --seconds: expected more than 0, got 0.0."),
        (["--workers", "1", "0"], "hybrid_rt[load_test]: --workers: expected more than 0, got [1, 0]."),
        (["--hold-seconds", "0"], "hybrid_rt[load_test]: --hold-seconds: expected more than 0, got 0.0."),
        (["--workers", "2", "2"], "hybrid_rt[load_test]: --workers: expected each once, got [2, 2]."),
        (["--model", "missing.pt"], "hybrid_rt[load_test]: hybrid-rt-serve: expected to serve, got exit code 4."),
    ],
)
def test_impossible_values_are_reported(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*arguments, "--output", tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "load.json").exists()
