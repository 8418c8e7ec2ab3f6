"""Tests of the installed C++ program hybrid-rt-detect: its output, files and exit codes."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import hybrid_rt
from helpers.bundle_surgery import rewrite_manifest
from helpers.small_detectors import OneConvolution
from hybrid_rt.common.class_names import class_colour
from hybrid_rt.common.executables import program as find_program
from models import digits_detector

OK, WRONG_USAGE, IMAGE_UNREADABLE, BUNDLE_UNLOADABLE, RUN_FAILED, OUTPUT_UNWRITABLE, DIFFERS = 0, 2, 3, 4, 5, 6, 7


@pytest.fixture(scope="module")
def program() -> str:
    return find_program("hybrid-rt-detect", "test")


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [program, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def run_json(program: str, *arguments: object) -> dict[str, Any]:
    done = run(program, *arguments, "--json")
    assert done.returncode == OK, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def error_of(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Returns the only error line of a failed run, without its prefix."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    prefix = "hybrid-rt-detect: error: "
    lines = [line for line in done.stderr.splitlines() if line.startswith(prefix)]
    assert len(lines) == 1, done.stderr
    assert done.stderr.endswith(lines[0] + "\n")
    assert lines[0].startswith(prefix + "hybrid_rt[")
    assert ": expected " in lines[0]
    assert ", got " in lines[0]
    return lines[0].removeprefix(prefix)


def detect_in_python(bundle: Path | str, path: Path | str) -> dict[str, Tensor]:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    image = torch.tensor(pixels).permute(2, 0, 1).float().div(255).contiguous()
    with torch.inference_mode():
        return hybrid_rt.load(str(bundle))([image])[0]


def assert_same_detections(printed: list[dict[str, Any]], expected: dict[str, Tensor]) -> None:
    assert printed
    assert [item["label"] for item in printed] == expected["labels"].tolist()
    boxes = torch.tensor([item["box"] for item in printed])
    scores = torch.tensor([item["score"] for item in printed])
    torch.testing.assert_close(boxes, expected["boxes"], rtol=0, atol=1e-2)
    torch.testing.assert_close(scores, expected["scores"], rtol=0, atol=1e-3)


@pytest.fixture
def label_names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("".join(f"class-{label}\n" for label in range(200)))
    return path


def with_names(bundle: Path, output: Path, names: list[str] | None) -> Path:
    """Copies a bundle with other class names, or without any if ``names`` is None."""

    def change(manifest: dict[str, Any]) -> None:
        manifest.pop("class_names", None)
        if names is not None:
            manifest["class_names"] = names

    return rewrite_manifest(bundle, output, change)


@pytest.fixture(scope="module")
def nameless_bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the demo bundle without class names, as older versions saved it."""
    return with_names(demo_bundle, tmp_path_factory.mktemp("nameless") / "digits.pt", None)


