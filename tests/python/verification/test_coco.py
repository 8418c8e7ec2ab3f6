"""Tests of annotated images as an acceptance criterion: the report, refusals, and requirements on a dataset."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import hybrid_rt
from helpers.paths import ROOT
from helpers.small_detectors import Backbone
from hybrid_rt import Accuracy, CocoDataset, OptionError, VerificationError
from hybrid_rt.cli.main import main
from hybrid_rt.verification import coco

HELD_OUT = ROOT / "models" / "held_out"
ANNOTATIONS = HELD_OUT / "annotations.json"
DATASET = CocoDataset(ANNOTATIONS, HELD_OUT)


@pytest.fixture
def annotations(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], CocoDataset]:
    """Returns a function that makes a dataset of the held-out images with changed annotations."""

    def changed(change: Callable[[dict[str, Any]], object]) -> CocoDataset:
        content = json.loads(ANNOTATIONS.read_text())
        change(content)
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return CocoDataset(path, HELD_OUT)

    return changed


def boxes_of(image_id: int, content: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the annotated boxes of an image as detections."""
    found = [entry for entry in content["annotations"] if entry["image_id"] == image_id]
    boxes = torch.tensor([entry["bbox"] for entry in found]).reshape(-1, 4)
    return {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
        "labels": torch.tensor([entry["category_id"] for entry in found]),
        "scores": torch.ones(len(found)),
    }


class Oracle(nn.Module):
    """Finds the annotated boxes of the images in order, except some of them."""

    def __init__(self, left_out: int = 0) -> None:
        super().__init__()
        self.content = json.loads(ANNOTATIONS.read_text())
        self.asked = 0
        self.left_out = left_out

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.asked += 1
        found = boxes_of(self.asked, self.content)
        return [{name: value[self.left_out :] for name, value in found.items()}]


def test_the_demo_detector_and_its_bundle_have_the_same_map(
    demo_detector: nn.Module, demo_bundle: Path, demo_image: Tensor
) -> None:
    verification = hybrid_rt.verify(demo_detector, demo_bundle, [([demo_image],)], dataset=DATASET)
    assert verification.passed, verification.failures
    comparison = verification.dataset
    assert comparison is not None
    assert comparison.pictures == 6
    assert 0.5 < comparison.detector.mAP < comparison.detector.mAP50 <= 1
    assert comparison.hybrid.mAP == pytest.approx(comparison.detector.mAP, abs=1e-3)
    record = verification.to_json()["dataset"]
    assert record["hybrid"] == {"mAP": comparison.hybrid.mAP, "mAP50": comparison.hybrid.mAP50}


def test_perfect_and_no_detections() -> None:
    truth = coco.read(DATASET)
    comparison = coco.compare(Oracle(), Oracle(left_out=1000), truth, 0.005)
    assert comparison.detector == Accuracy(pytest.approx(1.0), pytest.approx(1.0))
    assert comparison.hybrid == Accuracy(0.0, 0.0)
    assert comparison.drop == pytest.approx(1.0)


def test_a_drop_above_the_limit_is_a_failure_with_both_numbers() -> None:
    truth = coco.read(DATASET)
    comparison = coco.compare(Oracle(), Oracle(left_out=1), truth, 0.005)
    assert 0.5 < comparison.hybrid.mAP < 0.995
    assert comparison.failure == (
        f"dataset {ANNOTATIONS}: mAP {comparison.hybrid.mAP:.4f} (detector 1.0000), mAP@0.5 "
        f"{comparison.hybrid.mAP50:.4f} (detector 1.0000) on 6 images (allowed drop 0.005)"
    )
    assert coco.compare(Oracle(), Oracle(left_out=1), truth, 0.9).failure == ""
    assert coco.compare(Oracle(left_out=1), Oracle(), truth, 0.0).failure == ""


def test_a_detector_with_zero_map_proves_nothing() -> None:
    failure = coco.compare(Oracle(left_out=1000), Oracle(), coco.read(DATASET), 0.005).failure
    assert "the detector's own mAP is 0, so nothing was compared" in failure


@pytest.mark.slow
def test_convert_reports_the_map(tmp_path: Path, demo_detector: nn.Module, demo_image: Tensor) -> None:
    path = tmp_path / "x.pt"
    result = hybrid_rt.convert(
        demo_detector, ([demo_image],), path, engine="torchscript", dataset=CocoDataset(ANNOTATIONS, HELD_OUT, limit=2)
    )
    comparison = result.report.verification.dataset
    assert comparison.pictures == 2
    assert f"{comparison}\n" in str(result.report)
    assert hybrid_rt.inspect(path)["verification"]["dataset"]["detector"]["mAP"] == comparison.detector.mAP


