"""Tests of the command line: commands, exit codes, messages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import hybrid_rt
from helpers.bundle_surgery import rewrite_manifest, save_with_backends, small_artifact
from helpers.paths import ROOT
from hybrid_rt.cli.main import main
from hybrid_rt.common.images import read_image
from hybrid_rt.common.refusals import refusals


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Returns the path of a small image."""
    path = tmp_path / "noise.png"
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path)
    return path


SMALL = "helpers.small_detectors:small_list_detector"


def convert_small(noise: Path, *options: str, detector: str = SMALL) -> int:
    """Converts a small detector to noise.pt in the image's directory."""
    return main(["convert", detector, str(noise), str(noise.with_suffix(".pt")), "--engine", "torchscript", *options])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the message on stderr, which has the standard format; stdout must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert "hybrid-rt: error: hybrid_rt[" in err
    assert "Traceback" not in err
    return err if not last.startswith("hybrid-rt: error: ") else last


# convert


@pytest.mark.slow
def test_convert_the_demo_detector(
    demo_image_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "digits.pt"
    assert (
        main(["convert", "models.digits_detector:load", str(demo_image_path), str(path), "--engine", "torchscript"])
        == 0
    )
    out, err = capsys.readouterr()
    assert "FasterRCNN -> " in out
    assert "boxes matched" in out
    assert "done save" in err
    assert len(hybrid_rt.load(path)([read_image(demo_image_path)])[0]["boxes"]) >= 5


def test_convert_options_reach_the_bundle(noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        convert_small(
            noise, "--segments", "detector.backbone,detector.classes", "--no-fuse", "--no-verify", "--no-fallback"
        )
        == 0
    )
    assert "not verified" in capsys.readouterr().out
    manifest = hybrid_rt.inspect(noise.with_suffix(".pt"))
    assert [engine["members"][0]["name"] for engine in manifest["engines"]] == ["detector.backbone", "detector.classes"]
    assert manifest["verification"] is None
    assert [len(engine["variants"]) for engine in manifest["engines"]] == [1, 1]


@pytest.mark.slow
def test_convert_takes_sizes_and_several_engines(noise: Path) -> None:
    assert convert_small(noise, "--sizes", "32x32,48X64", "--engine", "torchscript,openvino") == 0
    variants = hybrid_rt.inspect(noise.with_suffix(".pt"))["engines"][0]["variants"]
    assert [variant["backend"] for variant in variants] == ["torchscript", "openvino"]
    assert (variants[0]["inputs"][0]["min"], variants[0]["inputs"][0]["max"]) == ([1, 3, 32, 32], [1, 3, 48, 64])


def test_convert_resets_state_on_request(noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = "helpers.small_detectors:counting_list_detector"
    assert convert_small(noise, "--segments", "detector.backbone", detector=kept) == 1
    assert "because of state in buffer 'seen'" in error_of(capsys)
    assert convert_small(noise, "--segments", "detector.backbone", "--state", "reset", detector=kept) == 0
    assert "as at conversion before each call: buffer 'seen'" in capsys.readouterr().out


def test_convert_compares_on_every_image_of_a_directory(noise: Path, tmp_path: Path) -> None:
    directory = tmp_path / "images"
    directory.mkdir()
    for name in ("b.PNG", "a.png", "c.jpeg"):
        Image.open(noise).convert("RGB").save(directory / name)
    (directory / "readme.txt").touch()
    output = str(tmp_path / "x.pt")
    assert main(["convert", SMALL, str(directory), output, "--engine", "torchscript"]) == 0
    assert len(hybrid_rt.inspect(output)["verification"]["pictures"]) == 3


@pytest.mark.parametrize(
    ("segments", "exit_code", "code"), [("nosuch", 2, "segment-misnamed"), ("detector", 1, "not-repeatable")]
)
def test_a_refusal_of_convert_names_the_command_that_explains_it(
    noise: Path, capsys: pytest.CaptureFixture[str], segments: str, exit_code: int, code: str
) -> None:
    assert convert_small(noise, "--segments", segments) == exit_code
    *_, error, advice = capsys.readouterr().err.splitlines()
    assert error.startswith("hybrid-rt: error: hybrid_rt[")
    assert error.endswith(f" [{code}]")
    assert advice == f"Run 'hybrid-rt explain {code}' for the cause and the solutions."
    assert not noise.with_suffix(".pt").exists()


def test_an_error_without_a_code_names_no_command(noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_small(noise, "--sizes", "large") == 2
    assert "explain" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("detector", "text"),
    [
        ("nocolon", "detector: expected PACKAGE.MODULE:CALLABLE or torchvision:NAME, got 'nocolon'."),
        (
            "nosuch.module:build",
            "detector: expected an importable PACKAGE.MODULE:CALLABLE, got 'nosuch.module:build' (",
        ),
        (
            "helpers.small_detectors:nosuch",
            "expected an importable PACKAGE.MODULE:CALLABLE, got 'helpers.small_detectors:nosuch' (",
        ),
        (":build", "expected an importable PACKAGE.MODULE:CALLABLE, got ':build' ("),
        (".models:build", "expected an importable PACKAGE.MODULE:CALLABLE, got '.models:build' ("),
        ("torchvision:nosuch", "detector: expected one of fasterrcnn_mobilenet_v3_large_320_fpn, "),
        (
            "helpers.small_detectors:small_image",
            "expected helpers.small_detectors:small_image() to return an nn.Module, got Tensor",
        ),
    ],
)
def test_convert_without_a_detector(noise: Path, capsys: pytest.CaptureFixture[str], detector: str, text: str) -> None:
    assert convert_small(noise, detector=detector) == 2
    assert text in error_of(capsys)
    assert not noise.with_suffix(".pt").exists()


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--sizes", "640"], 2, "hybrid_rt[cli]: --sizes: expected HEIGHTxWIDTH,..., got '640'."),
        (["--sizes", "axb"], 2, "hybrid_rt[cli]: --sizes: expected HEIGHTxWIDTH,..., got 'axb'."),
        (["--engine", "nosuch"], 2, "hybrid_rt[registry]: engine: expected one of "),
        (["--segments", "nosuch"], 2, "hybrid_rt[convert]: segments: expected a submodule of ListDetector"),
        (["--precision", "int8"], 2, "precision: expected an engine that supports it, got 'int8' for torch"),
        (["--option", "tensorrt"], 2, "--option: expected ENGINE.NAME=VALUE, each once, e.g. tensorrt.tf32=false"),
        (
            ["--option", "tensorrt.tf32=true"],
            2,
            "options: expected options only for the compiled engines (torchscript",
        ),
    ],
)
def test_convert_with_wrong_options(
    noise: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, text: str
) -> None:
    assert convert_small(noise, *options) == code
    assert text in error_of(capsys)


