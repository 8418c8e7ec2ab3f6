"""Tests of the page of hybrid-rt-serve in a browser."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect
from pycocotools import mask as coco_mask

from conversion.test_report_page import CONTRASTS
from helpers.opened_page import OpenedPage
from helpers.serving import Server, serving
from hybrid_rt.common.class_names import class_colour, text_colour

pytestmark = [pytest.mark.slow, pytest.mark.service]

WIDE, NARROW = 1200, 360
TOKEN = "a-token-for-tests"

# Chromium's message for an error response, which the page shows in its own words.
EXPECTED = "Failed to load resource: the server responded with a status of"

OPACITIES = """(points) => {
  const drawing = document.getElementById("drawing"), { width, height } = drawing;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(drawing, 0, 0);
  const within = (part, size) => Math.min(Math.max(Math.round(part * size), 0), size - 1);
  return points.map(([x, y]) => copy.getImageData(within(x, width), within(y, height), 1, 1).data[3]);
}"""
"""Returns the opacity of the drawing, 0..255, at points given as fractions of the image's size."""


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Iterator[Server]:
    with serving(demo_bundle) as started:
        yield started


class Opened(OpenedPage):
    """The page of the service."""

    def __init__(self, browser: Browser, server: Server, width: int = WIDE, scheme: Any = "light") -> None:
        super().__init__(browser, width, scheme)
        # A listener makes the browser suppress its file chooser, but only after some time: on a busy machine, a key
        # pressed at once came too early. Add the listener at the start.
        self.page.on("filechooser", lambda chooser: None)
        self.page.goto(server.url)
        self.page.wait_for_load_state("networkidle")

    def choose(self, path: Path, min_score: float | None = None) -> None:
        """Chooses a file and waits for the page's message on it."""
        with self.page.expect_response("**/v1/detect*"):
            self.page.set_input_files("#file", path)
        self.page.wait_for_selector("#busy", state="hidden")
        if min_score is not None:
            self.page.fill("#min-score", str(min_score))
        self.settle()

    def settle(self) -> None:
        """Waits until the requested detections are drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def opacities(self, *points: tuple[float, float]) -> list[int]:
        found: list[int] = self.page.evaluate(OPACITIES, points)
        return found

    @property
    def rows(self) -> int:
        return self.page.locator("#rows tr").count()

    @property
    def detections(self) -> list[str]:
        """Returns the paths of the requests for detections."""
        return [url for url in self.requests if "/v1/detect" in url]


def sides(box: list[float], entry: dict[str, Any]) -> list[tuple[float, float]]:
    """Returns points on the left, right and lower side of a box as fractions; the upper one may be under a label."""
    x1, y1, x2, y2 = (value / entry[side] for value, side in zip(box, ("width", "height") * 2, strict=True))
    return [(x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2), ((x1 + x2) / 2, y2)]


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def test_the_boxes_of_the_answer_are_on_the_image(
    browser: Browser, server: Server, demo_image_path: Path, tmp_path: Path
) -> None:
    (entry,) = server.detect(demo_image_path).json()["pictures"]
    opened = Opened(browser, server)
    opened.choose(demo_image_path, min_score=0)
    page = opened.page
    assert opened.rows == len(entry["detections"]) > 0
    assert page.inner_text("#count") == str(len(entry["detections"]))

    image, drawing = (page.locator(selector).bounding_box() for selector in ("#image", "#drawing"))
    assert image == pytest.approx(drawing, abs=1)
    assert image["width"] / image["height"] == pytest.approx(entry["width"] / entry["height"], rel=0.01)
    for found in entry["detections"]:
        assert all(opacity > 150 for opacity in opened.opacities(*sides(found["box"], entry)))
    assert opened.opacities((0.001, 0.001), (0.999, 0.001)) == [0, 0]

    texts = page.locator("#rows tr").all_inner_texts()
    for text, found in zip(texts, sorted(entry["detections"], key=lambda found: -found["score"]), strict=True):
        assert found["class_name"] in text
        assert f"{found['score']:.2f}" in text
    smallest, *_, largest = sorted(entry["detections"], key=lambda found: area(found["box"]))
    (x, _), (_, y) = sides(smallest["box"], entry)[2], sides(smallest["box"], entry)[0]
    page.hover("#drawing", position={"x": x * drawing["width"], "y": y * drawing["height"]})
    opened.settle()
    assert f"{smallest['score']:.2f}" in page.inner_text("#rows tr.chosen")
    assert max(opened.opacities(*sides(largest["box"], entry)[:1])) < 255

    assert "ms on the server" in page.inner_text("#timing")
    assert "backbone on openvino" in page.inner_text("#engines")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as shot:
        assert len(shot.convert("RGB").getcolors(1 << 24) or []) > 500
    assert opened.errors == []


def test_colours_are_those_of_the_other_programs(browser: Browser, server: Server) -> None:
    page = Opened(browser, server).page
    labels = [*range(-20, 200), 65_535, 1_000_003]
    colours = page.evaluate("(labels) => labels.map(channelsOf)", labels)
    assert [tuple(colour) for colour in colours] == [class_colour(label) for label in labels]
    inks = page.evaluate("(colours) => colours.map(textColourOn)", colours)
    assert inks == ["#{:02x}{:02x}{:02x}".format(*text_colour(tuple(colour))) for colour in colours]


def test_long_names_are_cut_and_labels_stay_on_the_image(
    browser: Browser, server: Server, demo_image_path: Path
) -> None:
    with Image.open(demo_image_path) as entry:
        width, height = entry.size
    boxes = [[-50.0, -50.0, width + 50.0, height + 50.0], [width - 5.0, height - 5.0, width + 0.0, height + 0.0]]
    detections = [
        {"box": box, "label": i, "class_name": "猫" * 400, "score": 0.9 - i / 10} for i, box in enumerate(boxes)
    ]
    answer = {
        "request_id": "x",
        "model": "made up",
        "pictures": [{"width": width, "height": height, "detections": detections}],
        "engines": {},
        "timing_ms": {"queue": 0.0, "decode": 0.0, "run": 0.0, "total": 0.0},
    }
    opened = Opened(browser, server)
    opened.page.route("**/v1/detect*", lambda route: route.fulfill(json=answer))
    opened.choose(demo_image_path)
    assert opened.opacities((0.002, 0.01), (0.9, 0.96)) == [255, 255]
    text = opened.page.evaluate(
        "fitted(document.createElement('canvas').getContext('2d'), 'x'.repeat(99), ' 0.90', 1e4)"
    )
    assert text == "x" * 40 + "… 0.90"
    assert opened.errors == []


def test_the_slider_filters_without_a_request(browser: Browser, server: Server, demo_image_path: Path) -> None:
    (entry,) = server.detect(demo_image_path).json()["pictures"]
    scores = sorted(found["score"] for found in entry["detections"])
    between = round((scores[0] + scores[-1]) / 2, 2)
    opened = Opened(browser, server)
    opened.choose(demo_image_path, min_score=0)
    assert len(opened.detections) == 1
    opened.page.fill("#min-score", str(between))
    opened.settle()
    left = sum(score >= between for score in scores)
    assert 0 < left < len(scores)
    assert opened.rows == left
    assert opened.page.inner_text("#count") == f"{left} of {len(scores)}"
    (lowest,) = [found for found in entry["detections"] if found["score"] == scores[0]]
    hidden = opened.opacities(*sides(lowest["box"], entry))
    opened.page.fill("#min-score", "0")
    opened.settle()
    assert sum(hidden) < sum(opened.opacities(*sides(lowest["box"], entry)))
    opened.page.fill("#min-score", "1")
    assert "Lower the minimum score" in opened.page.inner_text("#empty")
    assert len(opened.detections) == 1
    assert opened.errors == []


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (NARROW, "light"), (NARROW, "dark")])
def test_the_page_renders(browser: Browser, server: Server, demo_image_path: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, server, width, scheme)
    page = opened.page
    assert page.title() == "hybrid-rt-serve"
    for chosen in (False, True):
        if chosen:
            opened.choose(demo_image_path, min_score=0)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > (20 if chosen else 5)
        assert [text for ratio, text in contrasts if ratio < 4.5] == []
    assert opened.errors == []


def test_the_page_has_light_and_dark(browser: Browser, server: Server) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (Opened(browser, server, scheme=scheme).page.evaluate(background) for scheme in ("light", "dark"))
    assert light != dark


def test_the_page_requests_nothing_from_other_hosts(browser: Browser, server: Server, demo_image_path: Path) -> None:
    opened = Opened(browser, server)
    opened.choose(demo_image_path)
    asked = [url for url in opened.requests if not url.startswith(("data:", f"blob:{server.url}"))]
    assert asked == [f"{server.url}/", f"{server.url}/v1/models", f"{server.url}/v1/detect"]
    assert opened.errors == []
    policy = server.request("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    refused = opened.page.evaluate("fetch('http://127.0.0.1:9/').then(() => '', (error) => error.message)")
    assert refused
    assert any("Content Security Policy" in error for error in opened.errors)


def test_a_broken_file_gets_the_servers_reason(
    browser: Browser, server: Server, demo_image_path: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(demo_image_path.read_bytes()[:500])
    opened = Opened(browser, server)
    opened.choose(demo_image_path, min_score=0)
    opened.choose(broken)
    page = opened.page
    expected = server.detect(broken).json()
    assert page.locator("#error").get_attribute("role") == "alert"
    assert page.inner_text("#error-title") == f"{expected['status']} {expected['title']}"
    assert page.inner_text("#error-detail") == expected["detail"].partition("]: ")[2]
    assert page.inner_text("#error-id").startswith("Request ")
    assert opened.rows == 0
    opened.choose(demo_image_path)
    assert page.locator("#error").is_hidden()
    assert opened.rows > 0
    assert [error for error in opened.errors if not error.startswith(EXPECTED)] == []


def test_the_keyboard_suffices(browser: Browser, server: Server, demo_image_path: Path) -> None:
    opened = Opened(browser, server)
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(demo_image_path)
    page.wait_for_selector("#rows tr")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "min-score"
    before = page.input_value("#min-score")
    page.keyboard.press("ArrowLeft")
    assert float(page.input_value("#min-score")) < float(before)
    page.focus("#rows tr")
    assert page.locator("#rows tr.chosen").count() == 1


def test_an_image_can_be_dropped(browser: Browser, server: Server, demo_image_path: Path) -> None:
    opened = Opened(browser, server)
    page = opened.page
    data = page.evaluate_handle(
        """(bytes) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
          return transfer;
        }""",
        list(demo_image_path.read_bytes()),
    )
    page.dispatch_event("#drop", "dragenter", {"dataTransfer": data})
    assert "dragged" in page.locator("body").get_attribute("class")
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    page.wait_for_selector("#rows tr")
    assert "dropped.png" in page.inner_text("#file-name")
    assert "dragged" not in page.locator("body").get_attribute("class")
    assert opened.errors == []


def test_a_rotated_photograph_is_shown_as_the_server_reads_it(
    browser: Browser, server: Server, demo_image_path: Path, tmp_path: Path
) -> None:
    turned = tmp_path / "turned.jpg"
    with Image.open(demo_image_path) as entry:
        exif = entry.getexif()
        exif[0x0112] = 6  # rotated by 90 degrees
        entry.convert("RGB").save(turned, quality=95, exif=exif)
    opened = Opened(browser, server)
    opened.choose(turned)
    box = opened.page.locator("#image").bounding_box()
    shot = Image.open(io.BytesIO(opened.page.locator("#image").screenshot())).convert("RGB")
    with Image.open(turned) as entry:
        assert box["width"] / box["height"] == pytest.approx(entry.width / entry.height, rel=0.02)
        as_it_lies = entry.convert("RGB").resize(shot.size)
    assert np.abs(np.asarray(shot, dtype=float) - np.asarray(as_it_lies, dtype=float)).mean() < 20


def test_a_missing_token_is_requested(
    browser: Browser, demo_bundle: Path, demo_image_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with serving(demo_bundle, token_file=tmp_path / "token") as server:
        opened = Opened(browser, server)
        page = opened.page
        page.wait_for_selector("#token-form")
        assert page.locator("#error").is_hidden()
        page.fill("#token", "another")
        page.keyboard.press("Enter")
        page.wait_for_selector("#error")
        assert "401" in page.inner_text("#error-title")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#token-form", state="hidden")
        opened.choose(demo_image_path)
        assert opened.rows > 0
        assert TOKEN not in page.inner_text("body")
        assert '-H "Authorization: Bearer $TOKEN"' in page.locator("#curl").text_content()
        assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_one_of_several_models_is_chosen(
    browser: Browser, demo_bundle: Path, demo_image_path: Path, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        (tmp_path / f"{name}.pt").symlink_to(demo_bundle)
    with serving(tmp_path / "first.pt", tmp_path / "second.pt") as server:
        opened = Opened(browser, server)
        opened.choose(demo_image_path)
        assert opened.page.inner_text("#engines").startswith("first: ")
        with opened.page.expect_response("**/v1/detect?model=second"):
            opened.page.select_option("#model", "second")
        # Not wait_for_function: the page's policy forbids scripts from text, also those that a test polls with.
        expect(opened.page.locator("#engines")).to_have_text(re.compile("^second: "))
        assert opened.errors == []


def test_the_answer_and_the_image_can_be_saved(
    browser: Browser, server: Server, demo_image_path: Path, tmp_path: Path
) -> None:
    opened = Opened(browser, server)
    opened.choose(demo_image_path)
    with opened.page.expect_download() as download:
        opened.page.click("#save-json")
    download.value.save_as(tmp_path / "answer.json")
    saved = json.loads((tmp_path / "answer.json").read_text())
    assert saved["pictures"] == server.detect(demo_image_path).json()["pictures"]
    with opened.page.expect_download() as download:
        opened.page.click("#save-image")
    assert download.value.suggested_filename == f"{demo_image_path.stem}-boxes.png"
    download.value.save_as(tmp_path / "boxes.png")
    with Image.open(tmp_path / "boxes.png") as annotated, Image.open(demo_image_path) as entry:
        assert annotated.size == entry.size
    assert opened.errors == []


def test_masks_and_names_of_an_answer_are_shown(
    browser: Browser, server: Server, demo_image_path: Path, tmp_path: Path
) -> None:
    with Image.open(demo_image_path) as entry:
        width, height = entry.size
    inside = np.zeros((height, width), np.uint8, order="F")
    inside[height // 4 : height // 2, width // 3 : width // 2] = 1
    code = coco_mask.encode(inside)
    name = "<img src=x onerror=nosuch()>"
    answer = {
        "request_id": "x",
        "model": "made up",
        "pictures": [
            {
                "width": width,
                "height": height,
                "detections": [
                    {
                        "box": [-5.5, 0.0, width + 5.0, height - 1.0],
                        "label": -3,
                        "class_name": name,
                        "score": 0.9,
                        "mask": {"size": [height, width], "counts": code["counts"].decode()},
                        "keypoints": [[width * 0.75, height * 0.75, 1.0], [width * 0.75, height * 0.6, 0.0]],
                    },
                    {"box": [0.0, None, 1.0, 1.0], "label": 1, "score": None},
                ],
            }
        ],
        "engines": {},
        "timing_ms": {"queue": 0.0, "decode": 0.0, "run": 0.0, "total": 0.0},
    }
    opened = Opened(browser, server)
    opened.page.route("**/v1/detect*", lambda route: route.fulfill(json=answer))
    opened.choose(demo_image_path)
    page = opened.page
    assert opened.rows == 1
    assert name in page.inner_text("#rows")
    in_mask, below_mask, visible, hidden = (5 / 12, 3 / 8), (5 / 12, 0.7), (0.75, 0.75), (0.75, 0.6)
    assert [opacity > 0 for opacity in opened.opacities(in_mask, below_mask, visible, hidden)] == [True, False] * 2
    page.uncheck("#show-masks")
    page.uncheck("#show-keypoints")
    opened.settle()
    assert opened.opacities(in_mask, visible) == [0, 0]
    assert opened.errors == []
