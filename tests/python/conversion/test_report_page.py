"""Tests of the report's page in a browser."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page
from torch import Tensor, nn

import hybrid_rt
from helpers.opened_page import OpenedPage
from helpers.small_detectors import small_detector, small_image, small_list_detector
from hybrid_rt import ConversionReport, Thresholds
from hybrid_rt.conversion.report.html import THRESHOLD_LABELS
from models import digits_detector

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

WIDE, NARROW = 1100, 390

CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const channels = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => {
    const [r, g, b] = channels(color).slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("main *:not(svg, svg *)")) {
    if (![...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim())) continue;
    let behind = element;
    while (channels(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const pair = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(luminance);
    found.push([(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), element.textContent.trim()]);
  }
  return found;
}"""
"""Returns for each element with text its contrast as WCAG 2.1 defines it (at least 4.5 is required), and the text."""


TEXT_HEIGHTS = """
[...document.querySelectorAll(".short")].map(cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return [cell.textContent, range.getBoundingClientRect().height];
})"""


@pytest.fixture(scope="module")
def demo_page(
    tmp_path_factory: pytest.TempPathFactory, demo_detector: nn.Module, demo_images: list[Tensor]
) -> tuple[Path, ConversionReport]:
    """Returns the page and the report of the demo detector, verified on all held-out images."""
    directory = tmp_path_factory.mktemp("page")
    result = hybrid_rt.convert(
        demo_detector,
        ([demo_images[0]],),
        directory / "digits.pt",
        verify_inputs=[([image],) for image in demo_images[1:]],
        report=directory / "report.html",
    )
    return directory / "report.html", result.report


class Opened(OpenedPage):
    """The page of a report."""

    def __init__(self, browser: Browser, path: Path, width: int = WIDE, scheme: Any = "light") -> None:
        super().__init__(browser, width, scheme)
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url[-80:]}"))
        self.page.goto(path.as_uri())
        self.page.wait_for_timeout(200)  # wait for late events

    def sizes_of_images(self) -> list[list[int]]:
        found: list[list[int]] = self.page.evaluate(
            "[...document.images].map((image) => [image.complete * image.naturalWidth, image.naturalHeight])"
        )
        return found


def colours(page: Page, selector: str | None = None) -> int:
    screenshot = page.locator(selector).first.screenshot() if selector else page.screenshot(full_page=True)
    with Image.open(io.BytesIO(screenshot)) as image:
        return len(image.convert("RGB").getcolors(1 << 24) or [])


@pytest.mark.slow
def test_the_checks_see_a_broken_page(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text(
        '<style>*{color:#999;background:#aaa}</style><main style="width:3000px"><p>pale</p>'
        '<img src="data:image/jpeg;base64,xx"><img src="missing.png"></main><script>nosuch()</script>'
    )
    opened = Opened(browser, path)
    for expected in ("nosuch", "missing.png"):
        for _ in range(50):
            if any(expected in error for error in opened.errors):
                break
            opened.page.wait_for_timeout(100)
        else:
            pytest.fail(f"{expected} is not in {opened.errors}")
    assert len(opened.requests) > 1
    assert opened.sizes_of_images() == [[0, 0], [0, 0]]
    assert opened.page.evaluate("document.documentElement.scrollWidth") > WIDE
    assert opened.page.evaluate(CONTRASTS)[0][0] < 2
    path.write_text("")
    assert colours(Opened(browser, path).page) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (NARROW, "light")])
def test_the_page_renders(browser: Browser, demo_page: tuple[Path, ConversionReport], width: int, scheme: str) -> None:
    path, _ = demo_page
    opened = Opened(browser, path, width, scheme)
    page = opened.page
    assert opened.errors == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [path.as_uri()]
    assert page.title() == "FasterRCNN as a hybrid"
    assert page.locator("h2").all_inner_texts() == [
        "What is compiled",
        "Latency",
        "Where the hybrid's time goes",
        "Images",
        "Error of each output",
        "Engines in the file",
        "Conditions",
    ]
    sizes = opened.sizes_of_images()
    assert len(sizes) == 8
    assert all(0 < side <= 640 for size in sizes for side in size)
    assert colours(page) > 1000
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert [text for ratio, text in contrasts if ratio < 4.5] == []
    heights = page.evaluate(TEXT_HEIGHTS)
    assert len(heights) > 10
    assert [text for text, height in heights if height > 30] == []  # a number that is broken takes two lines


@pytest.mark.slow
def test_the_page_has_light_and_dark(browser: Browser, demo_page: tuple[Path, ConversionReport]) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (
        Opened(browser, demo_page[0], scheme=scheme).page.evaluate(background) for scheme in ("light", "dark")
    )
    assert light != dark


@pytest.mark.slow
def test_the_boxes_lie_on_the_images(browser: Browser, demo_page: tuple[Path, ConversionReport]) -> None:
    path, report = demo_page
    page = Opened(browser, path).page
    figures = page.locator("figure")
    sides = [side for entry in report.pictures for side in (entry.expected, entry.found)]
    assert figures.count() == len(sides) == 8
    for figure, boxes in zip(figures.all(), sides, strict=True):
        image, drawing = (figure.locator(kind).bounding_box() for kind in ("img", "svg"))
        assert image == pytest.approx(drawing, abs=1)
        drawn = figure.locator("rect.box")
        assert drawn.count() == len(boxes) >= 5
        assert figure.locator("rect.lonely").count() == 0
        for found in (drawn.first.bounding_box(), drawn.last.bounding_box()):
            assert image["x"] - 5 <= found["x"] <= found["x"] + found["width"] <= image["x"] + image["width"] + 5
            assert image["y"] - 5 <= found["y"] <= found["y"] + found["height"] <= image["y"] + image["height"] + 5
        assert f"{len(boxes)} boxes" in figure.locator("img").get_attribute("alt")
    assert colours(page, "figure img") > 500
    best = max(report.pictures[0].expected, key=lambda box: box.score)
    assert (
        f"{digits_detector.CLASS_NAMES[best.label]} {best.score:.2f}"
        in figures.first.locator("text").all_text_contents()
    )


