"""Serves a bundle with Ray Serve: replicas on many machines, autoscaling, batches of images of equal size.

Run it with ``serve run examples.ray_serve.detector_app:app model=detector.pt``; docs/many-machines.md describes the
rest. Requests and responses are those of hybrid-rt-serve, as far as they apply here.
"""

# Do not add `from __future__ import annotations`, because Ray and FastAPI evaluate the annotations.
import asyncio
import io
import os
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from starlette.exceptions import HTTPException
from torch import Tensor

import hybrid_rt
from hybrid_rt.common.class_names import name_of
from hybrid_rt.common.errors import OptionError
from hybrid_rt.common.json_values import finite

IMAGE_TYPES = ("image/jpeg", "image/png", "application/octet-stream")
QUERY = ("min_score", "masks")

Detections = dict[str, Tensor]


class Options(BaseModel):
    """Options of ``serve run ... NAME=VALUE`` and of a Serve config's ``args``."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="path of the bundle, the same on every machine with a replica")
    device: str = Field("cpu", description="cpu, or cuda for one GPU per replica")
    backend: str = Field("", description="as in hybrid_rt.load; empty: the file's order")
    threads: int = Field(
        1, ge=1, description="threads of a replica's detector, for which it reserves as many of Ray's CPUs"
    )
    warm_up: str = Field("", description="image sizes HEIGHTxWIDTH,... to run at the start and to batch")
    max_batch: int = Field(1, ge=1, description="maximum number of images of one size in a batch")
    batch_wait_ms: float = Field(5.0, ge=0, description="maximum time that an image waits for others, if max_batch > 1")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(2.0, gt=0, description="requests per replica above which replicas are added")
    max_ongoing_requests: int = Field(
        0, ge=0, description="maximum concurrent requests per replica (0: twice max_batch)"
    )
    max_queued_requests: int = Field(
        100, ge=0, description="maximum requests that wait at one proxy; further ones get 503"
    )
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)
    drain_s: float = Field(20.0, ge=0, description="time for a stopping replica to finish its requests")
    stuck_s: float = Field(60.0, gt=0, description="time after which a replica with a stuck detector is replaced")
    max_body_mb: float = Field(20.0, gt=0)
    max_pixels_mp: float = Field(50.0, gt=0)


class Refused(Exception):
    """A request that cannot be served."""

    def __init__(self, status: int, detail: str) -> None:
        """Creates the error for an HTTP status."""
        super().__init__(status, detail)  # all arguments, because the error is pickled to get to other processes
        self.status = status
        self.detail = detail


@dataclass
class Job:
    """An image and its result."""

    image: Tensor
    since: float = field(default_factory=time.monotonic)
    queue_ms: float = 0.0
    run_ms: float = 0.0
    found: Detections | Exception | None = None


def problem(request: Request, status: int, detail: str) -> JSONResponse:
    """Returns an error in the format of RFC 9457."""
    titles = {400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 413: "Content Too Large"}
    titles |= {415: "Unsupported Media Type", 422: "Unprocessable Content", 500: "Internal Server Error"}
    name = request_id(request)
    body = {"type": "about:blank", "title": titles.get(status, "Error"), "status": status, "detail": detail}
    return JSONResponse(
        {**body, "request_id": name}, status, {"X-Request-Id": name}, media_type="application/problem+json"
    )


def request_id(request: Request) -> str:
    """Returns the client's request id if it is safe to log, otherwise a new one."""
    given = request.headers.get("x-request-id", "")
    return given if 0 < len(given) <= 128 and given.isascii() and given.isprintable() else uuid.uuid4().hex


