import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

from models import digits_data, digits_detector, torchvision_detectors

HELD_OUT_DIRECTORY = digits_detector.WEIGHTS.parents[1] / "held_out"


@pytest.fixture(scope="module")
def samples():
    return digits_data.make_split("train", 6)


def test_splits_share_no_digit_and_no_photograph():
    train, held_out = (set(digits_data.digit_indices(split)) for split in ("train", "held_out"))
    assert not train & held_out
    assert train | held_out == set(range(1797))
    photographs = digits_data.PHOTOGRAPHS
    assert not set(photographs["train"]) & set(photographs["held_out"])
    assert len(photographs["train"]) >= 5
    assert len(photographs["held_out"]) >= 5


def test_photographs_of_the_splits_are_different_images():
    digests = {digits_data.photograph(name).tobytes() for names in digits_data.PHOTOGRAPHS.values() for name in names}
    assert len(digests) == sum(len(names) for names in digits_data.PHOTOGRAPHS.values())


def test_same_seed_gives_the_same_images(samples):
    again = digits_data.make_split("train", 6)
    for first, second in zip(samples, again, strict=True):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.boxes, second.boxes)
        np.testing.assert_array_equal(first.labels, second.labels)
        assert first.file_name == second.file_name


def test_other_seed_or_split_gives_other_images(samples):
    for other in (digits_data.make_sample("train", 0, seed=1), digits_data.make_sample("held_out", 0)):
        assert other.image.shape != samples[0].image.shape or not np.array_equal(other.image, samples[0].image)


def test_larger_count_only_appends(samples):
    fewer = digits_data.make_split("train", 2)
    np.testing.assert_array_equal(fewer[1].image, samples[1].image)


def test_samples_have_the_stated_types_and_ranges(samples):
    for sample in samples:
        height, width, channels = sample.image.shape
        assert sample.image.dtype == np.uint8
        assert sample.boxes.dtype == np.float32
        assert sample.labels.dtype == np.int64
        assert channels == 3
        assert 240 <= height <= 320
        assert 320 <= width <= 416
        assert len(sample.boxes) == len(sample.labels) >= 1
        assert (sample.boxes[:, :2] >= 0).all()
        assert (sample.boxes[:, 2:] <= (width, height)).all()
        assert (sample.boxes[:, 2:] - sample.boxes[:, :2] >= 5).all()
        assert ((sample.labels >= 1) & (sample.labels <= 10)).all()


def test_boxes_do_not_overlap(samples):
    for sample in samples:
        boxes = torch.from_numpy(sample.boxes)
        assert torch.equal(box_iou(boxes, boxes), torch.eye(len(boxes)))