def test_convert_to_a_missing_directory(noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", SMALL, str(noise), str(noise.parent / "missing" / "x.pt")]) == 1
    assert "expected to write the file, got no directory " in error_of(capsys)


def test_convert_without_images(tmp_path: Path, noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "x.pt")
    assert main(["convert", SMALL, str(tmp_path / "missing.png"), output]) == 2
    assert f"hybrid_rt[cli]: image {tmp_path / 'missing.png'}: expected an image file, got " in error_of(capsys)
    (tmp_path / "text.png").write_text("no image")
    assert main(["convert", SMALL, str(tmp_path / "text.png"), output]) == 2
    assert "expected an image file, got cannot identify image file" in error_of(capsys)
    (tmp_path / "empty").mkdir()
    assert main(["convert", SMALL, str(tmp_path / "empty"), output]) == 2
    assert f"hybrid_rt[cli]: directory {tmp_path / 'empty'}: expected PNG or JPEG images, got none." in error_of(capsys)


def test_images_are_rgb_between_0_and_1(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2), (255, 0, 51, 128)).save(tmp_path / "rgba.png")
    image = read_image(tmp_path / "rgba.png")
    assert image.shape == (3, 2, 3)
    assert image.dtype == torch.float32
    assert image[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    Image.new("L", (3, 2), 255).save(tmp_path / "grey.png")
    assert torch.equal(read_image(tmp_path / "grey.png"), torch.ones(3, 2, 3))


# inspect


def test_inspect_for_people(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(demo_bundle)]) == 0
    out = capsys.readouterr().out
    assert f"{demo_bundle}: torchvision.models.detection.faster_rcnn.FasterRCNN, format 2" in out.replace("\n", "")
    assert f"torch {torch.__version__}" in out
    assert "head operators: hybrid_rt::batched_nms, hybrid_rt::box_detections, hybrid_rt::box_levels" in out
    assert "verified in fp32: " in out
    for word in ("backbone", "openvino", "torchscript", "fp32", "cpu"):
        assert word in out
    # the output to a file or a pipe: the outputs with their strides, the versions
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert ["input", "x", "1.. x 3 x 32..416 x 32..416", "float32", ""] in rows
    assert ["output", "2", "0.. x 64 x 1.. x 1..", "float32", "16"] in rows
    assert ["output", "pool", "0.. x 64 x 1.. x 1..", "float32", "64"] in rows
    torchscript = next(row for row in rows if row[0] == "torchscript")
    assert torchscript[1:3] + torchscript[5:] == ["fp32", "cpu", f"torch {torch.__version__}", "-"]
    assert float(torchscript[4]) < float(torchscript[3])  # weights are stored once
    assert "  backbone: greatest relative error " in out


