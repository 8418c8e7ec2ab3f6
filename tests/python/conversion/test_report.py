"""Tests of the report: data, JSON, text, files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image

import hybrid_rt
from helpers.paths import ROOT
from helpers.small_detectors import small_detector, small_image, small_list_detector
from hybrid_rt import BundleError, ConversionReport, OptionError, Thresholds, VerificationError
from hybrid_rt.cli.main import main
from hybrid_rt.common.image_inputs import EACH, ImageInputs
from hybrid_rt.conversion import report as report_package
from hybrid_rt.conversion.report.images import MOST_BOXES, ImageSamples
from hybrid_rt.conversion.report.terminal import report_text

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

SCHEMA = json.loads(Path(report_package.__file__).with_name("report.schema.json").read_text(encoding="utf-8"))
FP32 = Thresholds(iou=0.99, score=1e-3, recall=1.0, relative_error=1e-3)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ConversionReport:
    """Returns the report of a small detector, verified on three images."""
    example, *others = ([small_image(48, 64, seed)[0]] for seed in range(3))
    path = tmp_path_factory.mktemp("report") / "small.pt"
    further = [(other,) for other in others]
    return hybrid_rt.convert(small_list_detector(), (example,), path, verify_inputs=further).report


def errors_of(values: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(values)]


# JSON


def test_the_json_fits_the_schema(report: ConversionReport) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    values = report.to_json()
    assert errors_of(values) == []
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["schema_version"] == 2
    assert values["measurement"]["gain"] == report.measurement.gain
    assert [len(image["expected"]) for image in values["pictures"]] == [
        image["expected"] for image in values["verification"]["pictures"]
    ]


def test_a_report_of_nothing_compared_or_measured_fits_the_schema(tmp_path: Path) -> None:
    report = hybrid_rt.convert(
        small_detector(), (small_image(),), tmp_path / "x.pt", engine="torchscript", verify=False, measure=False
    ).report
    values = report.to_json()
    assert errors_of(values) == []
    assert (values["verification"], values["thresholds"], values["measurement"]) == (None, None, None)
    assert values["not_measured"] == "not requested"
    text = str(report)
    assert "not verified" in text
    assert "not measured: not requested" in text


@pytest.mark.slow
def test_the_schema_refuses_a_report_that_lacks_a_field(report: ConversionReport) -> None:
    values = report.to_json()
    for name in values:
        assert errors_of({key: value for key, value in values.items() if key != name}), name
    values["engines"][0]["variants"] = []
    assert errors_of(values)


def properties(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for child in schema.values():
            yield from properties(child)


def test_every_field_is_in_the_documentation(report: ConversionReport) -> None:
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([\w.]+)`", text))
    assert len(set(properties(SCHEMA))) > 50
    assert set(properties(SCHEMA)) - documented == set()


def test_every_field_is_in_the_schema(report: ConversionReport) -> None:
    def keys(values: Any, schema: Any, place: str) -> Iterator[str]:
        while "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
        if "anyOf" in schema:
            schema = SCHEMA["$defs"][schema["anyOf"][0]["$ref"].rpartition("/")[2]]
        if isinstance(values, dict) and "properties" in schema:
            for key, value in values.items():
                if key not in schema["properties"]:
                    yield f"{place}.{key}"
                else:
                    yield from keys(value, schema["properties"][key], f"{place}.{key}")
        elif isinstance(values, list) and "items" in schema:
            for value in values:
                yield from keys(value, schema["items"], place)

    assert list(keys(report.to_json(), SCHEMA, "")) == []
    assert list(keys({"engines": [{"names": []}]}, SCHEMA, "")) == [".engines.names"]


def test_non_finite_numbers_become_null(report: ConversionReport) -> None:
    tensors = [replace(report.verification.tensors[0], relative_error=float("inf"), cosine=float("nan"))]
    values = replace(report, verification=replace(report.verification, tensors=tensors)).to_json()
    assert values["verification"]["tensors"][0]["relative_error"] is None
    assert values["verification"]["tensors"][0]["cosine"] is None
    assert errors_of(values) == []


# Data


def test_the_old_name_of_the_engines_warns(report: ConversionReport) -> None:
    with pytest.warns(
        DeprecationWarning, match=r"ConversionReport\.segments is deprecated, use ConversionReport\.engines"
    ):
        assert report.segments is report.engines


def test_the_report_knows_the_segments(report: ConversionReport) -> None:
    (segment,) = report.engines
    assert segment.name == "backbone+detector.classes"
    assert segment.members == ["backbone", "detector.classes"]
    assert segment.share == pytest.approx(sum(share.share for share in report.shares if share.chosen))
    assert [str(spec) for spec in segment.inputs] == ["images: 1 x 3 x 48 x 64 float32"]
    assert len(segment.outputs) == 3
    assert [variant.versions["torch"] for variant in segment.variants] == [torch.__version__] * 2
    assert report.versions["torch"] == torch.__version__
    assert report.thresholds == hybrid_rt.THRESHOLDS["fp32"]
    assert {"verify", "save", "measure"} <= set(report.seconds)


def test_the_images_are_those_that_were_compared(report: ConversionReport) -> None:
    assert [(image.index, image.height, image.width) for image in report.pictures] == [
        (0, 48, 64),
        (1, 48, 64),
        (2, 48, 64),
    ]
    for image in report.pictures:
        assert len(image.expected) == report.verification.pictures[image.index].expected > 5
        assert all(box.matched for box in [*image.expected, *image.found])
        scores = [box.score for box in image.expected]
        assert scores == sorted(scores, reverse=True)


LISTED = ImageInputs({(0, EACH): "CHW"})


def detections(*boxes: list[float], score: float = 0.9) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "scores": torch.full((len(boxes),), score),
    }


def test_boxes_of_one_side_only_are_marked() -> None:
    samples = ImageSamples(FP32, LISTED)
    both, eager, hybrid = [0.0, 0.0, 9.0, 9.0], [10.0, 0.0, 19.0, 9.0], [0.0, 10.0, 9.0, 19.0]
    samples(([torch.rand(3, 20, 20)],), [detections(both, eager)], [detections(both, hybrid)])
    (image,) = samples.images
    assert {box.box[:2]: box.matched for box in image.expected} == {(0, 0): True, (10, 0): False}
    assert {box.box[:2]: box.matched for box in image.found} == {(0, 0): True, (0, 10): False}
    assert image.not_drawn == {}


def test_a_different_label_or_score_does_not_match() -> None:
    samples = ImageSamples(FP32, LISTED)
    box = [0.0, 0.0, 9.0, 9.0]
    samples(([torch.rand(3, 20, 20)],), [detections(box)], [detections(box, score=0.8)])
    other = {**detections(box), "labels": torch.tensor([2])}
    samples(([torch.rand(3, 20, 20)],), [detections(box)], [other])
    assert [image.expected[0].matched for image in samples.images] == [False, False]


def test_only_some_images_and_boxes_are_kept() -> None:
    samples = ImageSamples(FP32, LISTED)
    many = detections(*([float(i), 0.0, i + 1.0, 1.0] for i in range(MOST_BOXES + 20)))
    masks = {**many, "masks": torch.zeros(MOST_BOXES + 20, 1, 8, 8)}
    images = [torch.rand(3, 900, 1300) for _ in range(3)]
    for _ in range(2):
        samples((images,), [masks] * 3, [many] * 3)
    assert [image.index for image in samples.images] == [0, 1, 2, 3]
    assert all(len(image.expected) == len(image.found) == MOST_BOXES for image in samples.images)
    assert samples.images[0].not_drawn == {"masks": MOST_BOXES + 20}
    assert (samples.images[0].height, samples.images[0].width) == (900, 1300)


@pytest.mark.parametrize(
    ("given", "colour"),
    [
        (torch.full((3, 8, 8), 0.5), 128),
        (torch.full((1, 8, 8), 1.5), 255),
        (torch.full((3, 8, 8), 128.0), 128),
        (torch.full((4, 8, 8), 0.5), 128),
        (torch.full((3, 8, 8), 128, dtype=torch.uint8), 128),
        (torch.full((3, 1280, 900), 0.5, dtype=torch.float64), 128),
    ],
)
def test_images_of_each_kind_are_shown_in_their_colours(given: torch.Tensor, colour: int, tmp_path: Path) -> None:
    samples = ImageSamples(FP32, ImageInputs({(0,): "NCHW"}))
    samples((given[None],), [detections()], [detections()])
    (tmp_path / "x.jpg").write_bytes(samples.images[0].jpeg)
    with Image.open(tmp_path / "x.jpg") as image:
        assert max(image.size) <= 640
        assert image.size[0] * given.shape[-2] == image.size[1] * given.shape[-1]
        assert all(abs(value - colour) <= 2 for value in image.getpixel((0, 0)))


def test_results_that_are_not_detections_have_no_images() -> None:
    samples = ImageSamples(FP32, LISTED)
    samples((torch.rand(1, 3, 8, 8),), torch.ones(3), torch.ones(3))
    samples(([torch.rand(3, 8, 8)],), [detections()], [])
    samples((torch.ones(4),), [detections()], [detections()])
    assert samples.images == []


# Text


@pytest.mark.parametrize("width", [80, 120])
def test_the_text_says_what_counts(report: ConversionReport, width: int) -> None:
    lines = report_text(report, width).splitlines()
    text = "\n".join(lines)
    assert lines[0] == f"ListDetector -> {report.path} ({report.file_size / 1e6:.1f} MB)"
    assert max(len(line) for line in lines if line.startswith(("│", "┃", "┏", "└"))) <= width
    for word in ("openvino", "torchscript", "fp32", "miss", "median", "first call", f"{report.engines[0].share:.1%}"):
        assert word in text
    assert f"measured: {report.measurement.gain:.2f} times as fast as eager (predicted " in text
    assert "1 round, alternately" in text
    assert "an image size not seen before: not measured, its segments always get images of the same size" in text
    matched = sum(match.matched for match in report.verification.pictures)
    assert f"verified in fp32: {matched} of {matched} boxes matched, box drift " in text
    assert "\n  backbone+detector.classes: greatest relative error " in text


def test_the_text_says_what_a_new_size_costs(tmp_path: Path) -> None:
    report = hybrid_rt.convert(
        small_detector(), (small_image(),), tmp_path / "x.pt", engine="torchscript", shapes=[(32, 32), (64, 64)]
    ).report
    new = report.measurement.new_size
    expected = f"an image size not seen before ({new.height}x{new.width}): {new.first:.0f} ms, the next call "
    assert expected in str(report)


def test_square_brackets_in_names_are_kept(report: ConversionReport) -> None:
    strange = replace(report.engines[0], name="[bold]x[/bold]")
    assert "[bold]x[/bold]" in report_text(replace(report, engines=[strange], detector="[red]"), 120)
    assert "[red] -> " in report_text(replace(report, engines=[strange], detector="[red]"), 120)


# Files


def test_json_is_saved(report: ConversionReport, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report.to_json()


@pytest.mark.parametrize("name", ["report.txt", "report", "report.pdf", "report.HTML"])
def test_another_suffix_is_refused(report: ConversionReport, tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError) as caught:
        report.save(tmp_path / name)
    assert str(caught.value).startswith(
        f"hybrid_rt[report]: {tmp_path / name}: expected a name that ends in .html or .json, got '"
    )
    assert list(tmp_path.iterdir()) == []


def test_convert_refuses_a_report_that_cannot_be_written_before_it_works(tmp_path: Path) -> None:
    for name, error in (("x.txt", OptionError), ("missing/x.html", BundleError)):
        with pytest.raises(error, match="expected"):
            hybrid_rt.convert(small_detector(), (small_image(),), tmp_path / "x.pt", report=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_verification_leaves_a_report_and_no_bundle(tmp_path: Path) -> None:
    impossible = replace(FP32, relative_error=-1.0)
    for name in ("x.html", "x.json"):
        with pytest.raises(VerificationError):
            hybrid_rt.convert(
                small_list_detector(),
                ([small_image()[0]],),
                tmp_path / "x.pt",
                engine="torchscript",
                thresholds=impossible,
                report=tmp_path / name,
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.html", "x.json"]
    assert "Verification failed" in (tmp_path / "x.html").read_text(encoding="utf-8")
    values = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert errors_of(values) == []
    assert values["verification"]["failures"]
    assert values["file_size"] == 0


def test_the_command_line_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 32), (90, 120, 30)).save(tmp_path / "grey.png")
    command = [
        "convert",
        "helpers.small_detectors:small_list_detector",
        str(tmp_path / "grey.png"),
        str(tmp_path / "x.pt"),
    ]
    options = ["--engine", "torchscript", "--no-measure", "--report", str(tmp_path / "x.json")]
    assert main([*command, *options]) == 0
    values = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert values["measurement"] is None
    assert (values["pictures"][0]["height"], values["pictures"][0]["width"]) == (32, 40)
    assert main([*command, "--report", str(tmp_path / "x.txt")]) == 2
    assert "expected a name that ends in .html or .json, got '.txt'" in capsys.readouterr().err