@pytest.fixture(scope="module")
def tensor_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a bundle that takes a tensor instead of a list of images."""
    path = tmp_path_factory.mktemp("tensor_bundle") / "network.pt"
    example = (torch.rand(1, 3, 32, 32),)
    hybrid_rt.convert(
        OneConvolution().eval(), example, str(path), segments=["backbone"], engine="torchscript", verify=False
    )
    return path


def test_json_has_the_documented_keys(program, nameless_bundle, demo_image_path):
    result = run_json(program, nameless_bundle, demo_image_path)
    assert list(result) == ["detections", "engines", "timing_ms"]
    assert result["detections"]
    for item in result["detections"]:
        assert list(item) == ["box", "label", "score"]
        assert len(item["box"]) == 4
        assert all(isinstance(coordinate, float) for coordinate in item["box"])
        assert isinstance(item["label"], int)
        assert 0 <= item["score"] <= 1
    assert result["engines"]
    assert set(result["engines"].values()) <= {"openvino", "torchscript", "aot_inductor", "onnxruntime", "tvm"}
    timing = result["timing_ms"]
    assert list(timing) == ["load", "decode", "first", "median", "p95", "repeat"]
    assert all(math.isfinite(value) and value > 0 for value in timing.values())
    assert timing["repeat"] == 1


def test_json_has_the_class_names_of_the_bundle(program, demo_bundle, demo_image_path):
    detections = run_json(program, demo_bundle, demo_image_path)["detections"]
    assert detections
    for item in detections:
        assert list(item) == ["box", "label", "class_name", "score"]
        assert item["class_name"] == digits_detector.CLASS_NAMES[item["label"]]


def test_json_has_no_name_where_there_is_none(program, demo_bundle, demo_image_path, tmp_path):
    names = ["", "", "", "two", "thrée"]
    bundle = with_names(demo_bundle, tmp_path / "few.pt", names)
    detections = run_json(program, bundle, demo_image_path)["detections"]
    assert {item["label"] for item in detections} - {3, 4}
    for item in detections:
        name = dict(enumerate(names)).get(item["label"]) or None
        assert item.get("class_name") == name


def test_invalid_class_names_fail(program, demo_bundle, demo_image_path, tmp_path):
    bundle = rewrite_manifest(demo_bundle, tmp_path / "x.pt", lambda manifest: manifest.update(class_names=[1]))
    message = error_of(run(program, bundle, demo_image_path), BUNDLE_UNLOADABLE)
    assert "x.pt, manifest, class_names: expected a list of strings, got " in message


def test_detections_are_those_of_python(program, demo_bundle, demo_image_path):
    result = run_json(program, demo_bundle, demo_image_path)
    assert_same_detections(result["detections"], detect_in_python(demo_bundle, demo_image_path))


def test_jpeg_gives_the_detections_of_python(program, demo_bundle, demo_image_path, tmp_path):
    # The wrong suffix is deliberate: the content determines the type.
    image = tmp_path / "image.png"
    Image.open(demo_image_path).convert("RGB").save(image, format="JPEG", quality=95)
    result = run_json(program, demo_bundle, image)
    assert_same_detections(result["detections"], detect_in_python(demo_bundle, image))


def test_repeat_is_counted(program, demo_bundle, demo_image_path):
    timing = run_json(program, demo_bundle, demo_image_path, "--repeat", 5)["timing_ms"]
    assert timing["repeat"] == 5
    assert timing["median"] <= timing["p95"]


def test_threads_leave_the_detections_alone(program, demo_bundle, demo_image_path):
    result = run_json(program, demo_bundle, demo_image_path, "--threads", 1)
    assert_same_detections(result["detections"], detect_in_python(demo_bundle, demo_image_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_and_the_cpu_give_the_same_boxes(
    program, demo_detector, demo_image, demo_image_path, tmp_path, monkeypatch
):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    bundle = tmp_path / "digits.pt"  # not demo_bundle, because machines with a GPU may lack OpenVINO
    hybrid_rt.convert(demo_detector, ([demo_image],), bundle, segments="backbone", engine="torchscript", measure=False)
    result = run_json(program, bundle, demo_image_path, "--device", "cuda", "--repeat", 3)
    assert_same_detections(result["detections"], detect_in_python(bundle, demo_image_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_fails(program, demo_bundle, demo_image_path):
    message = error_of(run(program, demo_bundle, demo_image_path, "--device", "cuda"), BUNDLE_UNLOADABLE)
    assert "device cuda: expected a CUDA device, got none: " in message


def test_min_score_leaves_out_the_rest(program, demo_bundle, demo_image_path):
    everything = run_json(program, demo_bundle, demo_image_path)["detections"]
    scores = sorted(item["score"] for item in everything)
    gap, limit = max((high - low, (high + low) / 2) for low, high in itertools.pairwise(scores))
    assert gap > 1e-3, "two processes may differ in the last digits: where a matrix lies in memory picks the kernel"
    kept = run_json(program, demo_bundle, demo_image_path, "--min-score", limit)["detections"]
    expected = [item for item in everything if item["score"] >= limit]
    assert 0 < len(kept) < len(everything)
    assert [item["label"] for item in kept] == [item["label"] for item in expected]
    assert [item["score"] for item in kept] == pytest.approx([item["score"] for item in expected], abs=1e-3)


def test_the_backend_is_the_requested_one(program, demo_bundle, demo_image_path):
    result = run_json(program, demo_bundle, demo_image_path, "--backend", "torchscript")
    assert set(result["engines"].values()) == {"torchscript"}


def test_table_shows_each_detection(program, demo_bundle, demo_image_path):
    done = run(program, demo_bundle, demo_image_path)
    assert done.returncode == OK, done.stderr
    count = len(detect_in_python(demo_bundle, demo_image_path)["labels"])
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["label", "score", "x1", "y1", "x2", "y2"]
    assert lines[1 + count] == f"detections: {count}"
    assert lines[2 + count].startswith("engines: ")
    assert lines[3 + count].startswith("time in ms: load ")


@pytest.mark.slow
def test_table_shows_class_names(program, demo_bundle, demo_image_path, label_names):
    labels = detect_in_python(demo_bundle, demo_image_path)["labels"].tolist()
    for option in ("--labels", "--class-names"):  # its old name, and the current one
        assert shown_names(run(program, demo_bundle, demo_image_path, option, label_names)) == [
            f"class-{label}" for label in labels
        ]


def shown_names(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Returns the text before the scores, after checking that the columns line up."""
    assert done.returncode == OK, done.stderr
    heading, *lines = done.stdout.splitlines()
    lines = lines[: next(i for i, line in enumerate(lines) if line.startswith("detections: "))]
    assert {len(line) for line in lines} == {len(heading)}
    return [line[: heading.index("  score")].strip().rsplit("  ", 1)[0] for line in lines]