def decoded(data: bytes, max_pixels_mp: float) -> Tensor:
    """Decodes a JPEG or PNG to [3, H, W] in 0..1, RGB.

    Raises:
        Refused: If it is not an image, or has too many pixels.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels_mp is checked instead
            if image.width * image.height > max_pixels_mp * 1e6:
                raise Refused(422, f"expected at most {max_pixels_mp} MP, got {image.width} x {image.height}")
            pixels = numpy.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise Refused(422, "expected a JPEG or PNG, got something else") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # the errors of Pillow's decoders
        raise Refused(422, f"expected a JPEG or PNG, got {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def queried(request: Request) -> tuple[float, bool]:
    """Returns min_score and masks from the query.

    Raises:
        Refused: If a name is unknown or a value is invalid.
    """
    unknown = sorted(set(request.query_params) - set(QUERY))
    if unknown:
        raise Refused(400, f"query: expected {', '.join(QUERY)}, got '{unknown[0]}'")
    text = request.query_params.get("min_score", "0")
    try:
        min_score = float(text)
    except ValueError:
        min_score = -1.0
    if not 0 <= min_score <= 1:
        raise Refused(400, f"min_score: expected a number in 0..1, got '{text}'")
    masks = request.query_params.get("masks", "true")
    if masks not in ("true", "false"):
        raise Refused(400, f"masks: expected true or false, got '{masks}'")
    return min_score, masks == "true"


def entry_of(job: Job, min_score: float, masks: bool, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns an image's entry in the response."""
    found = job.found
    assert isinstance(found, dict)
    kept = [i for i, score in enumerate(found["scores"].tolist()) if score >= min_score]
    detections = []
    for i in kept:
        one: dict[str, Any] = {
            "box": found["boxes"][i].tolist(),
            "label": int(found["labels"][i]),
            "score": float(found["scores"][i]),
        }
        if class_name := name_of(one["label"], class_names):
            one["class_name"] = class_name
        if masks and "masks" in found:
            one["mask"] = run_lengths(found["masks"][i])
        if "keypoints" in found:
            one["keypoints"] = found["keypoints"][i].tolist()
            one["keypoint_scores"] = found["keypoints_scores"][i].tolist()
        detections.append(one)
    _, height, width = job.image.shape
    return finite({"width": width, "height": height, "detections": detections})


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """Returns COCO's compressed run lengths of a mask [1, H, W], thresholded at 0.5."""
    from pycocotools import mask as coco  # from hybrid_rt[coco]; needed only for masks

    encoded = coco.encode(numpy.asfortranarray((mask[0] >= 0.5).to(torch.uint8).numpy()))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def warm_up_sizes(text: str) -> list[tuple[int, int]]:
    """Parses sizes in the form ``HEIGHTxWIDTH,...``.

    Raises:
        OptionError: If the text has another form.
    """
    try:
        sizes = [(int(height), int(width)) for height, width in (one.split("x") for one in text.split(",") if one)]
    except ValueError as error:
        raise OptionError.make("ray", "warm_up", expected="HEIGHTxWIDTH,...", got=f"'{text}'") from error
    return sizes


# Its documentation pages load scripts from other servers.
api = FastAPI(title="hybrid_rt on Ray Serve", version=hybrid_rt.__version__, docs_url=None, redoc_url=None)


