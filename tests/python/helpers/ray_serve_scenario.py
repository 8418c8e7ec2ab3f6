"""Runs the scenario of test_ray_serve.py in a separate process, to keep Ray's threads and warnings out of pytest.

Prints a JSON object on its last line. Arguments: the bundle, a bundle that takes only one image, a port, a directory
for Ray's files, images. The checkout has to be on PYTHONPATH, for the replicas' processes too.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from PIL import Image
from ray import serve

from examples.ray_serve.client import detect
from examples.ray_serve.detector_app import Options, app

MODEL, ONE_IMAGE_MODEL, PORT, DIRECTORY = sys.argv[1:5]
IMAGES = [Path(name) for name in sys.argv[5:]]
URL = f"http://127.0.0.1:{PORT}/v1/detect"
CLIENTS = 8
SIZES = ",".join("{1}x{0}".format(*Image.open(path).size) for path in IMAGES[:2])  # the sizes of the batched images


def replicas() -> list[str]:
    """Returns the actors of the replicas, including those that are starting."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in actors if "SERVE_REPLICA" in actor["name"])


def running() -> int:
    states = serve.status().applications["default"].deployments["Detector"].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")  # an enumeration of str


def wait_for_replacement(killed: str, count: int, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if killed not in (now := replicas()) and len(now) == running() == count:
            return True
        time.sleep(0.2)
    return False


def kill_one_in_the_middle(requests: int) -> dict[str, Any]:
    before = replicas()
    answered = threading.Semaphore(0)

    def one(i: int) -> tuple[int, Any, int]:
        answer, tries = detect(URL, IMAGES[i % len(IMAGES)].read_bytes(), tries=20, wait_s=0.1)
        answered.release()
        return i % len(IMAGES), answer, tries

    with ThreadPoolExecutor(CLIENTS) as pool:
        futures = [pool.submit(one, i) for i in range(requests)]
        for _ in range(requests // 4):
            answered.acquire()
        ray.kill(ray.get_actor(before[0], namespace="serve"))
        results = [future.result() for future in futures]
    replaced = wait_for_replacement(before[0], len(before))
    return {
        "answers": [[image, answer] for image, answer, _ in results],
        "retried": sum(tries > 1 for *_, tries in results),
        "killed": before[0],
        "before": before,
        "after": replicas(),
        "replaced": replaced,
    }


def refusals() -> dict[str, Any]:
    image = IMAGES[0].read_bytes()
    cases = {
        "text": (URL, b"hello", "text/plain"),
        "no image": (URL, b"hello", "image/png"),
        "truncated": (URL, image[: len(image) // 2], "image/png"),
        "empty": (URL, b"", "image/png"),
        "too large": (URL, b"0" * 3_000_000, "image/png"),
        "score": (f"{URL}?min_score=2", image, "image/png"),
        "name": (f"{URL}?colour=red", image, "image/png"),
        "path": (f"{URL}/other", image, "image/png"),
        "method": (URL, None, "image/png"),
    }
    seen = {}
    for name, (url, data, kind) in cases.items():
        request = urllib.request.Request(url, data, {"Content-Type": kind, "X-Request-Id": name})
        try:
            urllib.request.urlopen(request, timeout=30).close()
            seen[name] = [200, "", {}]
        except urllib.error.HTTPError as error:
            with error:
                body = error.read().decode()
            seen[name] = [error.code, error.headers.get_content_type(), json.loads(body) if body[:1] == "{" else body]
    return seen


def codes_of(requests: int) -> list[int]:
    """Returns the status codes of concurrent requests that are not retried."""

    def one(_: int) -> int:
        request = urllib.request.Request(URL, IMAGES[0].read_bytes(), {"Content-Type": "image/png"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    with ThreadPoolExecutor(requests) as pool:
        return list(pool.map(one, range(requests)))


def largest_batch() -> int:
    """Returns the largest batch of the replica that happens to answer."""
    found = []
    for _ in range(10):
        with urllib.request.urlopen(URL.replace("detect", "models"), timeout=30) as answer:
            found += [int(size) for size in json.load(answer)["models"][0]["batches"]]
    return max(found, default=0)


def flood_until(count: int, seconds: float) -> tuple[list[list[Any]], int]:
    """Sends requests from all clients until there are ``count`` replicas."""
    stop = time.monotonic() + seconds
    answers: list[list[Any]] = []

    def client(i: int) -> None:
        while running_now[0] < count and time.monotonic() < stop:
            image = i % len(IMAGES)
            answers.append([image, detect(URL, IMAGES[image].read_bytes(), tries=20)[0]])

    running_now = [running()]
    with ThreadPoolExecutor(CLIENTS) as pool:
        futures = [pool.submit(client, i) for i in range(CLIENTS)]
        while running_now[0] < count and time.monotonic() < stop:
            time.sleep(0.5)
            running_now[0] = running()
        for future in futures:
            future.result()
    return answers, running_now[0]


def deploy(**options: Any) -> Any:
    return serve.run(app(Options(**{"model": MODEL, "threads": 1, "downscale_delay_s": 600.0, **options})))


def failed_deployment(**options: Any) -> str:
    """Returns Ray's message for a deployment that does not start."""
    try:
        deploy(**options)
    except RuntimeError:
        pass
    else:
        return ""
    return serve.status().applications["default"].deployments["Detector"].message


def main() -> None:
    ray.init(
        num_cpus=4,  # a number for Ray's scheduling, not the machine's CPUs
        include_dashboard=False,
        object_store_memory=80_000_000,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=DIRECTORY,
    )
    seen: dict[str, Any] = {}
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": int(PORT)})
        handle = deploy(min_replicas=2, max_replicas=2, max_ongoing_requests=3, max_queued_requests=10, max_body_mb=2.0)
        seen["kill"] = kill_one_in_the_middle(60)
        seen["refusals"] = refusals()
        seen["at once"] = codes_of(32)
        seen["by handle"] = handle.detect.remote(IMAGES[0].read_bytes(), min_score=0.5).result()
        seen["min_score"] = detect(f"{URL}?min_score=0.5", IMAGES[0].read_bytes())[0]
        serve.delete("default")
        deploy(
            max_replicas=2, target_ongoing_requests=1, upscale_delay_s=0.0, max_ongoing_requests=8, max_batch=4,
            batch_wait_ms=300.0, warm_up=SIZES,
        )  # fmt: skip
        seen["batched"], seen["replicas under load"] = flood_until(2, 90.0)
        codes_of(8)  # concurrent and of one size, so that some share a batch however slow the machine is
        seen["largest batch"] = largest_batch()
        seen["too large a batch"] = failed_deployment(model=ONE_IMAGE_MODEL, max_batch=4, warm_up=SIZES)
    finally:
        serve.shutdown()
        ray.shutdown()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
