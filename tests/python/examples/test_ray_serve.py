"""Tests of the Ray Serve application: several local replicas, one of them killed while requests run."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hybrid_rt
from examples.ray_serve import client
from helpers.paths import ROOT
from hybrid_rt.common.images import read_image

pytestmark = [pytest.mark.slow, pytest.mark.service]

PROCESS_FILES = ("cmdline", "environ")
IMAGES = sorted((ROOT / "models" / "held_out").glob("*.png"))[:4]


@pytest.fixture(scope="module")
def one_image_bundle(tmp_path_factory: pytest.TempPathFactory, demo_detector: nn.Module) -> Path:
    """Returns a bundle whose segment takes no batch."""
    path = tmp_path_factory.mktemp("bundles") / "one.pt"
    hybrid_rt.convert(
        demo_detector,
        ([read_image(IMAGES[0])],),
        path,
        segments="backbone",
        engine="torchscript",
        shapes={"batch": (1, 1), "height": (128, 416), "width": (128, 416)},
        golden=False,
        measure=False,
    )
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(directory: str, token: str) -> list[str]:
    """Returns the command lines of processes that name Ray's directory or inherited the token: servers and workers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((process / name).read_bytes().decode(errors="replace") for name in PROCESS_FILES)
        except OSError:  # it has ended, or belongs to another user
            continue
        if directory in command or token in environment:
            found.append(command.replace("\0", " "))
    return found


@pytest.fixture(scope="module")
def seen(demo_bundle: Path, one_image_bundle: Path) -> Iterator[dict[str, Any]]:
    """Returns the scenario's observations. Its directory has a short name, as Ray's sockets require."""
    directory = tempfile.mkdtemp(prefix="ray")
    command = [sys.executable, Path(__file__).parents[1] / "helpers" / "ray_serve_scenario.py"]
    command += [demo_bundle, one_image_bundle, str(free_port()), directory, *IMAGES]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # otherwise Ray writes one to the home directory
    }
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        result["left"] = processes_of(directory, environment["RAY_AUTH_TOKEN"])
        yield result
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def expected(demo_bundle: Path) -> list[dict[str, torch.Tensor]]:
    detector = hybrid_rt.load(demo_bundle, threads=1)
    with torch.inference_mode():
        return [detector([read_image(path)])[0] for path in IMAGES]


def assert_entry(entry: dict[str, Any], want: dict[str, torch.Tensor], tolerance: float) -> None:
    """Checks for the same boxes in the same order, except where scores are equal."""
    detections = entry["detections"]
    assert len(detections) == len(want["scores"]) >= 5
    order = sorted(range(len(detections)), key=lambda i: [round(x) for x in detections[i]["box"]])
    wanted = sorted(range(len(detections)), key=lambda i: [round(x) for x in want["boxes"][i].tolist()])
    boxes = torch.tensor([detections[i]["box"] for i in order])
    torch.testing.assert_close(boxes, want["boxes"][wanted], atol=tolerance, rtol=0.0)
    assert [detections[i]["label"] for i in order] == want["labels"][wanted].tolist()


def test_no_request_is_lost_when_a_replica_is_killed(
    seen: dict[str, Any], expected: list[dict[str, torch.Tensor]]
) -> None:
    kill = seen["kill"]
    assert len(kill["answers"]) == 60
    assert kill["retried"] >= 1  # the killed replica had requests, which the client retried
    assert {image for image, _ in kill["answers"]} == set(range(len(IMAGES)))
    for image, answer in kill["answers"]:
        assert answer["engines"] == {"backbone": "openvino"}
        assert set(answer["timing_ms"]) == {"queue", "decode", "run", "total"}
        assert_entry(answer["pictures"][0], expected[image], 1e-3)


def test_a_killed_replica_is_replaced(seen: dict[str, Any]) -> None:
    kill = seen["kill"]
    assert kill["replaced"]
    assert len(kill["before"]) == len(kill["after"]) == 2
    assert kill["killed"] in kill["before"]
    assert kill["killed"] not in kill["after"]