def test_inspect_of_a_fused_engine_with_requirements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = small_artifact()
    needy = replace(artifact, spec=replace(artifact.spec, requirements={"compute capability": "9.0", "[bold]": "1"}))
    path = save_with_backends(tmp_path / "old.pt", [needy])

    def fuse(manifest: dict) -> None:
        manifest["engines"][0]["members"] = [
            {"name": "backbone", "first": 0, "count": 1},
            {"name": "rpn.head", "first": 1, "count": 1},
        ]

    path = rewrite_manifest(path, tmp_path / "fused.pt", fuse)
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{path}: a detector of unknown class, format 2" in out
    assert "head operators: none\nnot verified\n" in out
    assert "  one engine for backbone and rpn.head\n" in out
    assert "compute capability 9.0" in out
    assert "[bold] 1" in out  # text from a file is not markup


def test_inspect_opens_no_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_with_backends(tmp_path / "nosuch.pt", ["nosuch"])
    assert main(["inspect", str(path)]) == 0
    assert "nosuch" in capsys.readouterr().out


def test_inspect_as_json_is_the_manifest(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(demo_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == hybrid_rt.inspect(demo_bundle)


@pytest.mark.parametrize("verb", ["verify", "inspect", "check"])
def test_a_file_that_is_not_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    path = tmp_path / "text.pt"
    path.write_text("no bundle")
    assert main([verb, str(path)]) == 1
    assert error_of(capsys).startswith(f"hybrid-rt: error: hybrid_rt[bundle]: {path}: expected a TorchScript archive")
    assert main([verb, str(tmp_path / "missing.pt")]) == 1
    assert "expected a file, got " in error_of(capsys)


# check


def test_check_for_people(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(demo_bundle)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{demo_bundle}: intact, every record matches its digest",
        "  backbone: openvino (fp32): runs",
        "  backbone: torchscript (fp32): could run, but comes later in the file",
    ]


def test_check_as_json(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(demo_bundle), "--json", "--backend", "torchscript"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "engine": "backbone",
            "segments": ["backbone"],
            "variants": [
                {
                    "backend": "openvino",
                    "precision": "fp32",
                    "chosen": False,
                    "refusal": "only 'torchscript' was requested",
                },
                {"backend": "torchscript", "precision": "fp32", "chosen": True, "refusal": ""},
            ],
        }
    ]


def test_check_fails_when_nothing_can_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_with_backends(tmp_path / "nosuch.pt", ["nosuch"])
    assert main(["check", str(path)]) == 1
    assert "backbone: nosuch (fp32): hybrid_rt[nosuch]: backend: expected one of " in capsys.readouterr().out
    assert main(["check", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["variants"][0]["chosen"] is False


def test_check_on_a_device_that_does_not_exist(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(demo_bundle), "--device", "gpu"]) == 2
    assert "hybrid_rt[bundle]: device: expected a device such as 'cpu' or 'cuda:0', got 'gpu'" in error_of(capsys)


# doctor


def test_doctor_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"hybrid_rt: {hybrid_rt.__version__}\ntorch: {torch.__version__}\n" in out
    for info in hybrid_rt.backends():
        expected = "available (" if info.available else f"NOT available: {info.reason}"
        assert f"  {info.name} {info.version}: {expected}" in out


def test_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["torch"] == torch.__version__
    backends = {backend["name"]: backend for backend in told["backends"]}
    assert backends["torchscript"]["available"] is True
    assert set(backends) == {info.name for info in hybrid_rt.backends()}


# detect


class HandedOver(Exception):
    """Is raised instead of os.execv, which does not return."""


def hand_over(program: str, arguments: list[str]) -> None:
    raise HandedOver(program, arguments)


def test_detect_hands_over_to_the_program_beside_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "hybrid-rt-detect"
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(os, "execv", hand_over)
    with pytest.raises(HandedOver) as caught:
        main(["detect", "model.pt", "image.png", "--json", "--help"])
    arguments = [str(program), "model.pt", "image.png", "--json", "--help"]
    assert caught.value.args == (str(program), arguments)


def test_detect_without_the_program_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["detect", "model.pt", "image.png"]) == 1
    assert "detect: expected the program hybrid-rt-detect, got none. Install hybrid_rt with" in error_of(capsys)


# Usage


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for verb in ("convert", "verify", "inspect", "check", "detect", "doctor", "bench", "compare-engines"):
        assert re.search(rf"^    {verb}(  |$)", out, re.MULTILINE), verb


@pytest.mark.parametrize("verb", ["convert", "verify", "inspect", "check", "doctor"])
def test_each_verb_has_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"usage: hybrid-rt {verb}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"hybrid-rt {hybrid_rt.__version__} (torch {torch.__version__})\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: VERB"),
        (["nosuch"], "invalid choice: 'nosuch'"),
        (["inspect"], "the following arguments are required: model"),
        (["inspect", "x.pt", "--nosuch"], "unrecognized arguments: --nosuch"),
        (["convert", "a:b", "c.png"], "the following arguments are required: output"),
        (["convert", "a:b", "c.png", "d.pt", "--precision", "fp8"], "invalid choice: 'fp8'"),
    ],
)
def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: hybrid-rt")
    assert text in err