def test_coco_annotations_describe_the_samples(samples):
    annotations = json.loads(json.dumps(digits_data.coco_annotations(samples)))
    assert [image["file_name"] for image in annotations["images"]] == [s.file_name for s in samples]
    assert [category["id"] for category in annotations["categories"]] == list(range(1, 11))
    assert [category["name"] for category in annotations["categories"]] == list("0123456789")
    assert len(annotations["annotations"]) == sum(len(sample.labels) for sample in samples)
    assert len({entry["id"] for entry in annotations["annotations"]}) == len(annotations["annotations"])
    first = annotations["annotations"][0]
    x1, y1, x2, y2 = samples[0].boxes[0].tolist()
    assert first["image_id"] == 1
    assert first["category_id"] == samples[0].labels[0]
    assert first["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert first["area"] == (x2 - x1) * (y2 - y1)
    assert first["iscrowd"] == 0


def test_write_split_writes_what_it_returns(tmp_path):
    written = digits_data.write_split(tmp_path / "new", "held_out", 2, seed=5)
    annotations = json.loads((tmp_path / "new" / "annotations.json").read_text(encoding="utf-8"))
    assert annotations == digits_data.coco_annotations(written)
    for sample in written:
        with Image.open(tmp_path / "new" / sample.file_name) as image:
            np.testing.assert_array_equal(np.asarray(image), sample.image)


def test_shipped_held_out_images_match_their_annotations():
    annotations = json.loads((HELD_OUT_DIRECTORY / "annotations.json").read_text(encoding="utf-8"))
    assert len(annotations["images"]) == 6
    for entry in annotations["images"]:
        path = HELD_OUT_DIRECTORY / entry["file_name"]
        assert path.stat().st_size < 250_000
        with Image.open(path) as image:
            assert image.size == (entry["width"], entry["height"])


def test_shipped_weights_are_small():
    assert digits_detector.WEIGHTS.stat().st_size <= 15_000_000


def test_shipped_numbers_belong_to_the_shipped_weights():
    report = json.loads(digits_detector.WEIGHTS.with_name("training.json").read_text(encoding="utf-8"))
    detector = digits_detector.load()
    assert report["parameters"] == sum(parameter.numel() for parameter in detector.parameters())
    assert report["losses"][-1]["step"] == report["steps"]


def test_load_gives_a_detector_in_eval_mode_without_gradients():
    detector = digits_detector.load()
    assert isinstance(detector, FasterRCNN)
    assert not detector.training
    assert not any(parameter.requires_grad for parameter in detector.parameters())


def test_load_without_weights_fails(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        digits_detector.load(tmp_path / "missing.pt")


@pytest.mark.slow
def test_the_trained_detector_detects_held_out_digits():
    detector = digits_detector.load()
    result = digits_detector.evaluate(detector, digits_data.make_split("held_out", 40))
    report = json.loads(digits_detector.WEIGHTS.with_name("training.json").read_text(encoding="utf-8"))
    assert result["mAP50"] >= 0.85
    # The report covers 200 images, of which these are the first.
    assert result["mAP50"] == pytest.approx(report["held_out"]["mAP50"], abs=0.03)
    assert result["mAP"] == pytest.approx(report["held_out"]["mAP"], abs=0.03)
    assert result["mAP"] < result["mAP50"]


def test_evaluate_of_perfect_detections_is_one(samples, capsys):
    truth = iter(samples)

    def detect(images):
        sample = next(truth)
        assert images[0].shape == (3, *sample.image.shape[:2])
        return [
            {
                "boxes": torch.from_numpy(sample.boxes),
                "labels": torch.from_numpy(sample.labels),
                "scores": torch.ones(len(sample.labels)),
            }
        ]

    result = digits_detector.evaluate(detect, samples)
    assert result == {"mAP": pytest.approx(1.0), "mAP50": pytest.approx(1.0)}
    assert capsys.readouterr().out == ""


def test_evaluate_without_detections_is_zero(samples):
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    assert digits_detector.evaluate(lambda images: [nothing], samples) == {"mAP": 0.0, "mAP50": 0.0}


def test_images_have_the_wanted_sizes():
    sizes = [(64, 96), (120, 80)]
    result = torchvision_detectors.photographs(sizes)
    assert [tuple(image.shape) for image in result] == [(3, *size) for size in sizes]
    for image in result:
        assert image.dtype == torch.float32
        assert 0.0 <= image.min() < image.max() <= 1.0
        assert image.std() == pytest.approx(0.25, abs=0.05)


def test_build_of_an_unknown_detector_fails():
    with pytest.raises(ValueError, match=r"expected one of fasterrcnn_resnet50_fpn, .*, got 'yolo'"):
        torchvision_detectors.build("yolo")


@pytest.mark.slow
def test_build_depends_on_the_seed_and_leaves_the_random_state():
    state = torch.get_rng_state()
    name = "ssdlite320_mobilenet_v3_large"
    first, again, other = (torchvision_detectors.build(name, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    weights, same = first.state_dict(), again.state_dict()
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    key = "head.classification_head.module_list.0.1.weight"
    assert not torch.equal(weights[key], other.state_dict()[key])