@pytest.mark.slow
def test_table_shows_the_class_names_of_the_bundle(program, demo_bundle, nameless_bundle, demo_image_path, tmp_path):
    labels = detect_in_python(demo_bundle, demo_image_path)["labels"].tolist()
    shown = shown_names(run(program, demo_bundle, demo_image_path))
    assert shown == [digits_detector.CLASS_NAMES[label] for label in labels]
    assert shown_names(run(program, nameless_bundle, demo_image_path)) == [str(label) for label in labels]
    names = ["é" * label + " class" for label in range(11)]
    shown = shown_names(run(program, with_names(demo_bundle, tmp_path / "x.pt", names), demo_image_path))
    assert shown == [names[label] for label in labels]


def test_boxes_have_the_colours_of_their_classes(program, demo_bundle, demo_image_path, tmp_path):
    output = tmp_path / "annotated.png"
    options = ["--output", output, "--min-score", 0.9]  # few boxes, so that no other caption covers the corner
    best = run_json(program, demo_bundle, demo_image_path, *options)["detections"][0]
    x1, _, _, y2 = (round(value) for value in best["box"])
    with Image.open(output) as annotated:
        assert annotated.convert("RGB").getpixel((x1, y2 - 1)) == class_colour(best["label"])


def test_output_is_the_image_with_its_boxes(program, demo_bundle, demo_image_path, tmp_path):
    output = tmp_path / "annotated.png"
    run_json(program, demo_bundle, demo_image_path, "--output", output)
    with Image.open(output) as annotated, Image.open(demo_image_path) as original:
        assert annotated.format == "PNG"
        assert annotated.size == original.size
        changed = (np.asarray(annotated.convert("RGB")) != np.asarray(original.convert("RGB"))).any(axis=2)
    assert 0 < changed.mean() < 0.9
    assert list(tmp_path.iterdir()) == [output]


