"""Tests of the golden sample: its content in the bundle, its check in Python and C++, and the rule that both share."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.bundle_surgery import (
    MANIFEST,
    change_manifest,
    flip_byte,
    offset_of,
    read_record,
    rewrite,
    rewrite_manifest,
    save_with_backends,
    save_with_torchscript,
)
from helpers.small_detectors import small_detector, small_image, small_images, small_list_detector
from hybrid_rt import THRESHOLDS, BackendError, BundleError, Thresholds, verify_golden
from hybrid_rt.bundle.manifest import Golden, Manifest
from hybrid_rt.cli.main import main
from hybrid_rt.common.executables import program as find_program
from hybrid_rt.verification import golden
from hybrid_rt.verification.golden import RECORD, GoldenSample, describe, pack, read
from verification.test_boxes import two_people

DAMAGED = "The file was altered or damaged: copy or convert it again."
FP32 = THRESHOLDS["fp32"]
BF16 = THRESHOLDS["bf16"]


@pytest.fixture(scope="module")
def list_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a bundle that maps two images of different sizes to a list of dicts. Do not modify it."""
    path = tmp_path_factory.mktemp("golden") / "list.pt"
    return save_with_torchscript(path, small_list_detector(), (small_images(),))


@pytest.fixture(scope="module")
def tuple_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a bundle that maps a batch to a tuple of tensors. Do not modify it."""
    return save_with_torchscript(tmp_path_factory.mktemp("golden") / "tuple.pt", small_detector(), (small_image(),))


@pytest.fixture(scope="module")
def program() -> str:
    return find_program("hybrid-rt-detect", "test")


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [program, *map(str, arguments), "--verify"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


# Content


def roundtrip(tmp_path: Path, inputs: tuple[Any, ...], expected: Any) -> GoldenSample:
    description, data = pack(GoldenSample(inputs, expected, "bf16", BF16, False))
    assert data is not None, description
    module = hybrid_rt.torchscript.jit.script(nn.Identity())
    hybrid_rt.bundle.archive.save(
        module, tmp_path / "x.pt", Manifest((), golden=Golden.from_json(json.loads(json.dumps(description)))), data
    )
    return read(tmp_path / "x.pt")


def test_a_sample_survives_the_file(tmp_path: Path) -> None:
    halves = torch.randn(3, 2).to(torch.bfloat16)
    inputs = ([torch.randn(3, 4, 5), torch.zeros(0, 4)], {"a": torch.tensor(5), "b": halves}, None, True, 2, 0.5, "x")
    expected = (torch.tensor([True, False]), [torch.arange(3), torch.arange(4)])
    sample = roundtrip(tmp_path, inputs, expected)
    assert (sample.precision, sample.thresholds, sample.compared) == ("bf16", BF16, False)
    assert sample.inputs[2:] == (None, True, 2, 0.5, "x")
    for want, have in [
        *zip(inputs[0], sample.inputs[0], strict=True),
        *((inputs[1][key], sample.inputs[1][key]) for key in inputs[1]),
        (expected[0], sample.expected[0]),
        *zip(expected[1], sample.expected[1], strict=True),
    ]:
        assert want.dtype == have.dtype
        assert torch.equal(want, have)


class Levels(nn.Module):
    """Takes and returns dicts keyed by stride."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)

    def forward(self, images: dict[int, Tensor]) -> dict[int, Tensor]:
        return {stride: self.backbone(image) for stride, image in images.items()}


def test_dicts_by_number_are_samples_too(program: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = {8: torch.rand(1, 3, 9, 8), 16: torch.rand(1, 3, 5, 4)}
    path = save_with_torchscript(tmp_path / "levels.pt", Levels().eval(), (inputs,))
    sample = read(path)
    assert list(sample.inputs[0]) == list(sample.expected) == [8, 16]
    assert verify_golden(path).passed
    done = run(program, path)
    assert done.returncode == 0, done.stderr

    def change(manifest: dict[str, Any]) -> None:
        manifest["golden"]["expected"]["keys"].reverse()

    swapped = rewrite_manifest(path, tmp_path / "swapped.pt", change)
    assert not verify_golden(swapped).passed
    done = run(program, swapped)
    assert (done.returncode, "output.8" in done.stderr + done.stdout) == (7, True)


def test_an_image_of_8_bits_takes_one_byte_per_value_and_stays_exact(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 40, 50), generator=torch.Generator().manual_seed(0)).float() / 255
    description, data = pack(GoldenSample((image,), image[0], "fp32", FP32, True))
    assert description["inputs"][0]["stored"] == "8 bit"
    assert len(data or b"") == 4 * 40 * 50
    assert torch.equal(roundtrip(tmp_path, (image,), torch.zeros(1)).inputs[0], image)