@pytest.mark.slow
def test_the_installed_script(demo_bundle: Path, tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "hybrid-rt"
    done = subprocess.run(
        [script, "inspect", demo_bundle, "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == hybrid_rt.inspect(demo_bundle)


def test_unavailable_pretrained_weights_are_a_clear_error(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    name = "torchvision:ssdlite320_mobilenet_v3_large"
    assert main(["convert", name, str(noise), str(tmp_path / "x.pt")]) == 2
    error = capsys.readouterr().err
    assert (
        "expected to load torchvision's pretrained weights, got no network. Download them on a machine with a network"
        in error
    )


# explain


def test_explain_lists_the_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(refusals())
    assert "keeps-state              The detector keeps state from one call to the next." in lines


@pytest.mark.parametrize("code", ["keeps-state", "[keeps-state]", "Keeps-State"])
def test_explain_prints_an_entry(capsys: pytest.CaptureFixture[str], code: str) -> None:
    assert main(["explain", code]) == 0
    out = capsys.readouterr().out
    assert out.startswith("keeps-state: The detector keeps state from one call to the next.\n\n> detector Tracker: ")
    assert "1. Make the state an argument and a result" in out
    assert out == refusals()["keeps-state"].explanation


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("keep-state", "Similar codes: keeps-state."),
        ("scriptable", "Similar codes: head-not-scriptable."),
        ("zzz", "`hybrid-rt explain` lists them."),
        ("", "`hybrid-rt explain` lists them."),
    ],
)
def test_explain_of_an_unknown_code_names_those_near_it(
    capsys: pytest.CaptureFixture[str], code: str, advice: str
) -> None:
    assert main(["explain", code]) == 2
    text = error_of(capsys)
    assert f"hybrid_rt[explain]: the code: expected a code from the end of an error's text, got '{code}'. " in text
    assert text.rstrip().endswith(advice)


def test_output_that_cannot_be_written_is_an_error_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["cache", "list"]) == 1
    assert "hybrid-rt: error: hybrid_rt[cli]: files: expected to read and write them, got [Errno 28]" in (
        capsys.readouterr().err
    )
