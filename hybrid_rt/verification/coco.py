"""Compares the mean average precision of detector and hybrid on a COCO dataset."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import OptionError
from ..common.images import read_image
from .boxes import detections_of

Detect = Callable[[list[Tensor]], list[dict[str, Tensor]]]


@dataclass(frozen=True)
class CocoDataset:
    """An annotated dataset, for comparisons of the mAP.

    Attributes:
        annotations: path of a JSON file in COCO's format: "images" (id, file_name, height, width), "annotations"
            (image_id, category_id, bbox as x, y, width, height in pixels) and "categories" (id).
        pictures: directory that the file names are relative to.
        limit: number of images to use, from the first on; None: all.
        labels: {label of the detector: category id}, for a detector whose labels are not the category ids. Detections
            with other labels are ignored. None: labels are category ids.
    """

    annotations: str | os.PathLike[str]
    pictures: str | os.PathLike[str]
    limit: int | None = None
    labels: Mapping[int, int] | None = None


@dataclass(frozen=True)
class Accuracy:
    """COCO's mean average precision of boxes (the metrics AP and AP50 of pycocotools).

    Attributes:
        mAP: mean over the IoU thresholds 0.50 to 0.95, in 0..1.
        mAP50: average precision at the IoU threshold 0.50, in 0..1.
    """

    mAP: float
    mAP50: float


@dataclass(frozen=True)
class DatasetComparison:
    """Accuracy of detector and hybrid on the same images.

    Attributes:
        annotations: path of the dataset's JSON file.
        pictures: number of images.
        detector: accuracy of the detector.
        hybrid: accuracy of the hybrid.
        max_map_drop: largest allowed drop of the mAP, in 0..1.
    """

    annotations: str
    pictures: int
    detector: Accuracy
    hybrid: Accuracy
    max_map_drop: float

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DatasetComparison:
        """Returns the comparison that is stored in a manifest.

        Args:
            values: the JSON values.
        """
        both = {side: Accuracy(**values[side]) for side in ("detector", "hybrid")}
        return cls(**{**values, **both})

    @property
    def drop(self) -> float:
        """Returns how much the hybrid's mAP is below the detector's, in 0..1; negative if it is above."""
        return self.detector.mAP - self.hybrid.mAP

    @property
    def failure(self) -> str:
        """Returns the reason why the hybrid does not pass; empty if it does."""
        if not self.detector.mAP > 0:
            return (
                f"dataset {self.annotations}: the detector's own mAP is 0, so nothing was compared. Check "
                "that its labels are the category ids and its boxes are in pixels of these images"
            )
        return "" if self.drop <= self.max_map_drop else f"{self} (allowed drop {self.max_map_drop:g})"

    def __str__(self) -> str:
        """Returns one line."""
        return (
            f"dataset {self.annotations}: mAP {self.hybrid.mAP:.4f} (detector {self.detector.mAP:.4f}), mAP@0.5 "
            f"{self.hybrid.mAP50:.4f} (detector {self.detector.mAP50:.4f}) on {self.pictures} images"
        )


@dataclass(frozen=True)
class Truth:
    """A dataset in memory: COCO's dictionary, and the file of each image by the image's id."""

    name: str
    content: dict[str, Any]
    files: dict[int, Path]
    labels: Mapping[int, int] | None

    @property
    def categories(self) -> set[int]:
        """Returns the ids of the categories."""
        return {category["id"] for category in self.content["categories"]}


def read(dataset: CocoDataset, max_map_drop: float = 0.005) -> Truth:
    """Reads the annotations, and checks that they and the images can be used; decodes no image.

    Raises:
        OptionError: pycocotools is missing, or the dataset can't be used; the text gives the reason.
    """
    _require_pycocotools()
    if not (isinstance(max_map_drop, (int, float)) and math.isfinite(max_map_drop) and max_map_drop >= 0):
        raise _wrong("max_map_drop", "a number of 0 or more (mAP is in 0..1)", repr(max_map_drop))
    if dataset.limit is not None and dataset.limit < 1:
        raise _wrong("limit", "a number of images, 1 or more, or None", repr(dataset.limit))
    path = Path(dataset.annotations)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _wrong(f"annotations {path}", "a JSON file", error.strerror or str(error)) from error
    except ValueError as error:  # no JSON, or no text
        raise _wrong(f"annotations {path}", "JSON", str(error)) from error
    kept = _checked(str(path), content, dataset.limit)
    directory = Path(dataset.pictures)
    if not directory.is_dir():
        raise _wrong(f"images {directory}", "a directory", "no such directory")
    files = {image["id"]: directory / image["file_name"] for image in kept["images"]}
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise _wrong(
            f"images {directory}",
            f"every image that {path} names",
            f"no {missing[0].relative_to(directory)}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
        )
    truth = Truth(str(path), kept, files, dataset.labels)
    unknown = set((dataset.labels or {}).values()) - truth.categories
    if unknown:
        raise _wrong("labels", f"category ids of {path} ({_some(truth.categories)})", _some(unknown))
    return truth


def _checked(name: str, content: Any, limit: int | None) -> dict[str, Any]:
    """Returns the part of a COCO dictionary that is evaluated, with the fields that many files leave out.

    Raises:
        OptionError: It is not such a dictionary, or has nothing to evaluate.
    """
    subject = f"annotations {name}"
    for key, fields in (
        ("images", ("id", "file_name")),
        ("annotations", ("image_id", "category_id", "bbox")),
        ("categories", ("id",)),
    ):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise _wrong(subject, f"a dictionary in COCO's format with the list '{key}'", "none")
        for i, entry in enumerate(entries):
            absent = [field for field in fields if not isinstance(entry, dict) or field not in entry]
            if absent:
                raise _wrong(subject, f"'{absent[0]}' in {key}[{i}]", "none")
    images = content["images"][:limit]
    ids = {image["id"] for image in images}
    all_ids = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    annotations: list[dict[str, Any]] = []
    for i, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] not in all_ids:
            raise _wrong(subject, f"annotations[{i}] of an image in 'images'", f"image_id {annotation['image_id']}")
        if annotation["category_id"] not in categories:
            raise _wrong(
                subject,
                f"annotations[{i}] of a category in 'categories' ({_some(categories)})",
                f"category_id {annotation['category_id']}",
            )
        box = annotation["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)):
            raise _wrong(subject, f"annotations[{i}] with a bbox [x, y, width, height]", repr(box))
        if annotation["image_id"] in ids:
            annotations.append({"area": box[2] * box[3], "iscrowd": 0, **annotation, "id": len(annotations) + 1})
    if not images or not annotations:
        raise _wrong(subject, "annotated images", f"{len(images)} images with {len(annotations)} annotations")
    return {"info": {}, **content, "images": images, "annotations": annotations}


def compare(detector: Detect, hybrid: Detect, truth: Truth, max_map_drop: float) -> DatasetComparison:
    """Runs detector and hybrid on every image.

    Args:
        detector: see :func:`accuracies`.
        hybrid: see :func:`accuracies`.
        truth: the result of :func:`read`.
        max_map_drop: largest allowed drop of the mAP, in 0..1.

    Raises:
        OptionError: see :func:`accuracies`.
    """
    first, second = accuracies([detector, hybrid], truth)
    return DatasetComparison(truth.name, len(truth.files), first, second, float(max_map_drop))


def accuracies(detectors: Sequence[Detect], truth: Truth) -> list[Accuracy]:
    """Returns the mean average precision of each detector; each image is read once.

    Args:
        detectors: each takes a list of one image [3, H, W] in 0..1, and returns a list of one dict with "boxes"
            [n, 4] in pixels, "scores" [n] and "labels" [n].
        truth: the result of :func:`read`.

    Raises:
        OptionError: An image can't be read or its size differs from the annotations, or a detector does not return
            detections or returns labels that are not categories.
    """
    results: list[list[dict[str, Any]]] = [[] for _ in detectors]
    for image in truth.content["images"]:
        pixels = read_image(truth.files[image["id"]], "verify")
        size = tuple(pixels.shape[-2:])
        annotated = (image.get("height", size[0]), image.get("width", size[1]))
        if size != annotated:
            raise _wrong(
                f"image {truth.files[image['id']]}",
                f"{annotated[0]}x{annotated[1]} as annotated",
                f"{size[0]}x{size[1]}",
            )
        for detect, found in zip(detectors, results, strict=True):
            with torch.no_grad():
                detections = detections_of(detect([pixels.clone()]))
            if detections is None or len(detections) != 1:
                raise _wrong(
                    "the detector",
                    "one that takes a list of images and returns a list of dicts with boxes, labels and scores",
                    "another result",
                    "Only such detectors can be evaluated on a COCO dataset.",
                )
            found += coco_results(image["id"], detections[0], truth.labels, truth.categories)
    return [mean_average_precision(truth.content, found) for found in results]


def coco_results(
    image_id: int,
    detections: Mapping[str, Tensor],
    labels: Mapping[int, int] | None = None,
    categories: Collection[int] | None = None,
) -> list[dict[str, Any]]:
    """Returns the detections of one image in COCO's result format.

    Args:
        image_id: the image's id.
        detections: "boxes" [n, 4] in pixels, "labels" [n], "scores" [n].
        labels: {label: category id}; others are left out. None: they are the same.
        categories: allowed category ids; None: any.

    Raises:
        OptionError: A label is not one of the categories.
    """
    results = []
    for (x1, y1, x2, y2), label, score in zip(
        detections["boxes"].cpu().double().tolist(),
        detections["labels"].tolist(),
        detections["scores"].tolist(),
        strict=True,
    ):
        if labels is not None and label not in labels:
            continue
        category = labels[label] if labels is not None else label
        if categories is not None and category not in categories:
            raise _wrong(
                "labels",
                f"category ids of the annotations ({_some(categories)})",
                f"the label {label} of a detection",
                "Pass CocoDataset(labels={label: category id}).",
            )
        results.append(
            {"image_id": image_id, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        )
    return results


def mean_average_precision(truth: Mapping[str, Any], results: Sequence[dict[str, Any]]) -> Accuracy:
    """Returns COCO's accuracy of boxes.

    Args:
        truth: the annotations, COCO's dictionary. It is not changed.
        results: in COCO's result format.

    Raises:
        OptionError: pycocotools is missing.
    """
    _require_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not results:
        return Accuracy(0.0, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports by printing
        known = COCO()
        known.dataset = copy.deepcopy(dict(truth))
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes([dict(result) for result in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return Accuracy(max(0.0, float(evaluation.stats[0])), max(0.0, float(evaluation.stats[1])))


def _require_pycocotools() -> None:
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise _wrong("dataset", "the package pycocotools", str(error), "pip install pycocotools") from error


def _wrong(subject: str, expected: str, got: str, remedy: str = "") -> OptionError:
    return OptionError.make("verify", subject, expected=expected, got=got, remedy=remedy)


def _some(values: Collection[int]) -> str:
    words = [str(value) for value in sorted(values)]
    return ", ".join(words if len(words) <= 12 else [*words[:10], "...", words[-1]])