@pytest.mark.parametrize("value", [0.5, 1.0000001, -1 / 255])
def test_an_image_that_is_not_exactly_of_8_bits_stays_as_it_is(tmp_path: Path, value: float) -> None:
    image = torch.tensor([0.0, 1.0, value])
    description, _ = pack(GoldenSample((image,), image, "fp32", FP32, True))
    assert description["inputs"][0]["stored"] == "raw"
    assert torch.equal(roundtrip(tmp_path, (image,), image).inputs[0], image)


def test_masks_are_stored_as_what_is_compared(tmp_path: Path) -> None:
    sample = roundtrip(tmp_path, (torch.zeros(1),), [two_people()])
    assert sample.expected[0]["masks"].dtype == torch.uint8
    assert int(sample.expected[0]["masks"].sum()) == 2 * 50 * 50
    assert torch.equal(sample.expected[0]["keypoints"], two_people()["keypoints"])
    assert (tmp_path / "x.pt").stat().st_size < 20_000  # 80 kB of zeros and ones, compressed


@pytest.mark.parametrize(
    ("inputs", "expected", "reason"),
    [
        ((object(),), torch.zeros(1), "tensors, numbers and strings, not object"),
        ((float("nan"),), torch.zeros(1), "not the number nan"),
        (({True: torch.zeros(1)},), torch.zeros(1), "not a dict with keys other than strings or integers"),
        (({1: torch.zeros(1), "1": torch.zeros(1)},), torch.zeros(1), "not a dict with keys other than strings or"),
        ((torch.zeros(1, dtype=torch.complex64),), torch.zeros(1), "not a tensor of complex64"),
        ((torch.zeros(1),), (torch.zeros(1), float("inf")), "not the number inf"),
        ((torch.zeros(1),), [{name: value[:0] for name, value in two_people().items()}], "the detector found no box"),
    ],
)
def test_unusable_samples_are_left_out_with_the_reason(inputs: tuple[Any, ...], expected: Any, reason: str) -> None:
    description, data = pack(GoldenSample(inputs, expected, "fp32", FP32, True))
    assert data is None
    assert reason in description["absent"]
    assert reason in describe(description)


def test_convert_stores_the_example_and_the_detections(list_bundle: Path) -> None:
    sample = read(list_bundle)
    images = [small_image()[0], small_image(48, 40)[0]]
    (stored,) = sample.inputs
    assert all(torch.equal(want, have) for want, have in zip(images, stored, strict=True))
    for want, have in zip(small_list_detector()(images), sample.expected, strict=True):
        assert list(want) == list(have)
        assert all(torch.equal(want[name], have[name]) for name in want)
    assert (sample.precision, sample.thresholds, sample.compared) == ("fp32", FP32, True)


def test_the_sample_is_one_record_that_load_leaves_alone_and_check_reads(list_bundle: Path, tmp_path: Path) -> None:
    entry = hybrid_rt.inspect(list_bundle)["records"][RECORD]
    assert entry["is_golden"] is True
    assert len(read_record(list_bundle, RECORD)) == entry["size"]
    damaged = flip_byte(list_bundle, tmp_path / "damaged.pt", offset_of(list_bundle, RECORD, 0.5))
    hybrid_rt.load(damaged)
    for refused in (hybrid_rt.check, verify_golden):
        with pytest.raises(BundleError, match=f"record '{RECORD}'"):
            refused(damaged)


def test_thresholds_of_the_conversion_are_stored(tmp_path: Path) -> None:
    loose = Thresholds(iou=0.5, score=0.2, recall=0.5, relative_error=0.5)
    path = save_with_torchscript(tmp_path / "x.pt", small_list_detector(), ([small_image()[0]],), thresholds=loose)
    assert read(path).thresholds == loose
    assert verify_golden(path).thresholds == loose
    assert verify_golden(path, thresholds=FP32).thresholds == FP32


def test_the_first_image_with_boxes_is_the_sample(tmp_path: Path) -> None:
    detector = small_list_detector()
    dark, light = torch.zeros(3, 32, 32), small_image()[0]
    scores = [float(found["scores"].max()) for found in detector([dark, light])]
    assert scores[0] < scores[1]
    detector.least_score = sum(scores) / 2
    path = save_with_torchscript(tmp_path / "x.pt", detector, ([dark],), verify_inputs=[([light],)])
    assert torch.equal(read(path).inputs[0][0], light)


def test_without_verification_the_sample_says_that_nobody_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_with_torchscript(tmp_path / "x.pt", small_list_detector(), ([small_image()[0]],), verify=False)
    check = verify_golden(path)
    assert check.passed
    assert not check.compared
    assert main(["verify", str(path)]) == 0
    assert "(not compared when it was converted: verify=False)" in capsys.readouterr().out


# The check