@api.exception_handler(HTTPException)
async def _no_route(request: Request, error: HTTPException) -> Response:
    answer = problem(request, error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


# The class is pickled at this point, with the names defined so far, so that everything it uses comes before it.
@serve.deployment
@serve.ingress(api)
class Detector:
    """A replica: one process with one detector.

    ``handle.detect.remote(data)``, from another deployment or from a program that called ``serve.run``, returns the
    image's entry in the response.
    """

    def __init__(self, options: Options) -> None:
        """Loads the bundle and runs it on the warm-up sizes and on a full batch.

        Raises:
            HybridRTError: If it cannot be loaded, or does not accept a batch of that size.
        """
        # Runs outside of the event loop's thread, so that health checks and new requests are answered meanwhile.
        self._runner = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(options.threads,))
        self._decoder = ThreadPoolExecutor(1)
        self._options = options
        self._running_since: float | None = None
        self._batches: Counter[int] = Counter()
        self._detector = self._runner.submit(self._load).result()
        self._class_names: list[str] = hybrid_rt.inspect(options.model).get("class_names", [])
        self._engines = {
            segment: entry["backend"] for entry in hybrid_rt.engines(self._detector) for segment in entry["segments"]
        }
        # Use a queue for each size, because images of different sizes in one batch would be padded, which changes
        # boxes. Only known sizes get one, because clients may send any size.
        batched = serve.batch(max_batch_size=options.max_batch, batch_wait_timeout_s=options.batch_wait_ms / 1000)
        sizes = warm_up_sizes(options.warm_up) if options.max_batch > 1 else []
        self._queues = {size: batched(self._batch_runner()) for size in sizes}

    def _load(self) -> torch.jit.ScriptModule:
        options = self._options
        sizes = warm_up_sizes(options.warm_up)
        detector = hybrid_rt.load(
            options.model, options.device, backend=options.backend, threads=options.threads, warm_up=sizes
        )
        if options.max_batch > 1:
            if not sizes:
                raise OptionError.make(
                    "ray", "warm_up", expected="the image sizes to batch, because max_batch > 1", got="none"
                )
            height, width = sizes[0]
            batch = [torch.rand(3, height, width, device=options.device)] * options.max_batch
            try:
                with torch.inference_mode():
                    found = len(detector(batch))
                if found != options.max_batch:
                    raise RuntimeError(f"results for {found}")
            except Exception as error:  # TorchScript keeps the text of an error, but not its type
                raise OptionError.make(
                    "ray",
                    f"max_batch={options.max_batch}",
                    expected="a batch size that the detector accepts",
                    got=str(error).splitlines()[-1],
                    remedy="Lower max_batch, or convert with a batch of that size as the example.",
                ) from error
        return detector

    def check_health(self) -> None:
        """Checks that the replica works. Ray calls it, and replaces a replica that raises."""
        since = self._running_since
        if since is not None and time.monotonic() - since > self._options.stuck_s:
            raise RuntimeError(f"the detector has been running for more than {self._options.stuck_s} s")

    def _batch_runner(self) -> Callable[[list[Job]], Awaitable[list[Job]]]:
        async def run_batch(jobs: list[Job]) -> list[Job]:
            return await asyncio.get_running_loop().run_in_executor(self._runner, self._run, jobs)

        return run_batch

    def _run(self, jobs: list[Job]) -> list[Job]:
        """Runs images of one size as a batch."""
        start = self._running_since = time.monotonic()
        try:
            with torch.inference_mode():
                found = self._detector([job.image.to(self._options.device) for job in jobs])
                results = [{name: value.cpu() for name, value in one.items()} for one in found]
        except Exception as error:
            if len(jobs) > 1:  # one image must not fail the others
                return [self._run([job])[0] for job in jobs]
            results = [error]
        finally:
            self._running_since = None
        self._batches[len(jobs)] += 1
        for job, result in zip(jobs, results, strict=True):
            job.found = result
            job.queue_ms, job.run_ms = (start - job.since) * 1000, (time.monotonic() - start) * 1000
        return jobs

    async def _detected(self, data: bytes) -> tuple[Job, float]:
        """Detects objects, and returns the job and the decoding time in ms.

        Raises:
            Refused: If the data are not an image, or the detector fails on it.
        """
        loop = asyncio.get_running_loop()
        start = time.monotonic()
        image = await loop.run_in_executor(self._decoder, decoded, data, self._options.max_pixels_mp)
        decode_ms = (time.monotonic() - start) * 1000
        job = Job(image)
        queue = self._queues.get((image.shape[1], image.shape[2]))
        if queue is not None:
            await queue(job)
        else:
            await loop.run_in_executor(self._runner, self._run, [job])
        if isinstance(job.found, Exception):
            raise Refused(500, f"the detector failed: {str(job.found).splitlines()[-1]}")
        return job, decode_ms

    async def detect(self, data: bytes, min_score: float = 0.0, masks: bool = True) -> dict[str, Any]:
        """Returns ``{"width", "height", "detections"}`` for a JPEG or PNG, for callers with a handle.

        Raises:
            Refused: If the data are not an image, or the detector fails on it.
        """
        job, _ = await self._detected(data)
        return entry_of(job, min_score, masks, self._class_names)

    @api.post("/v1/detect")
    async def post_detect(self, request: Request) -> Response:
        """Handles a request with one JPEG or PNG as body; query: min_score (0..1), masks (true|false)."""
        start = time.monotonic()
        try:
            min_score, masks = queried(request)
            kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
            if kind not in IMAGE_TYPES:
                raise Refused(415, f"Content-Type: expected {', '.join(IMAGE_TYPES)}, got '{kind}'")
            data = await request.body()
            if not data:
                raise Refused(400, "expected an image, got an empty body")
            if len(data) > self._options.max_body_mb * 1e6:
                raise Refused(413, f"expected at most {self._options.max_body_mb} MB, got {len(data) / 1e6:.1f}")
            job, decode_ms = await self._detected(data)
        except Refused as error:
            return problem(request, error.status, error.detail)
        timing = {"queue": job.queue_ms, "decode": decode_ms, "run": job.run_ms}
        name = request_id(request)
        answer = {
            "request_id": name,
            "model": Path(self._options.model).stem,
            "pictures": [entry_of(job, min_score, masks, self._class_names)],
            "engines": self._engines,
            "timing_ms": {**timing, "total": (time.monotonic() - start) * 1000},
        }
        return JSONResponse(finite(answer), headers={"X-Request-Id": name})

    @api.get("/v1/models")
    async def get_models(self) -> dict[str, Any]:
        """Returns the models of this replica; ``batches`` counts the calls by batch size."""
        model = {"name": Path(self._options.model).stem, "state": "ready", "engines": self._engines}
        return {"models": [{**model, "class_names": self._class_names, "batches": self._batches}]}


def app(options: Options) -> serve.Application:
    """Builds the application for ``serve run`` from its NAME=VALUE arguments.

    Raises:
        OptionError: If options contradict each other.
    """
    if options.max_replicas < options.min_replicas:
        raise OptionError.make(
            "ray", "max_replicas", expected=f"at least min_replicas={options.min_replicas}", got=options.max_replicas
        )
    warm_up_sizes(options.warm_up)
    options = options.model_copy(update={"model": os.path.abspath(options.model)})  # replicas run in other directories
    ongoing = options.max_ongoing_requests or 2 * options.max_batch
    deployment: Callable[..., Any] = Detector.options(
        ray_actor_options={
            "num_cpus": options.threads,
            "num_gpus": 1 if options.device.startswith("cuda") else 0,
        },
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target_ongoing_requests,
            "upscale_delay_s": options.upscale_delay_s,
            "downscale_delay_s": options.downscale_delay_s,
        },
        max_ongoing_requests=ongoing,
        max_queued_requests=options.max_queued_requests,
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=options.drain_s,
        health_check_period_s=5.0,
        health_check_timeout_s=10.0,
        max_constructor_retry_count=1,  # a bundle that does not load once never does
    ).bind
    return deployment(options)