class Forgets(nn.Module):
    """Finds the image's only box in eager mode, and nothing when scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for image in images:
            boxes = torch.tensor([[4.0, 4.0, 20.0, 20.0]]) + 0.0 * self.backbone(image[None])["coarse"].mean()
            if torch.jit.is_scripting():
                boxes = boxes[:0]
            count = boxes.shape[0]
            found.append({"boxes": boxes, "labels": torch.ones(count, dtype=torch.int64), "scores": torch.ones(count)})
        return found


def test_nothing_is_saved_when_the_map_drops(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "images": [{"id": 7, "file_name": "a.png"}],
                "annotations": [{"image_id": 7, "category_id": 1, "bbox": [4, 4, 16, 16]}],
                "categories": [{"id": 1}],
            }
        )
    )
    dataset = CocoDataset(tmp_path / "a.json", tmp_path)
    path = tmp_path / "x.pt"
    inputs, detector = ([torch.zeros(3, 32, 32)],), Forgets().eval()
    with pytest.raises(VerificationError) as caught:
        hybrid_rt.convert(
            detector,
            inputs,
            path,
            segments=["backbone"],
            head="script",
            engine="torchscript",
            verify=False,
            dataset=dataset,
        )
    assert f"dataset {tmp_path / 'a.json'}: mAP 0.0000 (detector 1.0000), mAP@0.5 0.0000" in str(caught.value)
    assert "on 1 images (allowed drop 0.005)" in str(caught.value)
    assert "Nothing was saved." in str(caught.value)
    assert not path.exists()


# What a dataset must be


def refused(dataset: CocoDataset, max_map_drop: Any = 0.005) -> str:
    with pytest.raises(OptionError) as caught:
        coco.read(dataset, max_map_drop)
    text = str(caught.value)
    assert text.startswith("hybrid_rt[verify]: ")
    return text


def test_a_missing_file_and_a_missing_directory(tmp_path: Path) -> None:
    missing = tmp_path / "no.json"
    assert f"annotations {missing}: expected a JSON file, got No such file" in refused(CocoDataset(missing, HELD_OUT))
    nowhere = tmp_path / "nowhere"
    assert f"images {nowhere}: expected a directory, got no such directory" in refused(
        CocoDataset(ANNOTATIONS, nowhere)
    )


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_a_file_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert f"annotations {path}: expected JSON, got " in refused(CocoDataset(path, HELD_OUT))


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"images": 5}', '{"images": [], "annotations": []}'])
def test_json_of_another_form(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert "expected a dictionary in COCO's format with the list '" in refused(CocoDataset(path, HELD_OUT))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content["images"].clear(), "expected annotations[0] of an image in 'images', got image_id 1"),
        (lambda content: content["annotations"].clear(), "annotated images, got 6 images with 0 annotations"),
        (lambda content: content["images"][2].pop("file_name"), "expected 'file_name' in images[2], got none"),
        (lambda content: content["annotations"][0].pop("bbox"), "expected 'bbox' in annotations[0], got none"),
        (
            lambda content: content["annotations"][1].update(bbox=[1, 2, 3]),
            "a bbox [x, y, width, height], got [1, 2, 3]",
        ),
        (lambda content: content["annotations"][1].update(category_id=99), "got category_id 99"),
        (lambda content: content["images"][1].update(file_name="no.png"), "that {path} names, got no no.png."),
        (
            lambda content: [image.update(file_name=f"no_{image['id']}.png") for image in content["images"]],
            "got no no_1.png and 5 more",
        ),
    ],
)
def test_annotations_that_cannot_be_used(
    annotations: Callable[..., CocoDataset], change: Callable[[dict[str, Any]], object], text: str
) -> None:
    dataset = annotations(change)
    assert text.format(path=dataset.annotations) in refused(dataset)


def test_fields_that_many_files_lack_are_not_needed(annotations: Callable[..., CocoDataset]) -> None:
    def strip(content: dict[str, Any]) -> None:
        content.pop("info", None)
        for image in content["images"]:
            del image["height"], image["width"]
        for annotation in content["annotations"]:
            for name in ("id", "area", "iscrowd"):
                annotation.pop(name)

    comparison = coco.compare(Oracle(), Oracle(), coco.read(annotations(strip)), 0.005)
    assert comparison.detector.mAP == pytest.approx(1.0)


def test_an_image_of_another_size_than_annotated(annotations: Callable[..., CocoDataset]) -> None:
    truth = coco.read(annotations(lambda content: content["images"][0].update(height=100)))
    with pytest.raises(OptionError, match="expected 100x335 as annotated, got 255x335"):
        coco.compare(Oracle(), Oracle(), truth, 0.005)


def test_an_image_that_is_damaged(tmp_path: Path) -> None:
    shutil.copytree(HELD_OUT, tmp_path / "copy")
    (tmp_path / "copy" / "held_out_28_00000.png").write_text("no image")
    truth = coco.read(CocoDataset(ANNOTATIONS, tmp_path / "copy"))
    with pytest.raises(OptionError, match=r"hybrid_rt\[verify\]: image .*00000.png: expected an image file, got "):
        coco.compare(Oracle(), Oracle(), truth, 0.005)


def test_labels_without_a_category(annotations: Callable[..., CocoDataset]) -> None:
    class Shifted(Oracle):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            (found,) = super().forward(images)
            return [{**found, "labels": found["labels"] + 100}]

    with pytest.raises(OptionError) as caught:
        coco.compare(Shifted(), Shifted(), coco.read(DATASET), 0.005)
    text = str(caught.value)
    assert "labels: expected category ids of the annotations (1, 2, 3, " in text
    assert "got the label 10" in text
    assert "Pass CocoDataset(labels={label: category id})." in text
    mapped = CocoDataset(ANNOTATIONS, HELD_OUT, labels={label + 100: label for label in range(1, 11)})
    assert coco.compare(Shifted(), Shifted(), coco.read(mapped), 0.005).hybrid.mAP == pytest.approx(1.0)
    some = CocoDataset(ANNOTATIONS, HELD_OUT, labels={101: 1})
    assert 0 < coco.compare(Shifted(), Shifted(), coco.read(some), 0.005).hybrid.mAP < 0.5
    assert "expected category ids of " in refused(CocoDataset(ANNOTATIONS, HELD_OUT, labels={1: 77}))


def test_a_detector_of_another_interface() -> None:
    class Tuples(nn.Module):
        def forward(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
            return images[0], images[0]

    with pytest.raises(OptionError, match="expected one that takes a list of images and returns a list of dicts"):
        coco.compare(Tuples(), Tuples(), coco.read(DATASET), 0.005)


@pytest.mark.parametrize("drop", [-0.1, float("nan"), float("inf"), "much"])
def test_an_invalid_drop(drop: object) -> None:
    assert "max_map_drop: expected a number of 0 or more" in refused(DATASET, drop)


def test_a_limit_of_no_images() -> None:
    assert "limit: expected a number of images, 1 or more" in refused(CocoDataset(ANNOTATIONS, HELD_OUT, limit=0))
    assert len(coco.read(CocoDataset(ANNOTATIONS, HELD_OUT, limit=2)).files) == 2


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pycocotools")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    text = refused(DATASET)
    assert "dataset: expected the package pycocotools, got " in text
    assert text.endswith("pip install pycocotools")


# The command line


def convert(tmp_path: Path, *options: object) -> int:
    arguments = ["models.digits_detector:load", HELD_OUT / "held_out_28_00000.png", tmp_path / "x.pt"]
    return main(["convert", *map(str, arguments), "--engine", "torchscript", *map(str, options)])


@pytest.mark.slow
def test_convert_with_a_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert convert(tmp_path, "--coco", ANNOTATIONS, "--pictures", HELD_OUT, "--coco-limit", 2, "--no-verify") == 0
    out = capsys.readouterr().out
    assert f"dataset {ANNOTATIONS}: mAP 0." in out.replace("\n", "")
    assert "on 2 images" in out
    assert main(["inspect", str(tmp_path / "x.pt")]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert "mAP 0." in shown
    assert "on 2 images" in shown


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--coco-images", "directory"], "--coco-images, --coco-limit: expected --coco as well, got none"),
        (["--coco-limit", "5"], "--coco-images, --coco-limit: expected --coco as well, got none"),
        (["--coco", "no.json"], "annotations no.json: expected a JSON file, got No such file"),
        (["--coco", ANNOTATIONS, "--max-map-drop", "-1"], "max_map_drop: expected a number of 0 or more"),
    ],
)
def test_convert_with_a_wrong_gate(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[object],
    text: str,
) -> None:
    monkeypatch.chdir(ROOT)
    assert convert(tmp_path, *options) == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
