"""Tests of replacing the backbone of a bundle: what fits, what does not, and the results of the new file."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.resnet import BasicBlock

import hybrid_rt
from capture.test_fused import Detector
from helpers.bundle_surgery import read_record, save_with_backends
from helpers.external_projects import succeed
from helpers.paths import ROOT
from helpers.small_detectors import Backbone, replaced_backbone, small_detector, small_image
from hybrid_rt import BackendError, BundleError, CaptureError, OptionError, Thresholds, Verification, VerificationError
from hybrid_rt.backends import registry
from hybrid_rt.backends.cache import store
from hybrid_rt.capture.program import capture_alone
from hybrid_rt.cli.main import main
from hybrid_rt.torchscript import jit

SHAPES = {"batch": (1, 3), "height": (32, 128), "width": (32, 128)}


class Deeper(nn.Module):
    """Is a backbone with the interface of the small detector's, more layers, and another name for its input."""

    def __init__(self, *, inputs: int = 3, channels: int = 8, stride: int = 2) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, channels, 3, stride=stride, padding=1)
        )
        self.second = nn.Sequential(nn.SiLU(), nn.Conv2d(channels, channels, 3, stride=2, padding=1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.first(x)
        return {"fine": fine, "coarse": self.second(fine)}


class Changed(Deeper):
    """Changes the result of its base class by a function."""

    def __init__(self, change: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> object:  # type: ignore[override]
        return self.change(*super().forward(x).values())


def new(backbone: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return (backbone or Deeper()).requires_grad_(False).eval()


def two_parts() -> Detector:
    """Returns a detector with backbone and head as segments, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Detector().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a bundle with backbone and head in one engine. Do not modify it."""
    path = tmp_path_factory.mktemp("fused") / "detector.pt"
    segments = ["backbone", "head"]
    hybrid_rt.convert(two_parts(), (small_image(64, 96),), path, segments=segments, shapes=SHAPES)
    return path


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the small detector with a backbone for images of one size only. Do not modify it."""
    path = tmp_path_factory.mktemp("single") / "detector.pt"
    hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone")
    return path


def refusal(path: Path, backbone: nn.Module, tmp_path: Path, **options: object) -> str:
    output = tmp_path / "refused.pt"
    with pytest.raises(OptionError) as caught:
        hybrid_rt.swap_backbone(path, backbone, output, **options)
    assert not output.exists()
    return str(caught.value)


# results of the new file


@pytest.mark.parametrize("backend", ["openvino", "torchscript"])
@pytest.mark.parametrize("size", [(64, 96), (128, 32)])
def test_the_new_file_matches_the_detector_with_that_backbone(
    fused: Path, tmp_path: Path, backend: str, size: tuple[int, int]
) -> None:
    output = tmp_path / "swapped.pt"
    report = hybrid_rt.swap_backbone(fused, new(), output)
    assert (report.segment, report.engine) == ("backbone", "backbone+head")
    detector = two_parts()
    detector.backbone = new()
    for got, expected in zip(
        hybrid_rt.load(output, backend=backend)(small_image(*size)), detector(small_image(*size)), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_file_itself_may_be_replaced(single: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(single, tmp_path / "detector.pt"))
    hybrid_rt.swap_backbone(path, new(), path)
    detector = small_detector()
    detector.backbone = new()
    for got, expected in zip(hybrid_rt.load(path)(small_image()), detector(small_image()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["detector.pt"]


def test_a_second_swap_leaves_no_trace_of_the_first(fused: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    hybrid_rt.swap_backbone(fused, new(), first)
    backbone = new(Backbone())
    hybrid_rt.swap_backbone(first, backbone, second)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(hybrid_rt.load(first)(small_image()), hybrid_rt.load(second)(small_image()))
    detector = two_parts()
    detector.backbone = backbone
    for got, expected in zip(hybrid_rt.load(second)(small_image()), detector(small_image()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_other_segments_stay_as_they_were(tmp_path: Path) -> None:
    paths = [tmp_path / "detector.pt", tmp_path / "swapped.pt"]
    detector = two_parts()
    hybrid_rt.convert(detector, (small_image(),), paths[0], segments=["backbone", "head"], fuse=False)
    hybrid_rt.swap_backbone(paths[0], new(), paths[1])
    before, after = (hybrid_rt.inspect(path)["engines"] for path in paths)
    assert after[1] == before[1]
    assert after[0]["variants"][0]["blobs"] != before[0]["variants"][0]["blobs"]


def test_a_small_head_is_swapped_as_well(tmp_path: Path) -> None:
    paths = [tmp_path / "detector.pt", tmp_path / "swapped.pt"]
    detector = two_parts()
    hybrid_rt.convert(detector, (small_image(),), paths[0], segments=["head"])
    head = new(type(detector.head)())
    levels = [torch.rand(1, 8, 16, 16), torch.rand(1, 8, 8, 8)]
    hybrid_rt.swap_backbone(paths[0], head, paths[1], example=(levels,))
    detector.head = head
    torch.testing.assert_close(hybrid_rt.load(paths[1])(small_image()), detector(small_image()))


def test_the_manifest_records_the_swap(fused: Path, tmp_path: Path) -> None:
    output = tmp_path / "swapped.pt"
    hybrid_rt.swap_backbone(fused, new(), output)
    before, after = hybrid_rt.inspect(fused), hybrid_rt.inspect(output)
    (segment,) = after["engines"]
    assert segment["swapped"] == {"segment": "backbone", "class": f"{__name__}.Deeper"}
    assert segment["members"] == before["engines"][0]["members"]
    assert [variant["backend"] for variant in segment["variants"]] == ["openvino", "torchscript"]
    assert after["detector"] == before["detector"]
    assert after["head"] == before["head"]
    assert after["verification"]["pictures"] == []
    assert {error["backend"] for error in after["verification"]["tensors"]} == {"openvino", "torchscript"}
    assert all(check.chosen for check in hybrid_rt.check(output))


def test_a_golden_sample_is_left_out(single: Path, tmp_path: Path) -> None:
    output = tmp_path / "swapped.pt"
    hybrid_rt.swap_backbone(single, new(), output)
    manifest = hybrid_rt.inspect(output)
    assert "expected" in hybrid_rt.inspect(single)["golden"]
    assert manifest["golden"] == {"absent": "the backbone was swapped, so that other boxes are found"}
    assert not [name for name in manifest["records"] if "golden" in name]


def test_engine_and_precision_of_the_file_are_kept_by_default(single: Path, tmp_path: Path) -> None:
    output = tmp_path / "swapped.pt"
    hybrid_rt.swap_backbone(single, new(), output, engine="openvino", precision="bf16")
    variants = hybrid_rt.inspect(output)["engines"][0]["variants"]
    assert [(v["backend"], v["precision"]) for v in variants] == [("openvino", "bf16"), ("torchscript", "fp32")]
    again = tmp_path / "again.pt"
    report = hybrid_rt.swap_backbone(output, new(), again)
    assert report.variants == ["openvino in bf16", "torchscript in fp32"]
    assert hybrid_rt.inspect(again)["verification"]["precision"] == "bf16"


def deeper_demo_backbone(detector: FasterRCNN) -> nn.Module:
    """Returns the trained backbone with an additional block, which changes the features slightly."""
    backbone = copy.deepcopy(detector.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        block = BasicBlock(96, 96)
    block.bn2.weight.fill_(0.2)
    backbone.body.layer3.append(block)
    return backbone.requires_grad_(False).eval()


@pytest.mark.slow
def test_the_demo_detector_with_another_backbone_in_python_and_in_cpp(
    demo_detector: FasterRCNN, demo_image: Tensor, demo_image_path: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / "digits.pt", tmp_path / "swapped.pt"]
    segments = ["backbone", "rpn.head"]
    hybrid_rt.convert(demo_detector, ([demo_image],), paths[0], segments=segments, verify=False)
    backbone = deeper_demo_backbone(demo_detector)
    hybrid_rt.swap_backbone(paths[0], backbone, paths[1])
    with replaced_backbone(demo_detector, backbone):
        expected = demo_detector([demo_image])[0]
    with_the_old_one = demo_detector([demo_image])[0]
    assert expected["scores"].tolist() != with_the_old_one["scores"].tolist()
    got = hybrid_rt.load(paths[1])([demo_image])[0]
    assert len(expected["boxes"]) > 3
    assert got["labels"].tolist() == expected["labels"].tolist()
    torch.testing.assert_close(got["boxes"], expected["boxes"], rtol=1e-3, atol=0.1)
    torch.testing.assert_close(got["scores"], expected["scores"], rtol=1e-3, atol=1e-4)
    program = Path(sys.executable).parent / "hybrid-rt-detect"
    found = json.loads(succeed(program, paths[1], demo_image_path, "--json"))
    assert found["engines"] == {"backbone": "openvino", "rpn.head": "openvino"}
    assert len(found["detections"]) == len(expected["boxes"])
    boxes = torch.tensor([detection["box"] for detection in found["detections"]])
    torch.testing.assert_close(boxes, expected["boxes"], rtol=1e-3, atol=0.5)


# what does not fit


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (Changed(lambda fine, coarse: {"fine": fine}), "number of outputs: expected 2 ('fine', 'coarse'), got 1 ('out"),
        (
            Changed(lambda fine, coarse: {"fine": fine, "deep": coarse}),
            "names of outputs: expected 'fine', 'coarse', got 'fine', 'deep'",
        ),
        (
            Changed(lambda fine, coarse: {"coarse": coarse, "fine": fine}),
            "order of outputs: expected 'fine', 'coarse', got 'coarse', 'fine'",
        ),
        (Changed(lambda fine, coarse: [fine, coarse]), "names of outputs: expected 'fine', 'coarse', got '0', '1'"),
        (Deeper(channels=16), "output 'fine', channels: expected 8, got 16\n  output 'coarse', channels: expected 8, "),
        (Deeper(stride=4), "output 'fine', stride: expected 2, got 4\n  output 'coarse', stride: expected 4, got 8"),
        (
            Changed(lambda fine, coarse: {"fine": fine, "coarse": coarse.double()}),
            "\n  output 'coarse', dtype: expected float32, got float64\n",
        ),
        (
            Changed(lambda fine, coarse: {"fine": fine, "coarse": coarse.flatten(2)}),
            "output 'coarse', dimensions: expected 4 (0.. x 8 x 1.. x 1..), got 3",
        ),
        (
            Changed(lambda fine, coarse: {"fine": fine, "coarse": coarse[:1]}),
            "output 'coarse', batch: expected 2 of 2, got 1",
        ),
        (
            Changed(lambda fine, coarse: {"fine": fine, "coarse": nn.functional.adaptive_avg_pool2d(coarse, 16)}),
            "output 'coarse', stride: expected 4, got ",
        ),
        (
            Deeper(inputs=1),
            "inputs: expected a module that takes 1 x 3 x 64 x 96 float32, got RuntimeError: Given groups=1, weight ",
        ),
    ],
)
def test_every_mismatch_is_named(fused: Path, tmp_path: Path, backbone: nn.Module, expected: str) -> None:
    text = refusal(fused, new(backbone), tmp_path)
    assert text.startswith(
        f"hybrid_rt[swap]: segment 'backbone', the new {type(backbone).__name__}: expected the inputs and outputs "
        "that the saved head requires, got \n  "
    )
    assert expected in text


def test_several_mismatches_are_one_error(fused: Path, tmp_path: Path) -> None:
    class Wrong(Deeper):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            fine, coarse = super().forward(x).values()
            return {"coarse": coarse.double(), "fine": torch.cat([fine, fine], dim=1)}

    text = refusal(fused, new(Wrong(stride=4)), tmp_path)
    assert text.count(": expected ") == 1 + 5  # the error itself, and five causes in it
    for part in ("order of outputs", "'fine', channels", "'fine', stride", "'coarse', dtype", "'coarse', stride"):
        assert part in text


def test_unrepeatable_operations_are_refused(fused: Path, tmp_path: Path) -> None:
    class Branching(Deeper):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return super().forward(x * 2 if bool(x.mean() > 0) else x)

    with pytest.raises(CaptureError, match=r"\[swap\]: module Branching: expected the same operations"):
        hybrid_rt.swap_backbone(fused, new(Branching()), tmp_path / "x.pt")


def test_failures_at_a_second_size_are_named(fused: Path, tmp_path: Path) -> None:
    class OneSize(Deeper):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return super().forward(x + torch.zeros(3, 64, 96))

    assert "inputs: expected a module that takes 2 x 3 x 32 x 32 float32, got RuntimeError: " in refusal(
        fused, new(OneSize()), tmp_path
    )


def test_a_forward_with_other_parameters(fused: Path, tmp_path: Path) -> None:
    class Two(Deeper):
        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return super().forward(x + y)

    text = refusal(fused, new(Two()), tmp_path)
    assert (
        "inputs: expected a forward that takes images: 1..3 x 3 x 32..128 x 32..128 float32, got Two.forward "
        "(missing a required argument: 'y')"
    ) in text


def test_an_example_outside_the_ranges(fused: Path, tmp_path: Path) -> None:
    text = refusal(fused, new(), tmp_path, example=torch.rand(1, 3, 16, 32))
    assert "input 'images': expected 1..3 x 3 x 32..128 x 32..128 float32, got 1 x 3 x 16 x 32 float32" in text
    assert "got 1 x 3 x 32 x 32 float64" in refusal(fused, new(), tmp_path, example=torch.rand(1, 3, 32, 32).double())


def test_an_example_inside_the_ranges(fused: Path, tmp_path: Path) -> None:
    report = hybrid_rt.swap_backbone(fused, new(), tmp_path / "x.pt", example=small_image(128, 64))
    assert report.verification is not None
    assert report.verification.passed


# options, files


def test_a_backbone_in_training_mode(single: Path, tmp_path: Path) -> None:
    assert "[swap]: new_backbone: expected eval mode, got training mode in Deeper, first, first.0" in refusal(
        single, Deeper(), tmp_path
    )


def test_a_scripted_backbone(single: Path, tmp_path: Path) -> None:
    scripted = jit.script(new(nn.Conv2d(3, 8, 1)))
    assert "new_backbone: expected an nn.Module in Python code, got RecursiveScriptModule" in refusal(
        single, scripted, tmp_path
    )


def test_an_unknown_segment(fused: Path, tmp_path: Path) -> None:
    text = refusal(fused, new(), tmp_path, segment="neck")
    assert "hybrid_rt[swap]: segment: expected one of backbone, head, got 'neck'" in text


def test_a_later_segment_of_an_engine(fused: Path, tmp_path: Path) -> None:
    text = refusal(fused, new(), tmp_path, segment="head")
    assert (
        "segment: expected 'backbone', which is the first of the engine 'backbone+head', got 'head'. Convert the "
        "detector with fuse=False"
    ) in text


def test_without_a_torchscript_variant_a_fused_engine_stays(tmp_path: Path) -> None:
    path = tmp_path / "detector.pt"
    segments = ["backbone", "head"]
    hybrid_rt.convert(two_parts(), (small_image(),), path, segments=segments, fallback=False)
    assert (
        "engine 'backbone+head': expected a TorchScript variant in fp32 in the file, to take its segments from, "
        "got only openvino:fp32. Convert the detector with fallback=True."
    ) in refusal(path, new(), tmp_path)


def test_without_a_torchscript_variant_a_single_engine_is_swapped(tmp_path: Path) -> None:
    paths = [tmp_path / "detector.pt", tmp_path / "swapped.pt"]
    hybrid_rt.convert(small_detector(), (small_image(),), paths[0], segments="backbone", fallback=False)
    assert hybrid_rt.swap_backbone(paths[0], new(), paths[1]).variants == ["openvino in fp32"]


def test_an_engine_of_the_file_that_is_not_installed(tmp_path: Path) -> None:
    path = save_with_backends(tmp_path / "detector.pt", ["nosuch", "torchscript"])
    text = refusal(path, new(), tmp_path)
    assert "engine: expected one of " in text
    assert "openvino, " in text
    assert "or 'auto', got 'nosuch'" in text
    report = hybrid_rt.swap_backbone(path, new(), tmp_path / "x.pt", engine="torchscript")
    assert report.variants == ["torchscript in fp32"]


def test_bad_options(single: Path, tmp_path: Path) -> None:
    assert "[swap]: engine: expected 'auto' or at least one" in refusal(single, new(), tmp_path, engine=[])
    assert "[swap]: precision: expected one of fp32, " in refusal(single, new(), tmp_path, precision="fp8")
    assert "[swap]: precision for openvino: expected " in refusal(
        single, new(), tmp_path, precision="fp16", thresholds=Thresholds(0.5, 0.5, 0.5, 0.5)
    )
    assert "[swap]: calibration_data: expected some tens of tuples" in refusal(
        single, new(), tmp_path, engine="onnxruntime", precision="int8"
    )


def test_a_directory_that_does_not_exist(single: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected to write the file, got no directory"):
        hybrid_rt.swap_backbone(single, new(), tmp_path / "nosuch" / "x.pt")


def test_a_file_that_is_not_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "text.pt"
    path.write_text("no bundle")
    with pytest.raises(BundleError, match="expected a TorchScript archive"):
        hybrid_rt.swap_backbone(path, new(), tmp_path / "x.pt")
    with pytest.raises(BundleError, match="expected a file"):
        hybrid_rt.swap_backbone(tmp_path / "missing.pt", new(), tmp_path / "x.pt")


def test_an_altered_file_is_not_extended(single: Path, tmp_path: Path) -> None:
    data = bytearray(single.read_bytes())
    position = data.find(read_record(single, "constants.pkl")[:40])
    data[position + 30] ^= 1
    path = tmp_path / "altered.pt"
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"record 'constants.pkl'"):
        hybrid_rt.swap_backbone(path, new(), tmp_path / "x.pt")


def test_an_engine_with_other_results_is_not_saved(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = capture_alone(small_detector(), "backbone", [(small_image(),)])
    artifact = registry.backend("torchscript").compile(other, "fp32")
    monkeypatch.setattr(store, "get_or_compile", lambda *_: (artifact, False))
    output = tmp_path / "x.pt"
    with pytest.raises(VerificationError) as caught:
        hybrid_rt.swap_backbone(single, new(), output, engine="torchscript")
    assert str(caught.value).startswith(
        "hybrid_rt[swap]: engine 'backbone' in fp32: expected the outputs of the module, got \n  engine 'backbone' "
        "on torchscript at 1x3x32x32, output 'fine': relative error "
    )
    assert list(tmp_path.iterdir()) == []


def test_verification_can_be_switched_off(single: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.pt"
    report = hybrid_rt.swap_backbone(single, new(), output, verify=False)
    assert str(report).endswith("not verified")
    assert hybrid_rt.inspect(output)["verification"] is None


def test_a_report_of_variants_for_another_machine_alone() -> None:
    nothing_ran = Verification("fp16", not_run=["tensorrt in fp16: no CUDA device"])
    report = hybrid_rt.SwapReport("x.pt", "backbone", "backbone", "Pyramid", ["tensorrt in fp16"], nothing_ran)
    assert str(report).splitlines()[1:] == [
        "engine backbone: tensorrt in fp16",
        "not compared: tensorrt in fp16: no CUDA device",
    ]


# the command line


def test_on_the_command_line(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "swapped.pt"
    assert main(["swap", str(single), "test_swap:Deeper", str(output), "--engine", "torchscript"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"test_swap.Deeper as backbone -> {output} (")
    assert "engine backbone: torchscript in fp32\nverified: greatest relative error " in out
    assert main(["inspect", str(output)]) == 0
    assert "backbone was swapped: test_swap.Deeper" in capsys.readouterr().out


def test_errors_on_the_command_line(single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for backbone, expected in {
        "nocolon": "backbone: expected PACKAGE.MODULE:CALLABLE, got 'nocolon'",
        "test_swap:nosuch": "backbone: expected an importable PACKAGE.MODULE:CALLABLE, got 'test_swap:nosuch'",
        "builtins:dict": "backbone: expected builtins:dict() to return an nn.Module, got dict",
        "torch.nn:Identity": "number of outputs: expected 2 ('fine', 'coarse'), got 1 ('output')",
    }.items():
        assert main(["swap", str(single), backbone, str(tmp_path / "x.pt")]) == 2
        assert expected in capsys.readouterr().err
    assert main(["swap", str(tmp_path / "missing.pt"), "test_swap:Deeper", str(tmp_path / "x.pt")]) == 1
    assert "expected a file" in capsys.readouterr().err


def test_an_engine_whose_compiler_is_not_installed(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"'openvino', which is not available: .*pip install openvino"):
        hybrid_rt.swap_backbone(single, new(), tmp_path / "x.pt")


def test_the_error_on_the_page_about_swapping_is_the_one_that_comes(
    demo_bundle: Path, demo_detector: FasterRCNN, tmp_path: Path
) -> None:
    class BackboneWithFPN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = deeper_demo_backbone(demo_detector)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.inner(x)
            wide = nn.functional.avg_pool2d(torch.cat([features["0"]] * 4, dim=1), 2)
            return {"0": wide, **{key: features[key] for key in ("1", "2", "3")}}

    page = (ROOT / "docs" / "swapping.md").read_text()
    with pytest.raises(hybrid_rt.OptionError) as caught:
        hybrid_rt.swap_backbone(demo_bundle, BackboneWithFPN().eval(), tmp_path / "other.pt")
    (shown,) = re.findall(r"\n    (hybrid_rt\[swap\]: .*?)\n\n", page, flags=re.DOTALL)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[:4] == [line.strip() for line in shown.splitlines()]