@pytest.mark.slow
def test_the_page_says_what_the_report_says(browser: Browser, demo_page: tuple[Path, ConversionReport]) -> None:
    path, report = demo_page
    page = Opened(browser, path).page
    text = page.locator("main").inner_text()
    matched, expected = report.boxes
    assert f"Verified: {matched} of {expected} boxes matched" in text
    assert f"{report.measurement.gain:.2f}\N{MULTIPLICATION SIGN}" in text
    assert f"{report.predicted_gain:.2f}\N{MULTIPLICATION SIGN}" in text
    assert f"{report.measurement.new_size.height}x{report.measurement.new_size.width}, a size" in text
    for share in report.shares:
        if share.chosen:
            assert f"{share.share:.1%}" in text
    assert "stays in TorchScript: takes or returns more than tensors" in text
    assert f"{report.worst.relative_error:.1e}" in text
    rows = page.locator("section:has(#latency) tbody tr")
    widths = [row.locator("rect").nth(1).bounding_box()["width"] for row in rows.all()]
    eager, hybrid = (report.measurement.latencies[name].median for name in ("eager", "hybrid"))
    assert widths[1] / widths[0] == pytest.approx(hybrid / eager, rel=0.05)
    parts = report.measurement.parts
    assert sum(part.share for part in parts) == pytest.approx(1, rel=1e-6)
    bar = page.locator("svg.parts")
    pieces = [piece.bounding_box()["width"] for piece in bar.locator("rect").all()]
    assert sum(pieces) == pytest.approx(bar.bounding_box()["width"], rel=0.02)
    assert pieces[0] / sum(pieces) == pytest.approx(parts[0].share, abs=0.02)
    assert parts[0].name in page.locator("section:has(#parts) tbody tr").first.inner_text()
    page.locator("summary").first.click()
    assert page.locator("details[open] code").first.is_visible()


@pytest.mark.slow
def test_a_report_of_tensors_alone_renders(browser: Browser, tmp_path: Path) -> None:
    hybrid_rt.convert(
        small_detector(),
        (small_image(),),
        tmp_path / "x.pt",
        engine="torchscript",
        verify=False,
        measure=False,
        report=tmp_path / "x.html",
    )
    opened = Opened(browser, tmp_path / "x.html", NARROW)
    assert opened.errors == []
    text = opened.page.locator("main").inner_text()
    assert "Not verified" in text
    assert "Not measured: not requested." in text
    assert opened.sizes_of_images() == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= NARROW


@pytest.mark.slow
def test_boxes_of_one_side_are_red(browser: Browser, tmp_path: Path) -> None:
    report = hybrid_rt.convert(
        small_list_detector(), ([small_image()[0]],), tmp_path / "x.pt", engine="torchscript", measure=False
    ).report
    (image,) = report.pictures
    lonely = [replace(box, matched=False) for box in image.found[:2]]
    verification = replace(report.verification, failures=["input 0, image 0: <3 of 9 boxes> matched"])
    replace(report, pictures=[replace(image, found=[*lonely, *image.found[2:]])], verification=verification).save(
        tmp_path / "x.html"
    )
    opened = Opened(browser, tmp_path / "x.html")
    assert opened.errors == []
    assert opened.page.locator(".verdict").inner_text() == "Verification failed"
    assert opened.page.locator("li").first.inner_text() == "input 0, image 0: <3 of 9 boxes> matched"
    assert opened.page.locator("figure").nth(1).locator("rect.lonely").count() == 2
    strokes = opened.page.evaluate(
        "['.box.lonely', '.box:not(.lonely)'].map((kind) => getComputedStyle(document.querySelector(kind)).stroke)"
    )
    assert strokes[0] != strokes[1]


@pytest.mark.slow
def test_outside_text_is_escaped(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "a <b>&amp; c.pt"
    report = hybrid_rt.convert(
        small_list_detector(), ([small_image()[0]],), path, engine="torchscript", measure=False
    ).report
    name = '</title><script>nosuch()</script><img src=x onerror="nosuch()">&amp;'
    shares = [replace(share, name=name, reason=name, chosen=False) for share in report.shares]
    segments = [replace(segment, name=name) for segment in report.engines]
    tensors = [replace(error, output=name, engine=name, backend=name) for error in report.verification.tensors]
    image = replace(report.pictures[0], not_drawn={name: 3})
    replace(
        report,
        detector=name,
        shares=shares,
        engines=segments,
        pictures=[image],
        verification=replace(report.verification, tensors=tensors, not_run=[name]),
        versions={name: name},
    ).save(tmp_path / "x.html")
    opened = Opened(browser, tmp_path / "x.html", NARROW)
    assert opened.errors == []
    page = opened.page
    assert page.title() == f"{name} as a hybrid"
    assert page.locator("h1").inner_text() == f"{name} as a hybrid"
    assert page.locator("header .path").inner_text() == str(path)
    assert page.locator("script, img[onerror]").count() == 0
    assert page.locator("main b", has_text="amp; c.pt").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW
    text = page.locator("main").text_content()
    assert text.count(name) > 8


def test_every_threshold_has_a_label() -> None:
    assert list(THRESHOLD_LABELS) == [field.name for field in fields(Thresholds)]
