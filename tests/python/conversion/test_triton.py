"""Tests of hybrid-rt export-triton: the configuration matches Triton's schema, and the model runs with torch alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import text_format
from torch import Tensor, nn

import hybrid_rt
from helpers.bundle_surgery import rewrite_manifest
from helpers.paths import ROOT
from helpers.same_detections import assert_same
from helpers.small_detectors import OneConvolution
from hybrid_rt.cli.main import main
from hybrid_rt.common.errors import BundleError, OptionError, VerificationError
from hybrid_rt.common.images import read_image
from hybrid_rt.conversion.export import triton
from hybrid_rt.conversion.export.triton import ServingOptions
from hybrid_rt.torchscript import jit
from models import digits_detector

pytestmark = pytest.mark.slow

TYPES = {"TYPE_UINT8": torch.uint8, "TYPE_FP32": torch.float32, "TYPE_INT64": torch.int64}


def schema() -> Any:
    """Returns Triton's model_config.proto from the client package, without importing the rest."""
    path = distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(directory: Path) -> Any:
    """Parses the configuration. Fails on an unknown field, a wrong type or an invalid enumerator."""
    return text_format.Parse((directory / "config.pbtxt").read_text(), schema().ModelConfig())


def run_by_torch_alone(directory: Path, given: Tensor, at: Path, preload: str) -> subprocess.CompletedProcess[str]:
    """Runs the model as Triton does: torch.jit.load, with the library preloaded. Stores results in ``at``/out.pt."""
    torch.save(given, at / "in.pt")
    code = f"""
import sys, warnings, torch
warnings.filterwarnings("ignore")
with torch.inference_mode():
    results = torch.jit.load({str(directory / "1" / "model.pt")!r})(torch.load({str(at / "in.pt")!r}))
assert not any(name.split(".")[0] in ("hybrid_rt", "torchvision") for name in sys.modules)
torch.save(list(results), {str(at / "out.pt")!r})
"""
    environment = {**os.environ, "LD_PRELOAD": preload}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def found_by_torch_alone(directory: Path, given: Tensor, at: Path) -> dict[str, Tensor]:
    """Returns the outputs by their names in the configuration, after checking them against it."""
    # The dynamic linker treats a space as the end of a path, and the environment's directory may contain one.
    site = at / "site"
    if not site.exists():
        site.symlink_to(triton.library().parents[2])
    done = run_by_torch_alone(directory, given, at, str(site / "hybrid_rt" / "lib" / triton.library().name))
    assert done.returncode == 0, done.stderr
    results = torch.load(at / "out.pt")
    config = parsed(directory)
    data_type = schema().DataType
    assert len(results) == len(config.output)
    for i, (output, value) in enumerate(zip(config.output, results, strict=True)):
        assert output.name.endswith(f"__{i}")  # the PyTorch backend finds outputs by this suffix
        assert value.dtype == TYPES[data_type.Name(output.data_type)]
        shape = value.shape[1:] if config.max_batch_size else value.shape
        assert len(shape) == len(output.dims)
        assert all(wanted in (-1, had) for wanted, had in zip(output.dims, shape, strict=True))
    return {output.name.split("__")[0]: value for output, value in zip(config.output, results, strict=True)}


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    """Returns two images of the same size, with different numbers of boxes."""
    image = read_image(sorted((ROOT / "models" / "held_out").glob("*.png"))[0])
    other = image.clone()
    other[:, image.shape[1] // 2 :] = 0.0
    return [image, other]


@pytest.fixture(scope="module")
def expected(demo_bundle: Path, images: list[Tensor]) -> list[dict[str, Tensor]]:
    detector = hybrid_rt.load(demo_bundle)
    with torch.inference_mode():
        found = [detector([image])[0] for image in images]
    assert len(found[0]["boxes"]) != len(found[1]["boxes"])
    return found


@pytest.fixture(scope="module")
def one_image_bundle(tmp_path_factory: pytest.TempPathFactory, demo_detector: nn.Module) -> Path:
    """Returns a bundle without a golden sample whose segment takes no batch."""
    path = tmp_path_factory.mktemp("bundles") / "one.pt"
    image = read_image(sorted((ROOT / "models" / "held_out").glob("*.png"))[0])
    sizes = {"batch": (1, 1), "height": (128, 416), "width": (128, 416)}
    hybrid_rt.convert(
        demo_detector, ([image],), path, segments="backbone", engine="torchscript", shapes=sizes, golden=False,
        measure=False,
    )  # fmt: skip
    return path


def test_names_of_any_characters_are_in_the_configuration(tmp_path: Path, demo_bundle: Path) -> None:
    names = ['"a" \\ {b}', "café", "猫"]
    named = rewrite_manifest(demo_bundle, tmp_path / "named.pt", lambda manifest: manifest.update(class_names=names))
    model = triton.export_triton(named, tmp_path / "repository")
    assert json.loads(parsed(model.folder).parameters["class_names"].string_value) == names


def test_an_image_in_bytes(
    demo_bundle: Path, images: list[Tensor], expected: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    model = triton.export_triton(demo_bundle, tmp_path / "repository", ServingOptions(instances=2, threads=1))
    assert model.folder == tmp_path / "repository" / "digits"
    config = parsed(model.folder)
    assert (config.name, config.backend, config.max_batch_size) == ("digits", "pytorch", 0)
    assert [(entry.name, list(entry.dims)) for entry in config.input] == [("picture__0", [-1, -1, 3])]
    assert config.input[0].data_type == schema().TYPE_UINT8
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (2, schema().ModelInstanceGroup.KIND_CPU)
    assert config.parameters["INTRA_OP_THREAD_COUNT"].string_value == "1"
    assert list(config.model_warmup[0].inputs["picture__0"].dims) == [*images[0].shape[1:], 3]
    assert json.loads(config.parameters["class_names"].string_value) == list(digits_detector.CLASS_NAMES)
    for image, want in zip(images, expected, strict=True):
        given = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        assert_same([want], [found_by_torch_alone(model.folder, given, tmp_path)])


def test_a_batch_of_images_in_fp32(
    demo_bundle: Path, images: list[Tensor], expected: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    model = triton.export_triton(
        demo_bundle, tmp_path, ServingOptions(input_type="fp32", max_batch=4, max_delay_ms=2.5), name="batched"
    )
    config = parsed(model.folder)
    assert (config.name, config.max_batch_size) == ("batched", 4)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    assert [(entry.name, list(entry.dims)) for entry in config.input] == [("picture__0", [3, -1, -1])]
    found = found_by_torch_alone(model.folder, torch.stack(images), tmp_path)
    counts = found.pop("counts").flatten().tolist()
    assert counts == [len(want["boxes"]) for want in expected]
    for i, (want, count) in enumerate(zip(expected, counts, strict=True)):
        assert_same([want], [{name: value[i, :count] for name, value in found.items()}])
        assert not any(value[i, count:].any() for value in found.values())  # the padding


def test_without_the_library_torch_says_what_it_lacks(demo_bundle: Path, images: list[Tensor], tmp_path: Path) -> None:
    model = triton.export_triton(demo_bundle, tmp_path, ServingOptions(input_type="fp32"))
    done = run_by_torch_alone(model.folder, images[0], tmp_path, "")
    assert done.returncode != 0
    assert "Unknown type name '__torch__.torch.classes.hybrid_rt.Engine'" in done.stderr


class Stub(nn.Module):
    """Finds a number of objects given by the image's first pixel, with masks and keypoints."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for image in images:
            count = int(image[0, 0, 0] * 255)
            height, width = image.shape[1], image.shape[2]
            found.append(
                {
                    "boxes": torch.ones(count, 4),
                    "labels": torch.ones(count, dtype=torch.int64),
                    "scores": torch.ones(count),
                    "masks": torch.ones(count, 1, height, width),
                    "keypoints": torch.ones(count, 17, 3),
                }
            )
        return found


@pytest.mark.parametrize("from_bytes", [True, False])
def test_masks_and_keypoints_are_padded_too(from_bytes: bool) -> None:
    fields = {"boxes": 2, "labels": 1, "scores": 1, "keypoints": 3, "masks": 4}
    module = jit.tensors_only(jit.script(Stub()), fields, batched=True, from_bytes=from_bytes)
    given = torch.zeros(3, 3, 5, 7)
    given[:, 0, 0, 0] = torch.tensor([2.0, 0.0, 3.0]) / 255
    if from_bytes:
        given = (given * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    *results, counts = module(given)
    assert counts.tolist() == [[2], [0], [3]]
    shapes = [(3, 3, 4), (3, 3), (3, 3), (3, 3, 17, 3), (3, 3, 1, 5, 7)]
    assert [tuple(result.shape) for result in results] == shapes
    for result in results:
        assert [int(one.flatten(1).any(1).sum() if one.dim() > 1 else one.sum()) for one in result] == [2, 0, 3]


def test_an_image_without_detections_is_not_an_error() -> None:
    fields = {"boxes": 2, "labels": 1, "scores": 1}
    module = jit.tensors_only(jit.script(Stub()), fields, batched=True, from_bytes=False)
    assert [tuple(result.shape) for result in module(torch.zeros(2, 3, 4, 4))] == [(2, 0, 4), (2, 0), (2, 0), (2, 1)]


# Refusals


def test_an_existing_model_is_replaced_only_on_request(demo_bundle: Path, tmp_path: Path) -> None:
    directory = triton.export_triton(demo_bundle, tmp_path).folder
    (directory / "mine").touch()
    with pytest.raises(
        OptionError, match=r"the model .*/digits: expected a new directory, got an existing one\. .*--force"
    ):
        triton.export_triton(demo_bundle, tmp_path, ServingOptions(max_batch=2))
    assert (directory / "mine").exists()
    triton.export_triton(demo_bundle, tmp_path, ServingOptions(max_batch=2), force=True)
    assert parsed(directory).max_batch_size == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits"]
    assert sorted(path.name for path in directory.rglob("*")) == ["1", "config.pbtxt", "model.pt"]


def test_a_directory_that_cannot_be_written_leaves_nothing(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="expected to write the model"):
        triton.export_triton(demo_bundle, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_rename_that_fails_leaves_the_old_model(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = triton.export_triton(demo_bundle, tmp_path).folder
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(BundleError, match="got No space left on device"):
        triton.export_triton(demo_bundle, tmp_path, ServingOptions(max_batch=2), force=True)
    assert parsed(directory).max_batch_size == 0
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_batch_that_the_bundle_does_not_take(one_image_bundle: Path, images: list[Tensor], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"max_batch=2: expected a batch that .*expected 1x3x128"):
        triton.export_triton(one_image_bundle, tmp_path, ServingOptions(max_batch=2), image=images[0])
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_a_golden_sample_needs_an_image(one_image_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"the test image: .*--image FILE"):
        triton.export_triton(one_image_bundle, tmp_path)
    with pytest.raises(VerificationError, match="expected an image with detections, got no box"):
        triton.export_triton(one_image_bundle, tmp_path, image=torch.zeros(3, 255, 335))


def test_a_model_with_other_boxes_is_not_written(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = triton._as_input
    monkeypatch.setattr(triton, "_as_input", lambda *given: (torch.flip(seen(*given)[0], (1,)), seen(*given)[1]))
    with pytest.raises(VerificationError, match="the model: expected the bundle's result"):
        triton.export_triton(demo_bundle, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_detector_of_another_interface(tmp_path: Path) -> None:
    hybrid_rt.convert(
        OneConvolution().eval(), (torch.rand(1, 3, 8, 8),), tmp_path / "other.pt", segments=["backbone"],
        engine="torchscript", measure=False,
    )  # fmt: skip
    with pytest.raises(OptionError, match=r"expected a detector that takes a list .* got \(Tensor\) -> Tensor"):
        triton.export_triton(tmp_path / "other.pt", tmp_path / "repository")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_batch": -1}, "max_batch: expected 0 or more, got '-1'"),
        ({"instances": 0}, "instances: expected 1 or more, got '0'"),
        ({"threads": -1}, "threads: expected 0 or more, got '-1'"),
        ({"max_delay_ms": -1.0}, "max_delay_ms: expected 0 or more"),
        ({"input_type": "int8"}, "input_type: expected uint8 or fp32, got 'int8'"),
    ],
)
def test_options_are_checked_first(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=text):
        triton.export_triton(tmp_path / "none.pt", tmp_path, ServingOptions(**options))


@pytest.mark.parametrize("name", ["../up", ""])
def test_a_name_that_is_not_a_directory_is_refused_first(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="name: expected letters, digits"):
        triton.export_triton(tmp_path / "none.pt", tmp_path, name=name)


def test_the_verb_prints_what_a_client_needs(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-triton", str(demo_bundle), "-o", str(tmp_path), "--name", "a", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in printed["outputs"]] == ["boxes__0", "labels__1", "scores__2"]
    assert Path(printed["library"]).exists()
    assert printed["torch"] == torch.__version__
    assert main(["export-triton", str(demo_bundle), "-o", str(tmp_path), "--name", "a"]) != 0
    assert "hybrid_rt[triton]" in capsys.readouterr().err
