"""Tests of comparing several bundles: rows, plot, command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FasterRCNN

import hybrid_rt
from helpers.paths import ROOT
from hybrid_rt import OptionError
from hybrid_rt.bench.bundles import _in_turn, compare
from hybrid_rt.cli.main import main

HELD_OUT = ROOT / "models" / "held_out"
COCO = hybrid_rt.CocoDataset(HELD_OUT / "annotations.json", HELD_OUT, limit=2)


@pytest.fixture(scope="module")
def backbone_in_torchscript(
    tmp_path_factory: pytest.TempPathFactory, demo_detector: FasterRCNN, demo_image: Tensor
) -> Path:
    path = tmp_path_factory.mktemp("comparison") / "plain.pt"
    hybrid_rt.convert(demo_detector, ([demo_image],), path, segments="backbone", engine="torchscript", verify=False)
    return path


@pytest.mark.slow
def test_each_bundle_has_a_row_with_latency_accuracy_and_engines(
    demo_bundle: Path, backbone_in_torchscript: Path, demo_images: list[Tensor]
) -> None:
    bundles = {"openvino": demo_bundle, "torchscript": backbone_in_torchscript}
    rows = compare(bundles, demo_images[:2], dataset=COCO, repeat=3)
    assert [row.name for row in rows] == ["openvino", "torchscript"]
    assert all(row.latency.count == 3 and row.latency.median > 0 for row in rows)
    assert all(row.accuracy is not None and row.accuracy.mAP50 > 0.8 for row in rows)
    assert rows[0].engines["backbone"].startswith("openvino")
    assert rows[1].engines["backbone"].startswith("torchscript")
    assert rows[0].size == demo_bundle.stat().st_size


def test_every_bundle_sees_each_image_in_turn() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}

    def recorder(name: str) -> Callable[[list[int]], None]:
        return lambda images: seen[name].extend(images)

    calls = {name: _in_turn(recorder(name), [1, 2, 3]) for name in seen}
    for _ in range(4):
        for call in calls.values():
            call()
    assert seen["a"] == seen["b"] == [1, 2, 3, 1]


def test_nothing_to_compare_is_refused(demo_bundle: Path, demo_image: Tensor) -> None:
    with pytest.raises(OptionError, match="bundles: expected at least one, got none"):
        compare({}, [demo_image])
    with pytest.raises(OptionError, match="pictures: expected at least one, got none"):
        compare({"x": demo_bundle}, [])


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["bench", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.slow
def test_bench_prints_one_table_and_draws_one_plot(
    demo_bundle: Path, backbone_in_torchscript: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot, output = tmp_path / "plot.png", tmp_path / "rows.json"
    options = ["--pictures", HELD_OUT, "--coco", HELD_OUT / "annotations.json", "--coco-limit", 2, "--repeat", 2]
    code, out, _ = run(
        capsys, demo_bundle, backbone_in_torchscript, *options, "--plot", plot, "--output", output, "--threads", 1
    )
    assert code == 0
    assert "digits" in out
    assert "plain" in out
    assert "2 rounds, alternately" in out
    rows = json.loads(output.read_text())
    assert [row["name"] for row in rows] == ["digits", "plain"]
    assert rows[0]["accuracy"]["mAP"] > 0.5
    with Image.open(plot) as image:
        assert image.width > 500
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


@pytest.mark.slow
def test_bench_puts_backbones_under_the_first_bundles_head(
    demo_bundle: Path, demo_image_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = "helpers.small_detectors:demo_backbone"
    code, out, _ = run(
        capsys, demo_bundle, "--backbone", backbone, "--images", demo_image_path, "--repeat", 1, "--json"
    )
    assert code == 0
    rows = json.loads(out)
    assert [row["name"] for row in rows] == ["digits", backbone]
    assert rows[1]["engines"]["backbone"].startswith("openvino")


@pytest.mark.slow
def test_bench_without_annotations_draws_latency_alone(
    demo_bundle: Path, demo_image_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.svg"
    code, out, _ = run(capsys, demo_bundle, "--images", demo_image_path, "--repeat", 2, "--json", "--plot", plot)
    assert code == 0
    assert json.loads(out)[0]["accuracy"] is None
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--plot", "x.gif"], "plot x.gif: expected a name that ends in one of .png, .svg, .pdf, got '.gif'"),
        (["--repeat", "0"], "repeat: expected at least 1, got 0"),
        (["--coco", "missing.json"], "annotations missing.json: expected a JSON file"),
        (["--images", "missing.png"], "image missing.png: expected an image file"),
    ],
)
def test_bad_options_of_bench(
    demo_bundle: Path, demo_image_path: Path, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, demo_bundle, "--images", demo_image_path, *options)
    assert code == 2
    assert text in err


def test_the_same_file_twice_is_refused(
    demo_bundle: Path, demo_image_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, demo_bundle, demo_bundle, "--images", demo_image_path)
    assert code == 2
    assert f"bench: expected each MODEL once, got {demo_bundle} twice" in err
