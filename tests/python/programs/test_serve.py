"""Tests of the installed hybrid-rt-serve: responses, refusals, failures, and how it stops."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from safetensors.numpy import save
from torch import Tensor

import hybrid_rt
from helpers.bundle_surgery import rewrite_manifest
from helpers.serving import Answer, Server, ServerEnded, serving
from helpers.small_detectors import ListDetector, small_detector, small_image
from hybrid_rt.common.executables import program
from models import digits_detector

pytestmark = [pytest.mark.slow, pytest.mark.service]

SMALL = "128x128"  # a small size for a quick warm-up


class EverythingDetector(ListDetector):
    """Returns masks and keypoints for each box, with torchvision's names."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for image in images:
            boxes, scores, labels = self.detector(image[None])
            brightness = image.mean(dim=0)
            masks = torch.stack([(brightness * (0.5 + score)) for score in scores])[:, None]
            corners = torch.stack([boxes[:, :2], boxes[:, 2:]], dim=1)
            keypoints = torch.cat([corners, torch.ones_like(corners[:, :, :1])], dim=2)
            found.append(
                {
                    "boxes": boxes,
                    "scores": scores,
                    "labels": labels,
                    "masks": masks,
                    "keypoints": keypoints,
                    "keypoints_scores": scores[:, None].expand(-1, 2),
                }
            )
        return found


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Iterator[Server]:
    with serving(demo_bundle, workers=2, warm_up=SMALL) as running:
        yield running


