"""Tests of the latency contract: measurement, storage, its check in Python and C++, and invalid contracts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from bundle.test_manifest import SCHEMA, errors_of
from helpers.bundle_surgery import rewrite_manifest, save_with_torchscript
from helpers.small_detectors import small_detector, small_image, small_images, small_list_detector
from hybrid_rt import BundleError, InputError, LatencyContract, MachineDescription, OptionError, SizeLatency
from hybrid_rt.cli.main import main
from hybrid_rt.common.executables import program as find_program
from hybrid_rt.conversion.edit.measure import without_stale_contract
from hybrid_rt.verification.latency import at_size, read_contract, verify_latency

LOOSE = 1000.0
"""A tolerance that every machine keeps."""

QUICK = {"repeat": 20, "threads": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a bundle without a contract. Do not modify it."""
    path = tmp_path_factory.mktemp("latency") / "list.pt"
    return save_with_torchscript(path, small_list_detector(), (small_images(),))


@pytest.fixture(scope="module")
def measured(bundle: Path) -> Path:
    """Returns the bundle with a contract for two sizes. Do not modify it."""
    path = bundle.with_name("measured.pt")
    hybrid_rt.measure(bundle, output=path, sizes=[(32, 32), (64, 48)], **QUICK)
    return path


def changed(path: Path, output: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    return rewrite_manifest(path, output, lambda manifest: change(manifest["latency_contract"]))


def detect(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [find_program("hybrid-rt-detect", "test"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


# What is stored


def test_a_measured_bundle_holds_times_and_the_machine(measured: Path) -> None:
    values = hybrid_rt.inspect(measured)
    assert errors_of(values) == []
    assert values["format_version"] == 2
    contract = read_contract(measured)
    assert contract.machine == MachineDescription.here()
    assert (contract.device, contract.threads, contract.input) == ("cpu", 1, "golden sample")
    assert contract.engines == {"detector.backbone": "torchscript:fp32"}
    assert [(size.height, size.width, size.count) for size in contract.sizes] == [(32, 32, 20), (64, 48, 20)]
    for size in contract.sizes:
        assert 0 < size.p50 <= size.p95
        assert size.p99 is None
    assert LatencyContract.from_json(json.loads(json.dumps(contract.to_json()))) == contract


def test_everything_else_in_the_file_stays(bundle: Path, measured: Path) -> None:
    before, after = hybrid_rt.inspect(bundle), hybrid_rt.inspect(measured)
    del after["latency_contract"]
    assert {name: after[name] for name in after if name != "records"} == {
        name: before[name] for name in before if name != "records"
    }
    assert hybrid_rt.verify_golden(measured).passed


def test_the_size_of_the_first_image_is_measured_by_default(bundle: Path, tmp_path: Path) -> None:
    report = hybrid_rt.measure(bundle, output=tmp_path / "x.pt", **QUICK)
    assert [(size.height, size.width) for size in report.contract.sizes] == [(32, 32)]
    image = small_image(40, 56)[0]
    report = hybrid_rt.measure(bundle, ([image],), tmp_path / "x.pt", **QUICK)
    assert [(size.height, size.width) for size in report.contract.sizes] == [(40, 56)]
    assert report.contract.input == "own inputs"


def test_percentiles_are_those_of_the_calls() -> None:
    latency = SizeLatency.of((1, 2), [float(i) for i in range(200, 0, -1)])
    assert latency == SizeLatency(1, 2, 200, 100.0, 190.0, 198.0)
    assert SizeLatency.of((1, 2), [1.0] * 99).p99 is None


def test_convert_stores_a_contract_of_the_sizes_that_are_supported(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    image = small_image()
    sizes = [(32, 32), (32, 64)]
    result = hybrid_rt.convert(
        small_detector(), (image,), path, engine="torchscript", segments=["backbone"], shapes=sizes, measure=False,
        latency_contract=True, report=tmp_path / "x.html",
    )  # fmt: skip
    contract = read_contract(path)
    assert [(size.height, size.width) for size in contract.sizes] == sizes
    assert all(size.count == 100 and size.p99 is not None for size in contract.sizes)
    assert result.report.latency_contract == contract
    assert f"32x64: p50 {contract.sizes[1].p50:.2f} ms" in str(result.report)
    assert f"32x64: p50 {contract.sizes[1].p50:.2f} ms" in (tmp_path / "x.html").read_text().replace("<wbr>", "")
    schema = json.loads((Path(hybrid_rt.conversion.report.__file__).parent / "report.schema.json").read_text())
    jsonschema.validate(result.report.to_json(), schema)
    assert json.loads(json.dumps(result.report.to_json()["latency_contract"])) == contract.to_json()


def test_convert_refuses_a_contract_of_a_missing_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_rt._native.cuda_devices", lambda: ([], "none"))
    with pytest.raises(
        OptionError, match=r"latency_contract: expected the target device .* hybrid-rt measure FILE --device cuda"
    ):
        hybrid_rt.convert(
            small_detector(), (small_image(),), tmp_path / "x.pt", engine="aot_inductor", device="cuda",
            latency_contract=True,
        )  # fmt: skip


def test_convert_refuses_a_contract_of_inputs_without_images(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    with pytest.raises(InputError, match=r"hybrid_rt\[convert\]: inputs: expected images: floats or uint8"):
        hybrid_rt.convert(Sum().eval(), (torch.rand(2, 8),), tmp_path / "x.pt", latency_contract=True)


# The check


def test_a_contract_holds_within_its_tolerance(measured: Path) -> None:
    check = verify_latency(measured, tolerance=LOOSE)
    assert check.holds
    assert check.notes == ()
    assert check.machine == check.measured_on
    assert [(size.found.height, size.found.width, size.found.count) for size in check.sizes] == [
        (32, 32, 20),
        (64, 48, 20),
    ]


def test_a_slower_machine_breaks_the_contract(measured: Path, tmp_path: Path) -> None:
    def promise_a_nanosecond(contract: dict[str, Any]) -> None:
        contract["sizes"][0].update(p50=1e-6, p95=1e-6)

    path = changed(measured, tmp_path / "x.pt", promise_a_nanosecond)
    check = verify_latency(path, sizes=[(32, 32)])
    assert not check.holds
    assert [failure.split(" ms")[0].rsplit(" ", 1)[0] for failure in check.failures] == ["32x32: p50", "32x32: p95"]
    assert "above the contract's 0.000 ms (allowed: 25 %)" in check.failures[0]
    assert verify_latency(path, sizes=[(64, 48)], tolerance=LOOSE).holds


def test_other_conditions_are_noted(measured: Path, tmp_path: Path) -> None:
    def elsewhere(contract: dict[str, Any]) -> None:
        contract["machine"].update(processor="Another CPU", cpus=96)
        contract["engines"] = {"detector.backbone": "openvino:bf16"}

    path = changed(measured, tmp_path / "x.pt", elsewhere)
    check = verify_latency(path, ([small_image()[0]],), sizes=[(32, 32)], threads=2, tolerance=LOOSE)
    assert check.notes == (
        f"measured on another machine: Another CPU, {check.machine.architecture}, 96 CPUs, here {check.machine}",
        "measured with 1 thread, here 2 threads",
        "measured on the golden sample, here own inputs",
        "measured with engine detector.backbone on openvino:bf16, here torchscript:fp32",
    )


def test_images_are_resized_and_other_inputs_stay() -> None:
    mask, points = torch.ones(4, 4), torch.rand(3, 2)
    images = [torch.rand(3, 8, 8), torch.rand(3, 4, 6)]
    found = at_size((images, torch.rand(2, 3, 8, 8), mask, (torch.rand(3, 8, 8), points), 3), (16, 12))
    assert [tuple(image.shape) for image in found[0]] == [(3, 16, 12), (3, 16, 12)]
    assert found[1].shape == (2, 3, 16, 12)
    assert found[2] is mask
    assert found[3][0].shape == (3, 8, 8)
    assert at_size((images[0],), (8, 8))[0] is images[0]


# Python and C++ say the same


def test_the_programs_check_the_contract(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(measured), "--latency", "--tolerance", str(LOOSE)]) == 0
    told = capsys.readouterr().out
    assert f"  latency contract holds on {MachineDescription.here()}\n" in told
    done = detect(measured, "--verify", "--latency", "--tolerance", LOOSE)
    assert done.returncode == 0, done.stderr
    assert f"  latency contract holds on {MachineDescription.here()}\n" in done.stdout
    assert [line.split(" of ")[0].rsplit(" ", 1)[0] for line in done.stdout.splitlines()] == [
        line.split(" of ")[0].rsplit(" ", 1)[0] for line in told.splitlines()
    ]


def test_the_programs_json_has_the_same_fields(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(measured), "--latency", "--tolerance", str(LOOSE), "--json"]) == 0
    python = json.loads(capsys.readouterr().out)
    cpp = json.loads(detect(measured, "--verify", "--latency", "--tolerance", LOOSE, "--json").stdout)
    assert python.keys() == cpp.keys()
    assert python["latency"].keys() == cpp["latency"].keys()
    for name in ("holds", "tolerance", "machine", "measured_on", "failures", "notes"):
        assert python["latency"][name] == cpp["latency"][name]
    assert [size["promised"] for size in python["latency"]["sizes"]] == [
        size["promised"] for size in cpp["latency"]["sizes"]
    ]


def test_the_programs_fail_if_it_does_not_hold(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_fast(contract: dict[str, Any]) -> None:
        contract["sizes"] = [{**contract["sizes"][0], "p50": 1e-6, "p95": 1e-6}]

    path = changed(measured, tmp_path / "x.pt", too_fast)
    assert main(["verify", str(path), "--latency"]) == 1
    told = capsys.readouterr().out
    assert "matches its detector" in told
    assert "latency contract DOES NOT HOLD" in told
    assert "TOO SLOW: 32x32: p50" in told
    assert main(["verify", str(path)]) == 0
    done = detect(path, "--verify", "--latency")
    assert done.returncode == 8
    assert "matches its detector" in done.stdout
    assert "TOO SLOW: 32x32: p50" in done.stdout
    assert "expected the times of its latency contract, got 32x32: p50" in done.stderr


def test_a_file_without_a_contract_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = (
        f"hybrid_rt[bundle]: {bundle}: expected a latency contract, got none. Measure one on the target machine: "
        "hybrid-rt measure FILE, or convert with latency_contract=True."
    )
    with pytest.raises(BundleError) as refused:
        verify_latency(bundle)
    assert str(refused.value) == expected
    assert main(["verify", str(bundle), "--latency"]) == 1
    assert expected in capsys.readouterr().err
    done = detect(bundle, "--verify", "--latency")
    assert (done.returncode, done.stderr) == (4, f"hybrid-rt-detect: error: {expected}\n")


# Invalid options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"repeat": 19}, "repeat: expected at least 20 timed calls, got 19."),
        ({"sizes": [(0, 32)]}, "sizes: expected at most 64 pairs (height, width) of 1 to 16384, got (0, 32)."),
        ({"sizes": [(1, i) for i in range(1, 66)]}, "sizes: expected at most 64 pairs"),
        ({"inputs": (torch.rand(3),)}, "inputs: expected images: floats or uint8"),
        ({"inputs": ([torch.rand(7, 32, 32)],)}, "images of 32x32: expected a size that the bundle accepts, got "),
    ],
)
def test_measure_refuses(bundle: Path, tmp_path: Path, options: dict[str, Any], text: str) -> None:
    output = tmp_path / "x.pt"
    with pytest.raises(hybrid_rt.HybridRTError) as refused:
        hybrid_rt.measure(bundle, output=output, **{"repeat": 20, **options})
    assert f"hybrid_rt[measure]: {text}" in str(refused.value)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sizes": [(48, 64)]}, "sizes: expected sizes in the contract: 32x32, 64x48, got 48x64."),
        ({"repeat": 5}, "repeat: expected 20 to 1000000 timed calls, got 5."),
        ({"tolerance": -0.5}, "tolerance: expected a fraction of at least 0, got -0.500."),
        ({"tolerance": float("nan")}, "tolerance: expected a fraction of at least 0, got nan."),
    ],
)
def test_verify_latency_refuses(measured: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as refused:
        verify_latency(measured, **options)
    assert f"hybrid_rt[latency]: {text}" in str(refused.value)


def test_the_command_lines_refuse_what_does_not_fit(
    measured: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(measured), "--sizes", "32x32"]) == 2
    assert "expected --latency as well, got none" in capsys.readouterr().err
    assert main(["measure", str(bundle), "--sizes", "32"]) == 2
    assert "--sizes: expected HEIGHTxWIDTH,..., got '32'" in capsys.readouterr().err
    for arguments in (["--latency"], ["--verify", "--tolerance", "1"], ["--verify", "--latency", "--tolerance", "nan"]):
        assert detect(measured, *arguments).returncode == 2


def test_the_command_line_measures(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.pt"
    command = ["measure", str(bundle), "--output", str(output), "--repeat", "20", "--sizes", "32x48"]
    assert main(command) == 0
    assert "  32x48: p50 " in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_contract(output).to_json()
    assert main(["inspect", str(output)]) == 0
    assert f"latency contract: {MachineDescription.here()}; cpu, " in capsys.readouterr().out


def test_a_file_without_a_golden_sample_is_measured_on_given_inputs(tmp_path: Path) -> None:
    path = save_with_torchscript(tmp_path / "x.pt", small_detector(), (small_image(),), golden=False)
    with pytest.raises(BundleError, match="expected a golden sample"):
        hybrid_rt.measure(path, **QUICK)
    hybrid_rt.measure(path, (small_image(),), **QUICK)
    assert verify_latency(path, (small_image(),), tolerance=LOOSE).holds


# Crafted files


@pytest.mark.parametrize(
    ("where", "value", "text"),
    [
        (("sizes", 0, "p50"), -1.0, "sizes[0].p50: expected milliseconds above 0"),
        (("sizes", 0, "p95"), 1e-9, "sizes[0].p95: expected milliseconds above 0, and at least the percentile before"),
        (("sizes", 0, "p50"), None, "sizes[0].p50: expected a number of milliseconds, got null"),
        (("sizes", 1, "count"), 1, "sizes[1].count: expected an integer from 20 to 1000000, got 1"),
        (("sizes", 1, "width"), 10**9, "sizes[1].width: expected an integer from 1 to 16384"),
        (("threads",), -2, "threads: expected an integer from 1 to 1024, got -2"),
        (("sizes",), [], "sizes: expected a list of 1 to 64 objects"),
        (("machine",), [], "machine: expected an object"),
    ],
)
def test_values_that_no_measurement_has_are_refused(
    measured: Path, tmp_path: Path, where: tuple[Any, ...], value: Any, text: str
) -> None:
    def change(contract: Any) -> None:
        for key in where[:-1]:
            contract = contract[key]
        contract[where[-1]] = value

    path = changed(measured, tmp_path / "x.pt", change)
    with pytest.raises(BundleError) as refused:
        verify_latency(path)
    assert f"manifest, latency_contract.{text}" in str(refused.value)
    done = detect(path, "--verify", "--latency")
    assert (done.returncode, f"{path}, manifest, latency_contract.{text}" in done.stderr) == (4, True), done.stderr
    assert detect(path, "--verify").returncode == 0  # without a check, the contract is ignored
    hybrid_rt.load(path)


def test_numbers_that_are_not_finite_are_refused(measured: Path) -> None:
    values = read_contract(measured).to_json()
    values["sizes"][0]["p50"] = float("nan")
    with pytest.raises(BundleError, match="latency_contract: expected finite numbers"):
        LatencyContract.from_json(values)


def test_fields_of_a_newer_version_are_ignored(measured: Path, tmp_path: Path) -> None:
    def newer(contract: dict[str, Any]) -> None:
        contract["power"] = 3
        contract["machine"]["memory"] = 1
        contract["sizes"][0]["p999"] = 5.0

    path = changed(measured, tmp_path / "x.pt", newer)
    assert replace(read_contract(path)) == read_contract(measured)
    assert verify_latency(path, sizes=[(32, 32)], tolerance=LOOSE).holds


# Other changes of the file


def test_measuring_drops_signatures_and_signs_again(bundle: Path, tmp_path: Path) -> None:
    private = tmp_path / "private.pem"
    public = tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    path = tmp_path / "x.pt"
    signed = hybrid_rt.measure(bundle, output=path, sign=private, **QUICK)
    assert signed.notes[0].startswith("signed with the key ")
    assert hybrid_rt.verify_signature(path, [public])
    dropped = hybrid_rt.measure(path, **QUICK)
    assert dropped.notes[0].startswith("signatures that do not hold any more were left out: ")
    with pytest.raises(BundleError):
        hybrid_rt.load(path, trusted_keys=[public])


def test_a_contract_stays_while_the_measured_variant_comes_first(measured: Path, tmp_path: Path) -> None:
    more, first = tmp_path / "more.pt", tmp_path / "first.pt"
    report = hybrid_rt.add_variant(measured, "torchscript:bf16", more, verify=False)
    assert hybrid_rt.inspect(more).get("latency_contract") is None  # it comes before the fallback that was measured
    assert any(note.startswith("the latency contract was left out") for note in report.notes)
    hybrid_rt.measure(more, output=first, **QUICK)
    assert read_contract(first).engines == {"detector.backbone": "torchscript:bf16"}
    report = hybrid_rt.remove_variant(first, "torchscript:fp32")
    assert read_contract(first).engines == {"detector.backbone": "torchscript:bf16"}
    assert report.notes == []


def test_a_contract_of_a_removed_engine_is_stale(measured: Path) -> None:
    manifest = hybrid_rt.bundle.archive.read_manifest(measured)
    assert without_stale_contract(manifest, manifest) == (manifest, [])
    (engine,) = manifest.engines
    other = replace(engine, variants=(replace(engine.variants[0], precision="bf16"),))
    after, notes = without_stale_contract(manifest, replace(manifest, engines=(other,)))
    assert after.latency_contract is None
    assert len(notes) == 1


def test_a_swapped_backbone_has_no_contract(tmp_path: Path) -> None:
    path = save_with_torchscript(tmp_path / "x.pt", small_detector(), (small_image(),))
    hybrid_rt.measure(path, **QUICK)
    report = hybrid_rt.swap_backbone(path, small_detector().backbone, path, verify=False)
    assert report.notes == [
        "the latency contract was left out: it is of the old backbone. Measure it again: `hybrid-rt measure FILE`."
    ]
    assert "latency_contract" not in hybrid_rt.inspect(path)


def test_the_schema_refuses_a_contract_of_too_few_calls(measured: Path) -> None:
    values = hybrid_rt.inspect(measured)
    values["latency_contract"]["sizes"][0]["count"] = 19
    assert [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(values)]