def test_output_that_cannot_be_written_fails(program, demo_bundle, demo_image_path, tmp_path):
    output = tmp_path / "missing" / "annotated.png"
    message = error_of(run(program, demo_bundle, demo_image_path, "--output", output), OUTPUT_UNWRITABLE)
    assert message == (
        f"hybrid_rt[image]: {output}: expected a file that can be written, got No such file or directory. "
        "Check that its directory exists, is writable and has space."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ([], "MODEL is required"),
        (["model.pt"], "IMAGE is required"),
        (["model.pt", "in.png", "--verify"], "IMAGE excludes --verify"),
        (["model.pt", "--verify", "--output", "out.png"], "--verify excludes --output"),
        (["model.pt", "in.png", "--nosuch"], "The following argument was not expected: --nosuch"),
        (["model.pt", "in.png", "--repeat", "0"], "--repeat: Value 0 not in range"),
        (["model.pt", "in.png", "--threads", "many"], "--threads: Value many not in range"),
        (["model.pt", "in.png", "--device", "tpu"], "--device: 'tpu' is not cpu, cuda or cuda:INDEX"),
        (["model.pt", "in.png", "--min-score", "nan"], "--min-score: 'nan' is not a number from 0 to 1"),
    ],
)
def test_wrong_usage_fails(program, arguments, got):
    message = error_of(run(program, *arguments), WRONG_USAGE)
    assert got in message
    assert "hybrid-rt-detect --help" in message


def test_missing_label_file_fails(program, demo_bundle, demo_image_path, tmp_path):
    message = error_of(run(program, demo_bundle, demo_image_path, "--labels", tmp_path / "no.txt"), WRONG_USAGE)
    assert "no.txt: expected a text file with one class name per line" in message


def test_missing_image_fails(program, demo_bundle, tmp_path):
    message = error_of(run(program, demo_bundle, tmp_path / "no.png"), IMAGE_UNREADABLE)
    assert "no.png: expected a readable file, got No such file or directory" in message


def test_truncated_image_fails(program, demo_bundle, demo_image_path, tmp_path):
    whole = Path(demo_image_path).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    message = error_of(run(program, demo_bundle, tmp_path / "half.png"), IMAGE_UNREADABLE)
    assert "half.png: expected a complete and undamaged PNG" in message


def test_a_file_that_is_not_an_image_fails(program, demo_bundle):
    message = error_of(run(program, demo_bundle, demo_bundle), IMAGE_UNREADABLE)
    assert "expected a JPEG or PNG, got a file that starts with 50 4B 03 04" in message


def test_missing_bundle_fails(program, demo_image_path, tmp_path):
    message = error_of(run(program, tmp_path / "no.pt", demo_image_path), BUNDLE_UNLOADABLE)
    assert "no.pt" in message


def test_truncated_bundle_fails(program, demo_bundle, demo_image_path, tmp_path):
    whole = Path(demo_bundle).read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    message = error_of(run(program, tmp_path / "half.pt", demo_image_path), BUNDLE_UNLOADABLE)
    assert "half.pt" in message


def test_an_unknown_backend_fails_and_the_installed_ones_are_named(program, demo_bundle, demo_image_path):
    message = error_of(run(program, demo_bundle, demo_image_path, "--backend", "nosuch"), BUNDLE_UNLOADABLE)
    assert "nosuch" in message
    assert "torchscript" in message


def test_a_bundle_without_image_inputs_fails_and_shows_its_inputs(program, tensor_bundle, demo_image_path):
    message = error_of(run(program, tensor_bundle, demo_image_path), RUN_FAILED)
    assert "forward's arguments: expected one List[Tensor] of images, got (batch: Tensor)" in message


def test_help_documents_options_and_exit_codes(program):
    done = run(program, "--help")
    assert done.returncode == OK
    assert done.stderr == ""
    options = [
        "--json",
        "--output",
        "--repeat",
        "--backend",
        "--threads",
        "--device",
        "--min-score",
        "--labels",
        "--class-names",
        "--verify",
    ]
    assert [option for option in options if option not in done.stdout] == []
    for code in (0, 1, 2, 3, 4, 5, 6, 7):
        assert f"\n  {code}  " in done.stdout
    assert "EXIF orientation is\napplied only with --exif." in done.stdout