def test_boxes_of_batches_are_those_of_single_images(
    seen: dict[str, Any], expected: list[dict[str, torch.Tensor]]
) -> None:
    assert 2 <= seen["largest batch"] <= 4
    assert len(seen["batched"]) >= 8
    for image, answer in seen["batched"]:
        assert_entry(answer["pictures"][0], expected[image], 0.05)


def test_more_replicas_come_while_requests_wait(seen: dict[str, Any]) -> None:
    assert seen["replicas under load"] == 2


def test_a_batch_that_the_bundle_does_not_take_fails_at_the_start(seen: dict[str, Any]) -> None:
    assert "hybrid_rt[ray]: max_batch=4: expected a batch size that the detector accepts" in seen["too large a batch"]
    assert "expected 1x3x128..416x128..416" in seen["too large a batch"]


def test_a_handle_gives_the_image_s_entry(seen: dict[str, Any]) -> None:
    entry = seen["by handle"]
    assert entry == seen["min_score"]["pictures"][0]
    assert (entry["height"], entry["width"]) == tuple(read_image(IMAGES[0]).shape[1:])
    scores = [detection["score"] for detection in entry["detections"]]
    assert 0 < len(scores) < len(seen["kill"]["answers"][0][1]["pictures"][0]["detections"])
    assert min(scores) >= 0.5


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("text", 415, "got 'text/plain'"),
        ("no image", 422, "expected a JPEG or PNG, got something else"),
        ("truncated", 422, "expected a JPEG or PNG, got image file is truncated"),
        ("empty", 400, "got an empty body"),
        ("too large", 413, "expected at most 2.0 MB, got 3.0"),
        ("score", 400, "min_score: expected a number in 0..1, got '2'"),
        ("name", 400, "query: expected min_score, masks, got 'colour'"),
        ("path", 404, "Not Found"),
        ("method", 405, "Method Not Allowed"),
    ],
)
def test_a_bad_request_gets_the_reason(seen: dict[str, Any], name: str, status: int, text: str) -> None:
    code, kind, body = seen["refusals"][name]
    assert (code, kind) == (status, "application/problem+json")
    assert body["status"] == status
    assert text in body["detail"]
    assert body["request_id"] == name


def test_a_full_queue_is_a_503(seen: dict[str, Any]) -> None:
    assert set(seen["at once"]) == {200, 503}


def test_nothing_is_left_running(seen: dict[str, Any]) -> None:
    assert seen["left"] == []


# The client, without Ray


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """Yields a server that sends each of its ``replies`` in turn: (status, content type, body)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, kind, body = self.server.replies.pop(0)  # type: ignore[attr-defined]
            if not status:  # closes the connection
                return
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield http
        http.shutdown()
        thread.join()


DONE = (200, "application/json", b'{"pictures": []}')


def ask(server: HTTPServer, replies: list[tuple[int, str, bytes]], tries: int = 8) -> tuple[dict[str, Any], int]:
    server.replies = replies  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{server.server_port}/v1/detect"
    return client.detect(url, b"image", tries=tries, wait_s=0.01)


def test_the_client_retries_what_another_replica_may_answer(server: HTTPServer) -> None:
    lost = (500, "text/plain", b"Internal Server Error")
    assert ask(server, [(503, "text/plain", b""), lost, (0, "", b""), DONE]) == ({"pictures": []}, 4)


@pytest.mark.parametrize("status", [400, 415, 422, 500])
def test_the_client_does_not_retry_refusals_of_the_application(server: HTTPServer, status: int) -> None:
    refused = (status, "application/problem+json", b'{"detail": "no image"}')
    with pytest.raises(client.Failed, match=f"^{status}: .*no image"):
        ask(server, [refused, DONE])
    assert server.replies == [DONE]  # type: ignore[attr-defined]


def test_the_client_gives_up_after_its_tries(server: HTTPServer) -> None:
    with pytest.raises(client.Failed, match="2 tries failed, the last one with 503"):
        ask(server, [(503, "text/plain", b"full")] * 2, tries=2)