def test_a_bundle_passes_in_python(list_bundle: Path, tuple_bundle: Path) -> None:
    check = verify_golden(list_bundle)
    assert check.passed, check.verification.failures
    assert [match.where for match in check.verification.pictures] == [
        "golden sample, image 0",
        "golden sample, image 1",
    ]
    assert all(match.matched == match.expected > 0 for match in check.verification.pictures)
    assert [(engine["engine"], engine["backend"]) for engine in check.engines] == [("detector.backbone", "torchscript")]
    check = verify_golden(tuple_bundle)
    assert check.passed
    assert [error.output for error in check.verification.tensors] == ["output.0", "output.1", "output.2"]


def test_the_demo_bundle_passes_on_each_backend(demo_bundle: Path) -> None:
    for backend in ("openvino", "torchscript"):
        check = verify_golden(demo_bundle, backend=backend, threads=1)
        assert check.passed, check.verification.failures
        assert check.engines[0]["backend"] == backend
        assert check.verification.pictures[0].matched >= 5


@pytest.mark.slow
def test_a_bundle_passes_in_cpp(program: str, demo_bundle: Path, list_bundle: Path, tuple_bundle: Path) -> None:
    done = run(program, demo_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{demo_bundle}: matches its detector"
    assert lines[1].startswith("  backbone: openvino ")
    assert " boxes matched among " in lines[2]
    for path in (list_bundle, tuple_bundle):
        done = run(program, path, "--json")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        told, expected = json.loads(done.stdout), verify_golden(path).to_json()
        assert told["passed"] is True
        assert list(told) == list(expected)
        for name in ("precision", "thresholds", "failures"):
            assert told[name] == expected[name]
        counts = ("where", "expected", "found", "matched", "lost")
        assert [list(image) for image in told["pictures"]] == [list(image) for image in expected["pictures"]]
        assert [[image[name] for name in counts] for image in told["pictures"]] == [
            [image[name] for name in counts] for image in expected["pictures"]
        ]
        assert [error["output"] for error in told["tensors"]] == [error["output"] for error in expected["tensors"]]


def with_another_expectation(path: Path, output: Path, change: Callable[[Any], Any]) -> Path:
    """Returns the bundle with another expected result in its golden sample, signed again."""
    sample = read(path)
    description, data = pack(replace(sample, expected=change(sample.expected)))
    changes = {
        RECORD: lambda _: data,
        MANIFEST: change_manifest(lambda manifest: manifest.update(golden=description)),
    }
    return rewrite(path, output, changes)


def without_the_last_box(expected: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [expected[0], {name: value[1:] for name, value in expected[1].items()}]


def test_a_bundle_with_other_boxes_fails_everywhere(
    list_bundle: Path, tmp_path: Path, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_another_expectation(list_bundle, tmp_path / "x.pt", without_the_last_box)
    hybrid_rt.check(path)  # it is intact; only the expected result differs
    check = verify_golden(path)
    (failure,) = check.verification.failures
    assert failure.startswith("golden sample, image 1: ")
    assert "; the hybrid's box of label " in failure

    assert main(["verify", str(path)]) == 1
    out, err = capsys.readouterr()
    assert f"{path}: DIFFERS from its detector\n" in out
    assert f"  FAILED: {failure}\n" in out
    assert err == ""
    assert main(["verify", str(path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["failures"]) == (False, [failure])

    done = run(program, path)
    assert done.returncode == 7
    assert f"  FAILED: {failure}\n" in done.stdout
    assert done.stderr == (
        f"hybrid-rt-detect: error: hybrid_rt[detect]: {path}: expected the detector's result, got "
        f"{failure} on this machine. Try another --backend; hybrid-rt check shows which ones can run.\n"
    )
    done = run(program, path, "--json")
    assert done.returncode == 7
    assert json.loads(done.stdout)["failures"] == [failure]


@pytest.mark.parametrize("is_near", [True, False])
def test_rows_in_another_order_are_judged_alike_everywhere(
    tuple_bundle: Path, tmp_path: Path, program: str, is_near: bool
) -> None:
    scores = read(tuple_bundle).expected[1]
    gaps = scores[:-1] - scores[1:]
    i = int((gaps if is_near else -gaps).argmin())
    order = torch.arange(len(scores))
    order[i], order[i + 1] = i + 1, i

    def reordered(old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        between = old[1].clone()
        if is_near:
            between[i : i + 2] = old[1][i : i + 2].mean()
        return old[0][order], between, old[2][order]

    path = with_another_expectation(tuple_bundle, tmp_path / "x.pt", reordered)
    assert verify_golden(path).passed == is_near
    assert run(program, path).returncode == (0 if is_near else 7)


def test_another_tensor_fails_everywhere(tuple_bundle: Path, tmp_path: Path, program: str) -> None:
    path = with_another_expectation(tuple_bundle, tmp_path / "x.pt", lambda old: (old[0], old[1] * 2, old[2]))
    (failure,) = verify_golden(path).verification.failures
    assert failure.startswith("golden sample, output 'output.1': relative error 0.5 (allowed 0.001), cosine 1.0")
    done = run(program, path, "--json")
    assert done.returncode == 7
    assert json.loads(done.stdout)["failures"] == [failure]


def refusals(path: Path, program: str) -> list[str]:
    """Returns the messages of Python and C++."""
    with pytest.raises(BundleError) as caught:
        verify_golden(path)
    done = run(program, path)
    assert done.returncode == 4, done.stderr
    return [str(caught.value), done.stderr.removeprefix("hybrid-rt-detect: error: ").rstrip()]


def test_a_bundle_without_a_sample_says_why(tmp_path: Path, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_with_torchscript(tmp_path / "x.pt", small_detector(), (small_image(),), golden=False)
    for text in refusals(path, program):
        assert text.startswith(
            f"hybrid_rt[bundle]: {path}: expected a golden sample, got none (switched off by golden=False). Convert "
            "the detector again, or compare with hybrid_rt.verify(detector, path, inputs)"
        )
    assert main(["verify", str(path)]) == 1
    assert "expected a golden sample, got none" in capsys.readouterr().err
    assert RECORD not in hybrid_rt.inspect(path)["records"]


def test_an_older_bundle_has_none(list_bundle: Path, tmp_path: Path, program: str) -> None:
    path = save_with_backends(tmp_path / "old.pt", ["torchscript"])
    for text in refusals(path, program):
        assert f"{path}: expected a golden sample, got none (an older hybrid_rt made this file)." in text


@pytest.mark.parametrize(
    "change",
    [
        lambda sample: sample.pop("expected"),
        lambda sample: sample.update(inputs=5),
        lambda sample: sample["inputs"][0].update(kind="set"),
        lambda sample: sample["inputs"][0]["items"][0].update(dtype="quint8"),
        lambda sample: sample["inputs"][0]["items"][0].update(offset=1 << 40),
        lambda sample: sample["inputs"][0]["items"][0].update(offset=-1),
        lambda sample: sample["inputs"][0]["items"][0].update(size=4),
        lambda sample: sample["inputs"][0]["items"][0].update(shape=[3, 32, 1 << 60]),
        lambda sample: sample["inputs"][0]["items"][0].update(shape=[-3, -32, 32]),
        lambda sample: sample["expected"]["items"][0].update(keys=["boxes"]),
        lambda sample: sample["thresholds"].pop("iou"),
    ],
)
def test_a_mismatched_description_is_damage(
    list_bundle: Path, tmp_path: Path, program: str, change: Callable[[Any], object]
) -> None:
    path = rewrite_manifest(list_bundle, tmp_path / "x.pt", lambda manifest: change(manifest["golden"]))
    for text in refusals(path, program):
        assert text.startswith("hybrid_rt[bundle]: ")
        assert DAMAGED in text


def test_a_missing_or_unlisted_record_is_damage(list_bundle: Path, tmp_path: Path, program: str) -> None:
    gone = rewrite(list_bundle, tmp_path / "gone.pt", {RECORD: None})
    for text in refusals(gone, program):
        assert text == f"hybrid_rt[bundle]: {gone}, record '{RECORD}': expected it to be there, got none. {DAMAGED}"
    unnamed = rewrite_manifest(list_bundle, tmp_path / "x.pt", lambda manifest: manifest["records"].pop(RECORD))
    for text in refusals(unnamed, program):
        assert f"record '{RECORD}': expected one that the manifest names, got another one. {DAMAGED}" in text


def test_a_backend_that_cannot_run_has_a_specific_error(list_bundle: Path, program: str) -> None:
    with pytest.raises(BackendError, match="only 'openvino' was requested"):
        verify_golden(list_bundle, backend="openvino")
    assert run(program, list_bundle, "--backend", "openvino").returncode == 4


def test_inspect_shows_the_sample(list_bundle: Path, tuple_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(list_bundle)]) == 0
    out = capsys.readouterr().out
    boxes = sum(len(image["boxes"]) for image in read(list_bundle).expected)
    assert f"golden sample: input 3x32x32, 3x48x40; the detector found {boxes} boxes\n" in out
    assert f"verified in fp32: {boxes} of {boxes} boxes matched, box drift 0.00 pixels, score drift " in out
    assert "  detector.backbone: greatest relative error " in out
    assert main(["inspect", str(tuple_bundle)]) == 0
    assert "golden sample: input 1x3x32x32; the detector found 3 tensors\n" in capsys.readouterr().out
    assert main(["inspect", str(list_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["golden"]["record"] == RECORD


def test_the_module_is_found_by_its_name() -> None:
    assert golden.RECORD == "extra/hybrid_rt/golden.bin"