def problem(answer: Answer, status: int) -> str:
    """Returns the detail of a refusal."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert set(document) == {"type", "title", "status", "detail", "request_id"}
    assert document["status"] == status
    assert document["request_id"] == answer.headers["x-request-id"]
    assert ": expected " in document["detail"]
    return document["detail"]


def only_entry(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/json"
    (entry,) = answer.json()["pictures"]
    return entry


def assert_found(entry: dict[str, Any], expected: dict[str, Tensor], atol: float = 1e-3) -> None:
    detections = entry["detections"]
    assert detections
    assert [found["label"] for found in detections] == expected["labels"].tolist()
    scores = torch.tensor([found["score"] for found in detections])
    torch.testing.assert_close(scores, expected["scores"], rtol=0, atol=atol)
    boxes = torch.tensor([found["box"] for found in detections])
    torch.testing.assert_close(boxes, expected["boxes"], rtol=0, atol=1e-2)


def form(*images: bytes, name: str = "image") -> tuple[bytes, str]:
    boundary = "a-boundary"
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'.encode() + each + b"\r\n"
        for each in images
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


# Responses


def test_it_gives_the_boxes_of_python(
    server: Server, demo_bundle: Path, demo_image_path: Path, demo_image: Tensor
) -> None:
    (expected,) = hybrid_rt.load(demo_bundle)([demo_image])
    answer = server.detect(demo_image_path)
    entry = only_entry(answer)
    assert_found(entry, expected)
    assert (entry["height"], entry["width"]) == tuple(demo_image.shape[1:])
    document = answer.json()
    assert document["model"] == "digits"
    assert document["engines"] == {"backbone": "openvino"}
    assert set(document["timing_ms"]) == {"queue", "decode", "run", "total"}
    assert document["timing_ms"]["total"] >= document["timing_ms"]["run"] > 0


def test_a_form_of_several_images_is_answered_in_order(
    server: Server, demo_bundle: Path, demo_image_path: Path
) -> None:
    small = png(np.zeros((64, 96, 3), np.uint8))
    body, content_type = form(demo_image_path.read_bytes(), small)
    answer = server.detect(body, content_type=content_type)
    assert answer.status == 200, answer.body
    first, second = answer.json()["pictures"]
    assert first == only_entry(server.detect(demo_image_path))
    assert (second["height"], second["width"]) == (64, 96)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_tensors_are_images_too(server: Server, demo_image_path: Path, dtype: str) -> None:
    pixels = np.asarray(Image.open(demo_image_path).convert("RGB"))
    if dtype == "float32":
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    entry = only_entry(server.detect(save({"any": pixels}), content_type="application/x-safetensors"))
    assert entry == only_entry(server.detect(demo_image_path))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 3e38])
def test_values_that_are_not_pixels_are_refused(server: Server, value: float) -> None:
    """A bundle would return boxes for them without an error."""
    pixels = np.full((3, 96, 96), 0.5, np.float32)
    pixels[2, 95, 95] = value
    answer = server.detect(save({"any": pixels}), content_type="application/x-safetensors")
    assert 'tensor "any": expected values in 0..1, got ' in problem(answer, 422)


@pytest.mark.parametrize("boundary", ["x", "xy", '"a b"'])
def test_a_boundary_of_one_character_is_refused_with_its_name(
    server: Server, demo_image_path: Path, boundary: str
) -> None:
    """The HTTP library reads at least two characters."""
    body, _ = form(demo_image_path.read_bytes())
    body = body.replace(b"a-boundary", boundary.strip('"').encode())
    answer = server.detect(body, content_type=f"multipart/form-data; boundary={boundary}")
    if len(boundary) == 1:
        assert "Check its boundary" in problem(answer, 400)
    else:
        assert answer.status == 200, answer.body


def test_a_jpeg_has_pillows_pixels(server: Server, demo_bundle: Path, demo_image_path: Path) -> None:
    stream = io.BytesIO()
    Image.open(demo_image_path).convert("RGB").save(stream, format="JPEG", quality=90)
    pixels = torch.tensor(np.asarray(Image.open(io.BytesIO(stream.getvalue()))))
    (expected,) = hybrid_rt.load(demo_bundle)([pixels.permute(2, 0, 1).float().div(255).contiguous()])
    assert_found(only_entry(server.detect(stream.getvalue(), content_type="image/jpeg")), expected)


def test_min_score_leaves_out_what_scores_less(server: Server, demo_image_path: Path) -> None:
    everything = only_entry(server.detect(demo_image_path))["detections"]
    confident = only_entry(server.detect(demo_image_path, "?min_score=0.9"))["detections"]
    assert confident == [found for found in everything if found["score"] >= 0.9]
    assert 0 < len(confident) < len(everything)


def test_an_annotated_image_shows_the_boxes(server: Server, demo_image_path: Path) -> None:
    answer = server.detect(demo_image_path, "?annotated=true&min_score=0.5")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    drawn = np.asarray(Image.open(io.BytesIO(answer.body)).convert("RGB")).astype(int)
    before = np.asarray(Image.open(demo_image_path).convert("RGB")).astype(int)
    assert drawn.shape == before.shape
    changed = (drawn != before).any(axis=2)
    assert 0.001 < changed.mean() < 0.5


def turned_by_camera(entry: Path, orientation: int) -> bytes:
    """Returns a JPEG whose EXIF data state the orientation of the camera."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(entry).convert("RGB").save(stream, format="JPEG", quality=95, exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_is_applied_on_request(server: Server, demo_image_path: Path, orientation: int) -> None:
    body = turned_by_camera(demo_image_path, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    as_stored = only_entry(server.detect(body))
    turned = only_entry(server.detect(body, "?exif=true"))
    assert as_stored == only_entry(server.detect(body, "?exif=false"))
    with Image.open(demo_image_path) as stored:
        assert (as_stored["width"], as_stored["height"]) == stored.size
    assert (turned["width"], turned["height"]) == upright.size
    assert turned == only_entry(server.detect(png(np.asarray(upright)), "?exif=true"))
    drawn = server.detect(body, "?exif=true&annotated=true&min_score=1")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(drawn.body)).convert("RGB")), np.asarray(upright))


def test_a_server_that_turns_images_leaves_one_as_stored_where_it_is_asked_to(
    demo_bundle: Path, demo_image_path: Path
) -> None:
    body = turned_by_camera(demo_image_path, 6)
    with serving(demo_bundle, exif=True, warm_up=SMALL) as server:
        turned, as_stored = (only_entry(server.detect(body, query)) for query in ("", "?exif=false"))
    assert (turned["width"], turned["height"]) == (as_stored["height"], as_stored["width"])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # from pycocotools with numpy 2
