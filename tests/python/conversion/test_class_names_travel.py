"""Tests that class names get from convert() into the bundle and the report, and survive every edit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import hybrid_rt
from helpers.small_detectors import Backbone, ListDetector, small_image, small_list_detector
from hybrid_rt import CocoDataset, OptionError
from hybrid_rt.cli.main import main

NAMES = ["__background__", "café", "猫"]


def detector_of_three_classes() -> ListDetector:
    """Returns a detector that finds the labels 1 and 2 on the small image."""
    detector = small_list_detector()
    detector.detector.classes.bias.zero_()
    return detector


def convert(path: Path, detector: Any = None, **options: Any) -> hybrid_rt.ConversionReport:
    detector = detector or detector_of_three_classes()
    options = {"engine": "torchscript", "segments": ["detector.backbone"], "measure": False, "verify": False} | options
    return hybrid_rt.convert(detector, ([small_image()[0]],), path, **options).report


def names_in(path: Path) -> Any:
    return hybrid_rt.inspect(path).get("class_names")


def test_without_names_there_is_no_field(tmp_path: Path) -> None:
    report = convert(tmp_path / "x.pt")
    assert "class_names" not in hybrid_rt.inspect(tmp_path / "x.pt")
    assert report.to_json()["class_names"] == []
    assert "class names" not in str(report)


@pytest.mark.parametrize("given", [NAMES, tuple(NAMES), dict(enumerate(NAMES))])
def test_names_travel_in_the_bundle(tmp_path: Path, given: Any) -> None:
    report = convert(tmp_path / "x.pt", class_names=given)
    assert names_in(tmp_path / "x.pt") == NAMES
    assert report.class_names == NAMES
    assert "class names: 3 (__background__, café, 猫)" in str(report)


def test_a_detector_names_its_classes_itself(tmp_path: Path) -> None:
    detector = detector_of_three_classes()
    detector.class_names = ["a", "b", "c"]
    convert(tmp_path / "x.pt", detector)
    assert names_in(tmp_path / "x.pt") == ["a", "b", "c"]
    convert(tmp_path / "x.pt", detector, class_names=NAMES)
    assert names_in(tmp_path / "x.pt") == NAMES


def test_an_attribute_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    detector = detector_of_three_classes()
    detector.class_names = 3
    convert(tmp_path / "x.pt", detector)
    assert names_in(tmp_path / "x.pt") is None


def dataset(directory: Path, *categories: dict[str, Any]) -> CocoDataset:
    pixels = (small_image()[0] * 255).round().byte().permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    Image.fromarray(pixels).save(directory / "one.png")
    box = {"image_id": 1, "category_id": categories[0]["id"], "bbox": [0, 0, 10, 10]}
    content = {
        "images": [{"id": 1, "file_name": "one.png", "height": height, "width": width}],
        "annotations": [box],
        "categories": list(categories),
    }
    (directory / "annotations.json").write_text(json.dumps(content))
    return CocoDataset(directory / "annotations.json", directory, labels={0: 7, 1: 9, 2: 8})


def test_a_dataset_names_its_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_rt.verification.coco.DatasetComparison.failure", "")
    truth = dataset(tmp_path, {"id": 7, "name": "seven"}, {"id": 8, "name": "eight"}, {"id": 9})
    convert(tmp_path / "x.pt", dataset=truth)
    assert names_in(tmp_path / "x.pt") == ["seven", "", "eight"]


def test_too_few_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        convert(tmp_path / "x.pt", class_names=["one", "two"])
    assert str(caught.value) == (
        "hybrid_rt[convert]: class_names: expected a name for each label that the detector finds on the example, up to "
        "2, got 2 names, for the labels 0 to 1 ('two'). A list starts at label 0: torchvision's begins with "
        '"__background__". Pass {label: name} to name only some labels.'
    )
    assert not (tmp_path / "x.pt").exists()
    convert(tmp_path / "x.pt", class_names={1: "two"})
    assert names_in(tmp_path / "x.pt") == ["", "two"]


def test_names_that_cannot_be_used_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="class_names: expected each name"):
        convert(tmp_path / "x.pt", class_names=["one", 2])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_names_survive_every_edit(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    convert(path, class_names=NAMES)
    hybrid_rt.add_variant(path, "torchscript:bf16", verify=False)
    assert names_in(path) == NAMES
    hybrid_rt.remove_variant(path, "torchscript:bf16")
    assert names_in(path) == NAMES
    with torch.random.fork_rng(devices=[]):
        backbone = Backbone().requires_grad_(False).eval()
    hybrid_rt.swap_backbone(path, backbone, tmp_path / "y.pt")
    assert names_in(tmp_path / "y.pt") == NAMES
    hybrid_rt.load(tmp_path / "y.pt")


def test_the_report_has_them_beside_the_labels(tmp_path: Path) -> None:
    report = convert(tmp_path / "x.pt", verify=True, class_names={1: "one"}, report=tmp_path / "x.html").to_json()
    boxes = report["pictures"][0]["expected"] + report["pictures"][0]["found"]
    assert {box["label"] for box in boxes} > {1}
    for box in boxes:
        assert box.get("class_name") == ("one" if box["label"] == 1 else None)
    page = (tmp_path / "x.html").read_text()
    assert "Classes: 1 (one)." in page
    assert ">one 0." in page


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "__background__\ncafé\r\n猫\n"),
        ("names.json", json.dumps(NAMES)),
        ("names.json", json.dumps(dict(enumerate(NAMES)))),
    ],
)
def test_the_command_line_reads_a_file_of_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert convert_by_command(tmp_path, tmp_path / name) == 0
    assert names_in(tmp_path / "x.pt") == NAMES
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "x.pt")]) == 0
    assert "class names: 3 (__background__, café, 猫)" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "expected a text file in UTF-8 with one class name per line, or JSON, got No such file or directory."),
        (b"\xff\xfe", "expected a text file in UTF-8 with one class name per line, or JSON, got 'utf-8' codec"),
        (b"[1", 'expected JSON, ["name", ...] or {"label": "name", ...}, got '),
        (b'{"one": "two"}', 'expected JSON, ["name", ...] or {"label": "name", ...}, got invalid literal'),
        (b"", "class_names: expected at least one name, got none."),
        (b"[1, 2]", "class_names: expected each name to be one line of text, got int 1 for label 0."),
    ],
)
def test_a_file_that_has_no_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, error: str
) -> None:
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)
    assert convert_by_command(tmp_path, file) == 2
    assert error in capsys.readouterr().err


def convert_by_command(directory: Path, names: Path) -> int:
    pixels = (small_image()[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(directory / "noise.png")
    detector = "helpers.small_detectors:small_list_detector"
    files = [str(directory / "noise.png"), str(directory / "x.pt")]
    options = ["--engine", "torchscript", "--no-verify", "--no-measure", "--class-names", str(names)]
    return main(["convert", detector, *files, "--segments", "detector.backbone", *options])