def test_masks_and_keypoints_are_answered(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = EverythingDetector(small_detector()).eval()
    image = small_image()[0]
    hybrid_rt.convert(
        detector, ([image],), tmp_path / "all.pt", segments=["detector.backbone"], verify=False, measure=False
    )
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    exact = torch.tensor(pixels).permute(2, 0, 1).float().div(255).contiguous()
    (expected,) = hybrid_rt.load(tmp_path / "all.pt")([exact])
    names = tmp_path / "names.txt"
    names.write_text("nothing\none\ntwo\n")
    with serving(tmp_path / "all.pt", warm_up="32x32", labels=names) as small:
        entry = only_entry(small.detect(png(pixels)))
        without = only_entry(small.detect(png(pixels), "?masks=false"))
    assert_found(entry, expected)
    for i, found in enumerate(entry["detections"]):
        wanted = (expected["masks"][i, 0] >= 0.5).numpy().astype(np.uint8)
        assert np.array_equal(coco_mask.decode(found["mask"]), wanted)
        torch.testing.assert_close(torch.tensor(found["keypoints"]), expected["keypoints"][i], rtol=0, atol=1e-2)
        assert len(found["keypoint_scores"]) == 2
        assert found["class_name"] == found["name"] == ["nothing", "one", "two"][found["label"]]
    assert {found["mask"]["counts"] for found in entry["detections"]} != {""}
    assert not any("mask" in found for found in without["detections"])


def test_class_names_are_those_of_the_bundle(server: Server, demo_image_path: Path) -> None:
    (model,) = server.request("/v1/models").json()["models"]
    assert model["class_names"] == list(digits_detector.CLASS_NAMES)
    detections = only_entry(server.detect(demo_image_path))["detections"]
    assert detections
    for found in detections:
        assert found["class_name"] == found["name"] == digits_detector.CLASS_NAMES[found["label"]]


def test_a_bundle_without_class_names_is_answered_without_them(
    demo_bundle: Path, demo_image_path: Path, tmp_path: Path
) -> None:
    nameless = rewrite_manifest(demo_bundle, tmp_path / "digits.pt", lambda manifest: manifest.pop("class_names"))
    with serving(nameless, warm_up=SMALL) as served:
        assert served.request("/v1/models").json()["models"][0]["class_names"] == []
        for found in only_entry(served.detect(demo_image_path))["detections"]:
            assert list(found) == ["box", "label", "score"]
        shutil.copy(demo_bundle, tmp_path / "new.pt")
        (tmp_path / "new.pt").replace(nameless)
        served.request("/v1/reload", b"")
        (best, *_) = only_entry(served.detect(demo_image_path))["detections"]
        assert best["class_name"] == digits_detector.CLASS_NAMES[best["label"]]


def test_a_request_id_goes_through_answer_and_log(server: Server, demo_image_path: Path) -> None:
    answer = server.detect(demo_image_path, X_Request_Id="mine-42")
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine-42"
    entry = server.wait_for("request", request_id="mine-42")
    assert (entry["status"], entry["model"]) == (200, "digits")
    other = server.detect(demo_image_path, X_Request_Id="not in one word")
    assert other.headers["x-request-id"] != "not in one word"


def test_served_models_are_listed(server: Server) -> None:
    assert server.request("/healthz").body == b"ok\n"
    assert server.request("/readyz").body == b"ready\n"
    (model,) = server.request("/v1/models").json()["models"]
    assert (model["name"], model["state"], model["engines"]) == ("digits", "ready", {"backbone": "openvino"})
    head = server.request("/healthz", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    page = server.request("/")
    assert page.headers["content-security-policy"].startswith("default-src 'none';")


def metrics(server: Server) -> dict[str, float]:
    lines = [line for line in server.request("/metrics").body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_count_what_was_answered(server: Server, demo_image_path: Path) -> None:
    answered = 'hybrid_rt_requests_total{code="200",model="digits"}'
    runs = 'hybrid_rt_stage_seconds_count{model="digits",stage="run"}'
    before = metrics(server)
    server.detect(demo_image_path)
    after = metrics(server)
    assert after[answered] == before.get(answered, 0) + 1
    assert after[runs] == before.get(runs, 0) + 1
    assert after['hybrid_rt_engine_info{model="digits",segment="backbone",backend="openvino"}'] == 1
    assert after['hybrid_rt_workers{model="digits"}'] == 2
    assert after["hybrid_rt_ready"] == 1
    assert after["process_resident_memory_bytes"] > 1e7


# Refusals


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/../../etc/passwd", "GET", 404),
        ("/v1/detect/../../../etc/passwd", "GET", 404),
        ("/v1/models%00x", "GET", 404),
        ("/v1/detect", "GET", 405),
        ("/v1/models", "POST", 405),
        ("/", "DELETE", 405),
    ],
)
def test_unknown_paths_and_methods(server: Server, path: str, method: str, status: int) -> None:
    answer = server.request(path, method=method)
    problem(answer, status)
    assert status != 405 or answer.headers["allow"] in ("POST", "GET, HEAD")


@pytest.mark.parametrize(
    ("query", "status", "part"),
    [
        ("?model=../digits", 404, "query model"),
        ("?model=", 400, "query model"),
        ("?min_score=2", 400, "query min_score"),
        ("?deadline_ms=soon", 400, "query deadline_ms"),
        ("?min_score=0.5%00", 400, "query min_score"),
        ("?unknown=1", 400, "got 'unknown'"),
    ],
)
def test_a_wrong_query(server: Server, demo_image_path: Path, query: str, status: int, part: str) -> None:
    assert part in problem(server.detect(demo_image_path, query), status)


@pytest.mark.parametrize(
    "content_type", ["image/jpg", "image/*", "IMAGE/PNG", "image/png; charset=binary", "binary/octet-stream"]
)
def test_types_as_clients_send_them(server: Server, demo_image_path: Path, content_type: str) -> None:
    """Checks that the bytes determine the type of an image."""
    assert server.detect(demo_image_path.read_bytes(), content_type=content_type).status == 200


def test_bodies_that_are_not_images(server: Server, demo_image_path: Path) -> None:
    whole = demo_image_path.read_bytes()
    assert "expected an image, got no bytes" in problem(server.detect(b""), 400)
    assert "expected a JPEG or PNG" in problem(server.detect(b"GIF89a"), 422)
    assert "undamaged PNG" in problem(server.detect(whole[: len(whole) // 2]), 422)
    assert "application/x-safetensors, got 'text/plain'." in problem(
        server.detect(whole, content_type="text/plain"), 415
    )
    body, content_type = form(whole, name="file")
    assert "one named 'file'" in problem(server.detect(body, content_type=content_type), 400)
    body, _ = form(whole)
    assert "boundary" in problem(server.detect(body, content_type="multipart/form-data"), 400)
    assert "multipart" in problem(server.detect(body[:100], content_type=content_type), 400)
    body, content_type = form(whole, whole)
    assert "one image" in problem(server.detect(body, "?annotated=true", content_type=content_type), 400)
    assert server.detect(demo_image_path).status == 200


def test_an_image_that_would_fill_the_memory_is_refused_by_its_header(server: Server) -> None:
    bomb = png(np.zeros((9000, 9000), np.uint8))
    assert len(bomb) < 1_000_000
    assert "expected at most 16384 pixels per side and 25 megapixels, got 9000x9000" in problem(
        server.detect(bomb), 422
    )


def test_an_image_too_thin_for_any_detector_is_refused(server: Server) -> None:
    assert "sides of at most 100 to 1, got 2000x1" in problem(server.detect(png(np.zeros((1, 2000, 3), np.uint8))), 422)


def test_a_page_of_another_site_can_do_nothing(server: Server, demo_image_path: Path) -> None:
    assert "cross-site" in problem(server.detect(demo_image_path, Sec_Fetch_Site="cross-site"), 403)
    assert server.request("/v1/reload", b"", headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    assert server.detect(demo_image_path, Sec_Fetch_Site="same-origin").status == 200


def test_a_client_that_expects_100_continue_sends_no_useless_body(server: Server) -> None:
    with socket.create_connection((server.address, server.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 415 ")


def test_limits_of_bodies_and_of_their_number(demo_bundle: Path, demo_image_path: Path) -> None:
    with serving(demo_bundle, warm_up=SMALL, max_body_mb=1, max_images=2) as small:
        for size in (1_100_000, 1_900_000, 9_000_000):
            assert "1048576 bytes" in problem(small.detect(bytes(size)), 413)
        assert metrics(small)['hybrid_rt_requests_total{code="413",model=""}'] == 3
        body, content_type = form(*[demo_image_path.read_bytes()] * 3)
        assert "at most 2" in problem(small.detect(body, content_type=content_type), 400)
        assert small.detect(demo_image_path).status == 200


def test_without_the_token_nothing_is_disclosed(demo_bundle: Path, demo_image_path: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with serving(demo_bundle, warm_up=SMALL, token_file=token) as guarded:
        for path in ("/v1/models", "/metrics", "/nothing"):
            assert guarded.request(path).status == 401
        answer = guarded.detect(demo_image_path)
        problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer s3cre", "Bearer s3cretx", "Basic s3cret", "s3cret"):
            assert guarded.detect(demo_image_path, Authorization=wrong).status == 401
        assert guarded.detect(demo_image_path, Authorization="Bearer s3cret").status == 200
        assert guarded.detect(demo_image_path, Authorization="bearer s3cret").status == 200
        assert guarded.request("/v1/reload", b"", headers={}).status == 401
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert guarded.request(path).status == 200
        assert not any("s3cret" in line for line in guarded.lines)


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"POST /v1/detect HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"b" * 100_000 + b"\r\n\r\n",
     b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
    ids=["TLS", "no version", "negative length", "endless header", "bad chunk"],
)  # fmt: skip
def test_malformed_http_ends_its_connection_only(server: Server, garbage: bytes) -> None:
    with socket.create_connection((server.address, server.port), timeout=30) as connection:
        said = b""
        try:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(4096):
                said += chunk
        except TimeoutError:
            raise
        except OSError:  # closed before everything was sent
            pass
    assert said == b"" or said.startswith(b"HTTP/1.1 4")
    assert server.request("/healthz").status == 200


# Load, deadlines, stopping


def all_at_once(count: int, call: Any) -> list[Answer]:
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(call())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == count
    return answers


def test_a_full_queue_has_a_retry_after(demo_bundle: Path, demo_image_path: Path) -> None:
    with serving(demo_bundle, workers=1, queue=2, warm_up=SMALL) as busy:
        answers = all_at_once(12, lambda: busy.detect(demo_image_path))
        refused = [answer for answer in answers if answer.status != 200]
        assert {answer.status for answer in answers} == {200, 503}
        for answer in refused:
            assert "room for 1 in the queue of 2" in problem(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
        assert busy.detect(demo_image_path).status == 200


def test_a_request_whose_deadline_cannot_be_met_is_not_computed(demo_bundle: Path, demo_image_path: Path) -> None:
    with serving(demo_bundle, workers=1, warm_up=SMALL) as busy:
        busy.detect(demo_image_path)
        before = metrics(busy)
        answers = all_at_once(10, lambda: busy.detect(demo_image_path, "?deadline_ms=300"))
        after = metrics(busy)
        by_status = {status: [a for a in answers if a.status == status] for status in (200, 503, 504)}
        assert sum(map(len, by_status.values())) == 10
        assert len(by_status[200]) < 10
        for answer in by_status[503]:
            assert "expected a deadline that can be met" in problem(answer, 503)
        for answer in by_status[504]:
            assert "before its deadline" in problem(answer, 504)
        run = 'hybrid_rt_stage_seconds_count{model="digits",stage="run"}'
        assert after[run] - before[run] == len(by_status[200])


def test_accepted_requests_are_answered_before_shutdown(demo_bundle: Path, demo_image_path: Path) -> None:
    with serving(demo_bundle, workers=1, warm_up=SMALL) as stopping:
        answers: list[Answer] = []
        threads = [threading.Thread(target=lambda: answers.append(stopping.detect(demo_image_path))) for _ in range(5)]
        for thread in threads:
            thread.start()
        while metrics(stopping)['hybrid_rt_queue_length{model="digits"}'] < 4:
            time.sleep(0.01)
        stopping.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert [answer.status for answer in answers] == [200] * 5
        assert stopping.process.wait(30) == 0
    assert stopping.log[-1]["event"] == "stopped"


def test_a_batch_is_answered_like_single_images(demo_bundle: Path, demo_image_path: Path) -> None:
    with serving(demo_bundle, workers=1, max_batch=4, max_delay_ms=200, warm_up=SMALL) as batching:
        body, content_type = form(*[demo_image_path.read_bytes()] * 4)
        images = batching.detect(body, content_type=content_type).json()["pictures"]
        single = only_entry(batching.detect(demo_image_path))
        for entry in images:
            assert [found["label"] for found in entry["detections"]] == [f["label"] for f in single["detections"]]
        assert metrics(batching)['hybrid_rt_batch_size_bucket{model="digits",le="2"}'] == 1
        assert metrics(batching)['hybrid_rt_batch_size_bucket{model="digits",le="4"}'] == 5


# Reloading


def test_a_reload_loses_no_request(demo_bundle: Path, demo_image_path: Path) -> None:
    with serving(demo_bundle, workers=2, warm_up=SMALL) as reloading:
        done = threading.Event()
        statuses: list[int] = []

        def client() -> None:
            while not done.is_set():
                statuses.append(reloading.detect(demo_image_path).status)

        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        seen = len(reloading.log)
        reloading.process.send_signal(signal.SIGHUP)
        assert reloading.wait_for("reloaded", after=seen, seconds=60)["failures"] == []
        assert reloading.request("/v1/reload", b"").json() == {"reloaded": ["digits"]}
        done.set()
        for thread in threads:
            thread.join(60)
        assert set(statuses) == {200}
        assert reloading.request("/v1/models").json()["models"][0]["loads"] == 3
        assert metrics(reloading)['hybrid_rt_reloads_total{result="success"}'] == 2


def test_a_directory_of_bundles_is_read_again(demo_bundle: Path, demo_image_path: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(demo_bundle, models / "one.pt")
    with serving(models, warm_up=SMALL) as served:
        assert served.detect(demo_image_path).json()["model"] == "one"
        shutil.copy(demo_bundle, models / "two.pt")
        assert served.request("/v1/reload", b"").json() == {"reloaded": ["one", "two"]}
        assert "query model" in problem(served.detect(demo_image_path), 400)
        assert served.detect(demo_image_path, "?model=two").json()["model"] == "two"
        (models / "broken.tmp").write_bytes((models / "one.pt").read_bytes()[:1000])
        os.replace(models / "broken.tmp", models / "one.pt")
        assert "one.pt" in problem(served.request("/v1/reload", b""), 500)
        assert served.detect(demo_image_path, "?model=one").status == 200  # unchanged
        (models / "one.pt").unlink()
        served.request("/v1/reload", b"")
        assert [model["name"] for model in served.request("/v1/models").json()["models"]] == ["two"]


# Starting


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [program("hybrid-rt-serve", "test"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_before_it_has_loaded_it_lives_and_is_not_ready(demo_bundle: Path) -> None:
    command = [program("hybrid-rt-serve", "test"), str(demo_bundle), "--port", "0", "--warm-up", "2000x2000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        listening = json.loads(process.stderr.readline())
        assert (listening["event"], listening["address"]) == ("listening", "127.0.0.1")
        loading = Server(process, address="127.0.0.1", port=listening["port"])
        assert loading.request("/healthz").status == 200
        assert loading.request("/readyz").status == 503
        answer = loading.detect(b"x")
        assert "one that is loading" in problem(answer, 503)
        assert answer.headers["retry-after"] == "1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        ((), 2, "MODEL is required"),
        (("x.pt", "--workers", "0"), 2, "--workers"),
        (("x.pt", "--warm-up", "big"), 2, "--warm-up: expected HEIGHTxWIDTH"),
        (("x.pt", "--token-file", "/no/such/file"), 2, "--token-file"),
        (("x.pt", "--host", "example"), 5, "Names are not resolved"),
        (("/no/such/file.pt", "--port", "0"), 4, "expected a file"),
    ],
)
def test_servers_that_cannot_start(arguments: tuple[str, ...], code: int, part: str) -> None:
    done = start(*arguments)
    assert done.returncode == code, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("hybrid-rt-serve: error: hybrid_rt[")
    assert part in line


def test_a_port_that_is_taken(server: Server, demo_bundle: Path) -> None:
    done = start(demo_bundle, "--port", server.port)
    assert done.returncode == 5
    assert "Choose another --port" in done.stderr


def test_a_bundle_that_takes_no_batches_is_refused_with_max_batch(tmp_path: Path) -> None:
    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Conv2d(3, 4, 3)

        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            found: list[dict[str, Tensor]] = []
            for score in self.backbone(torch.stack(images)).flatten(1).mean(1):
                boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
                found.append(
                    {"boxes": boxes, "labels": torch.ones(1, dtype=torch.long), "scores": score.sigmoid()[None]}
                )
            return found

    image = small_image()[0]
    hybrid_rt.convert(One().eval(), ([image],), tmp_path / "one.pt", segments="backbone", measure=False)
    with pytest.raises(ServerEnded) as failure, serving(tmp_path / "one.pt", max_batch=2, warm_up="32x32"):
        pass
    assert failure.value.code == 2
    assert "max_batch 2: expected a bundle that accepts batches of this size" in failure.value.lines[-1]
