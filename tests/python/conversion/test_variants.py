"""Tests of several variants in one file: where they run, how they are added and removed, their cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from capture.test_fused import Detector
from helpers.bundle_surgery import run_python, save_with_backends, small_artifact
from helpers.small_detectors import small_detector, small_image
from hybrid_rt import BackendError, InputError, OptionError, VerificationError
from hybrid_rt.backends import registry
from hybrid_rt.backends.base import Backend
from hybrid_rt.backends.cache import store
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.cli.main import main
from hybrid_rt.common.specs import Artifact
from hybrid_rt.torchscript.graph_interpreter import ScriptGraph

BOTH = ["openvino", "torchscript"]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the small detector with a TorchScript backbone only."""
    path = tmp_path_factory.mktemp("bank") / "single.pt"
    hybrid_rt.convert(
        small_detector(), (small_image(),), path, segments="backbone", engine="torchscript", measure=False
    )
    return path


@pytest.fixture(scope="module")
def bank(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "bank.pt"
    hybrid_rt.add_variant(single, "openvino", path, first=True)
    return path


def variants_of(path: Path, segment: int = 0) -> list[str]:
    return [f"{v['backend']}:{v['precision']}" for v in hybrid_rt.inspect(path)["engines"][segment]["variants"]]


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


# Adding and removing


def test_a_variant_is_added_without_the_detectors_code(single: Path, bank: Path) -> None:
    assert variants_of(bank) == ["openvino:fp32", "torchscript:fp32"]
    image = small_image()
    for backend in BOTH:
        assert_same(hybrid_rt.load(bank, backend=backend)(image), small_detector()(image))
    assert hybrid_rt.verify_golden(bank).passed
    kept = {"detector", "versions", "head", "verification", "golden"}
    before, after = hybrid_rt.inspect(single), hybrid_rt.inspect(bank)
    assert {key: before[key] for key in kept} == {key: after[key] for key in kept}


@pytest.mark.slow
def test_the_engine_runs_in_a_process_that_has_no_detector(bank: Path) -> None:
    code = (
        "import sys, hybrid_rt; module = hybrid_rt.load(sys.argv[1]); "
        "print(hybrid_rt.engines(module)[0]['backend'], hybrid_rt.verify_golden(sys.argv[1]).passed)"
    )
    assert run_python(code, bank).stdout == "openvino True\n"


def test_a_variant_is_added_before_torchscript_or_first(single: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    report = hybrid_rt.add_variant(single, ["openvino", "openvino:bf16"], path)
    assert report.variants == {"backbone": ["openvino:fp32", "openvino:bf16", "torchscript:fp32"]}
    assert report.verification is not None
    # of the detector's outputs, which are tensors
    assert {error.backend for error in report.verification.tensors} == {"openvino:fp32", "openvino:bf16", ""}
    assert report.file_size == path.stat().st_size > report.size_before == single.stat().st_size
    assert "verified: greatest relative error" in str(report)
    hybrid_rt.remove_variant(path, "openvino:fp32")
    assert variants_of(path) == ["openvino:bf16", "torchscript:fp32"]
    hybrid_rt.add_variant(path, "openvino:fp32", first=True)
    assert variants_of(path) == ["openvino:fp32", "openvino:bf16", "torchscript:fp32"]
    hybrid_rt.remove_variant(path, "openvino")  # both variants
    assert variants_of(path) == ["torchscript:fp32"]


def for_machines(*requirements: dict[str, str], backend: str = "tensorrt") -> list[Artifact]:
    """Returns artifacts of one backend in one precision, with TorchScript's bytes."""
    artifact = small_artifact()
    return [replace(artifact, spec=replace(artifact.spec, backend=backend, requirements=each)) for each in requirements]


def test_engines_of_one_name_for_different_gpus_stand_in_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ada, older = {"compute_capability": "8.9", "tensorrt_rtx": "==1.7.1"}, {"compute_capability": "8.0,8.6"}
    path = save_with_backends(tmp_path / "x.pt", [*for_machines(ada, older, {**ada, "tensorrt_rtx": "==1.6.0"})])
    stored = hybrid_rt.inspect(path)["engines"][0]["variants"]
    assert [variant["requirements"]["compute_capability"] for variant in stored] == ["8.9", "8.0,8.6", "8.9"]
    (check,) = hybrid_rt.check(path, "cuda", capability="8.6")
    assert [("built for GPUs" in variant.refusal) for variant in check.variants] == [True, False, True]
    assert main(["check", str(path), "--device", "cuda", "--capability", "8.6"]) != 0  # the library is missing
    printed = capsys.readouterr().out
    assert "backbone: tensorrt (fp32, for tensorrt_rtx==1.7.1): " in printed
    assert "backbone: tensorrt (fp32, for 8.0+8.6): " in printed
    names = {file.stem for file in hybrid_rt.extract(path, tmp_path / "all")}
    assert names == {
        "backbone-tensorrt-fp32-tensorrt_rtx__1.7.1",
        "backbone-tensorrt-fp32-tensorrt_rtx__1.6.0",
        "backbone-tensorrt-fp32-8.0+8.6",
    }
    assert len(hybrid_rt.extract(path, tmp_path / "one", backend="tensorrt:fp32@8.0+8.6")) == 1
    report = hybrid_rt.remove_variant(path, "tensorrt:fp32@tensorrt_rtx==1.6.0")
    assert report.variants == {"backbone": ["tensorrt:fp32@8.9", "tensorrt:fp32@8.0+8.6"]}
    with pytest.raises(
        OptionError, match=r"expected unambiguous names.*got none: tensorrt:fp32@8.9, tensorrt:fp32@8.0"
    ):
        hybrid_rt.swap_backbone(path, small_detector().backbone, tmp_path / "y.pt")
    with pytest.raises(OptionError, match=r"expected one of tensorrt:fp32@8.9, tensorrt:fp32@8.0\+8.6, got '.*@7.5'"):
        hybrid_rt.remove_variant(path, "tensorrt:fp32@7.5")
    assert hybrid_rt.remove_variant(path, "tensorrt:fp32@8.9").variants == {"backbone": ["tensorrt:fp32"]}


def test_one_of_several_engines_of_one_name_is_loaded_by_what_it_requires(tmp_path: Path) -> None:
    path = save_with_backends(
        tmp_path / "x.pt",
        for_machines({"memory": "1"}, {"memory": "2"}, {"cpu": "nosuch,either"}, backend="torchscript"),
    )
    for name, chosen in (("torchscript:fp32@memory2", 1), ("torchscript@memory1", 0), ("torchscript:fp32", 0)):
        (engine,) = hybrid_rt.engines(hybrid_rt.load(path, backend=name))
        assert [variant["chosen"] for variant in engine["variants"]].index(True) == chosen
    for name in ("torchscript:fp32@cpunosuch+either", "torchscript:fp32@memory3", "openvino@memory1"):
        with pytest.raises(BackendError):
            hybrid_rt.load(path, backend=name)


def test_both_segments_of_a_fused_engine_get_the_variant(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Detector().requires_grad_(False).eval()
    path = tmp_path / "fused.pt"
    hybrid_rt.convert(
        detector, (small_image(),), path, segments=["backbone", "head"], engine="torchscript", measure=False
    )
    report = hybrid_rt.add_variant(path, "openvino", first=True, segment="head")
    assert report.variants == {"backbone+head": ["openvino:fp32", "torchscript:fp32"]}
    module = hybrid_rt.load(path, strict=True)
    found, expected = module(small_image()), detector(small_image())
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("engine", "options", "error", "text"),
    [
        ("openvino", {}, OptionError, "expected one that the file does not have yet (openvino:fp32, torchscript:fp32)"),
        ("nosuch", {}, OptionError, "got 'nosuch'"),
        ("openvino:int3", {}, OptionError, "precision for openvino: expected one of fp32, bf16, int8, got 'int3'"),
        ("openvino:bf16", {"segment": "neck"}, OptionError, "segment: expected one of backbone, got 'neck'"),
        ([], {}, OptionError, "engine: expected 'auto' or at least one backend"),
    ],
)
def test_impossible_variants_are_refused(
    bank: Path, tmp_path: Path, engine: str, options: dict[str, str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        hybrid_rt.add_variant(bank, engine, tmp_path / "x.pt", **options)
    assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_variant_with_other_results_is_not_added(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = small_detector()
    for parameter in other.parameters():
        parameter.mul_(1.5)
    program = capture_alone(other, "backbone", [(small_image(),)])
    wrong: Artifact = registry.backend("openvino").compile(program, "fp32")
    monkeypatch.setattr(store, "get_or_compile", lambda *_: (wrong, False))
    path = tmp_path / "x.pt"
    path.write_bytes(single.read_bytes())
    with pytest.raises(VerificationError, match="expected the outputs of the module"):
        hybrid_rt.add_variant(path, "openvino")
    assert path.read_bytes() == single.read_bytes()


def test_without_a_torchscript_variant_nothing_can_be_added(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone", fallback=False, measure=False)
    with pytest.raises(OptionError, match=r"expected a TorchScript variant in fp32 in the file.*fallback=True"):
        hybrid_rt.add_variant(path, "openvino:bf16")


def test_the_last_variant_stays(single: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"expected at least one other variant, got only torchscript:fp32"):
        hybrid_rt.remove_variant(single, "torchscript", tmp_path / "x.pt")
    with pytest.raises(OptionError, match=r"expected one of torchscript:fp32, got 'openvino'"):
        hybrid_rt.remove_variant(single, "openvino", tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pt"
    assert main(["add-variant", str(single), "--engine", "openvino:bf16", "--output", str(path)]) == 0
    assert "backbone: openvino:bf16, torchscript:fp32" in capsys.readouterr().out
    assert main(["inspect", str(path)]) == 0
    assert "MB added" in capsys.readouterr().out
    assert main(["remove-variant", str(path), "--engine", "openvino"]) == 0
    assert variants_of(path) == ["torchscript:fp32"]


def test_one_conversion_makes_a_bank_with_a_precision_per_engine(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    result = hybrid_rt.convert(
        small_detector(),
        (small_image(),),
        path,
        segments="backbone",
        engine=["openvino:bf16", "openvino", "torchscript"],
        measure=False,
    )
    assert variants_of(path) == ["openvino:bf16", "openvino:fp32", "torchscript:fp32"]
    assert [variant.precision for variant in result.report.engines[0].variants] == ["bf16", "fp32", "fp32"]
    found = hybrid_rt.engines(hybrid_rt.load(path, backend="openvino:fp32"))
    assert found[0]["precision"] == "fp32"


@pytest.mark.slow
def test_the_fastest_first_aot_inductor_among_them(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone", engine="fastest", measure=False)
    available = {info.name for info in hybrid_rt.backends() if info.available and "fp32" in info.precisions} - {"tvm"}
    assert {name.split(":")[0] for name in variants_of(path)} == available


def only(monkeypatch: pytest.MonkeyPatch, candidates: list[str], broken: list[str]) -> None:
    """Pretends that only these backends are installed, and that some of them fail to compile."""
    infos = [info for info in hybrid_rt.backends() if info.name in candidates]
    monkeypatch.setattr(registry, "backends", lambda: infos)
    compiled = store.get_or_compile

    def maybe(backend: Backend, program: Program, precision: str) -> tuple[Artifact, bool]:
        if backend.name in broken:
            raise BackendError.make(backend.name, "segment", expected="a segment", got="none", remedy="Try it.")
        return compiled(backend, program, precision)

    monkeypatch.setattr(store, "get_or_compile", maybe)


@pytest.mark.parametrize("broken", BOTH)
def test_the_fastest_is_taken_of_those_that_compile(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, BOTH, [broken])
    (left,) = set(BOTH) - {broken}
    options = {"engine": "fastest", "fallback": False}
    path = tmp_path / "x.pt"
    text = rf"hybrid_rt\[{broken}\]: segment: expected a segment, got none. Try it. The engine is skipped."
    with pytest.warns(RuntimeWarning, match=text):
        hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone", measure=False, **options)
    assert variants_of(path) == [f"{left}:fp32"]
    for strict in (False, True):
        with pytest.warns(RuntimeWarning, match=text):
            segment = hybrid_rt.compile_segment(small_detector().backbone, small_image(), strict=strict, **options)
        assert segment.running()["backend"] == left


def test_the_fastest_of_none_is_an_error_with_every_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, BOTH, BOTH)
    reasons = (
        r"segment '\w+': expected an engine that compiles it, got \n"
        r"  hybrid_rt\[openvino\]: .* Try it\.\n  hybrid_rt\[torchscript\]: .* Try it\.\n"
    )
    with pytest.raises(BackendError, match=rf"hybrid_rt\[convert\]: {reasons}"):
        hybrid_rt.convert(small_detector(), (small_image(),), tmp_path / "x.pt", segments="backbone", engine="fastest")
    with pytest.raises(BackendError, match=rf"hybrid_rt\[compile_segment\]: {reasons}"):
        hybrid_rt.compile_segment(small_detector().backbone, small_image(), engine="fastest")
    assert list(tmp_path.iterdir()) == []


# Shared weights


def test_weights_are_in_the_file_once(demo_bundle: Path) -> None:
    segment = hybrid_rt.inspect(demo_bundle)["engines"][0]
    first, second = (sum(blob["size"] for blob in variant["blobs"]) for variant in segment["variants"])
    stored = sum(entry["size"] for entry in segment["table"])
    assert stored < 1.1 * max(first, second) < first + second


@pytest.mark.slow
def test_bytes_that_do_not_run_are_not_kept(tmp_path: Path) -> None:
    """Compares, in a separate process, the memory after loading three variants and after loading only the used one."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(3, 64, 3), *(nn.Conv2d(64, 4096, 3), nn.Conv2d(4096, 64, 3)))

        def forward(self, images: Tensor) -> Tensor:
            return self.backbone(images).mean(dim=(2, 3))

    paths = [tmp_path / "one.pt", tmp_path / "three.pt"]
    engines = [["torchscript"], ["torchscript", "openvino", "openvino:bf16"]]
    for path, engine in zip(paths, engines, strict=True):
        hybrid_rt.convert(
            Wide().eval(),
            (torch.rand(1, 3, 16, 16),),
            path,
            segments="backbone",
            engine=engine,
            verify=False,
            measure=False,
            golden=False,
        )
    code = (
        "import sys, re, hybrid_rt; module = hybrid_rt.load(sys.argv[1], backend='torchscript'); "
        "print(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    one, three = (int(run_python(code, path).stdout) for path in paths)
    weights = paths[0].stat().st_size / 1024
    assert weights > 15_000
    assert three < one + 0.3 * weights


def test_a_loaded_module_switches_engines_and_can_be_saved(bank: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes(bank.read_bytes())
    module = hybrid_rt.load(copy, backend="torchscript")
    copy.unlink()  # the file stays open
    expected = module(small_image())
    hybrid_rt.bundle.archive.save(module, tmp_path / "saved.pt", hybrid_rt.bundle.archive.read_manifest(bank))
    again = hybrid_rt.load(tmp_path / "saved.pt", backend="openvino")
    assert_same(again(small_image()), expected)


# Loading


def test_a_preference_of_several_backends_is_an_order(bank: Path) -> None:
    for wanted, first in ((["torchscript", "openvino"], "torchscript"), ("openvino,torchscript", "openvino")):
        assert hybrid_rt.engines(hybrid_rt.load(bank, backend=wanted))[0]["backend"] == first


def test_strict_is_an_error_where_the_first_variant_cannot_run(tmp_path: Path) -> None:
    path = save_with_backends(tmp_path / "x.pt", ["nosuch", "torchscript"])
    assert hybrid_rt.engines(hybrid_rt.load(path))[0]["backend"] == "torchscript"
    with pytest.raises(BackendError, match=r"strict: expected its first variant, nosuch \(fp32\), to run"):
        hybrid_rt.load(path, strict=True)
    assert hybrid_rt.engines(hybrid_rt.load(path, backend="torchscript", strict=True))[0]["backend"] == "torchscript"


def test_sizes_are_warmed_up(bank: Path) -> None:
    module = hybrid_rt.load(bank, warm_up=[(32, 32)])
    assert_same(module(small_image()), small_detector()(small_image()))
    with pytest.raises(OptionError, match=r"warm_up at 5x7: expected the detector to run, got "):
        hybrid_rt.load(bank, warm_up=[(5, 7)])
    with pytest.raises(OptionError, match=r"expected \(height, width\) of at least 1, got \(0, 7\)"):
        hybrid_rt.load(bank, warm_up=[(0, 7)])


def test_trust_in_signatures_needs_a_key(bank: Path) -> None:
    with pytest.raises(OptionError, match="trusted_keys: expected at least one public key, got none"):
        hybrid_rt.load(bank, trust="signed")
    with pytest.raises(OptionError, match="trust: expected 'digests' or 'signed', got 'blindly'"):
        hybrid_rt.load(bank, trust="blindly")


# Requirements


def with_requirements(path: Path, **requirements: str) -> Path:
    from dataclasses import replace

    program = capture_alone(small_detector(), "backbone", [(small_image(),)])
    artifacts = []
    for name in BOTH:
        made = registry.backend(name).compile(program, "fp32")
        wanted = requirements if name == "openvino" else {}
        artifacts.append(replace(made, spec=replace(made.spec, requirements=wanted)))
    return save_with_backends(path, artifacts)


def refusal(path: Path, **options: object) -> str:
    (segment,) = hybrid_rt.check(path, **options)  # type: ignore[arg-type]
    first, second = segment.variants
    assert (first.chosen, second.chosen) == (not first.refusal, bool(first.refusal))
    return first.refusal


def test_a_cpu_without_the_instructions_runs_the_next_variant(tmp_path: Path) -> None:
    path = with_requirements(tmp_path / "x.pt", cpu="sse2,amx_of_next_year")
    assert "it was compiled for a CPU with amx_of_next_year, which this one lacks" in refusal(path)
    assert refusal(path, cpu=["sse2", "amx_of_next_year"]) == ""
    assert "a CPU with sse2, amx_of_next_year" in refusal(path, cpu=["neon"])
    assert hybrid_rt.engines(hybrid_rt.load(path))[0]["backend"] == "torchscript"


def test_a_newer_runtime_that_an_artifact_needs_is_named(tmp_path: Path) -> None:
    path = with_requirements(tmp_path / "x.pt", version=">=9999.1")
    assert "it needs openvino >=9999.1, but 20" in refusal(path)


def test_memory_that_is_not_free_refuses_a_variant(tmp_path: Path) -> None:
    path = with_requirements(tmp_path / "x.pt", memory=str(3 << 30))
    assert refusal(path, memory=4 << 30) == ""
    assert "it needs 3072 MiB of memory, 1024 are free" in refusal(path, memory=1 << 30)


def test_check_on_the_command_line_for_another_machine(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_requirements(tmp_path / "x.pt", cpu="avx512_bf16")
    assert main(["check", str(path), "--cpu", "avx2,fma"]) == 0
    assert "openvino (fp32): it was compiled for a CPU with avx512_bf16" in capsys.readouterr().out
    assert main(["check", str(path), "--cpu", "avx2,fma", "--strict", "--json"]) == 1
    assert [v["chosen"] for v in json.loads(capsys.readouterr().out)[0]["variants"]] == [False, False]
    assert main(["check", str(bank), "--memory", "0.001"]) == 0


# Without TorchScript


def test_a_segment_without_torchscript(bank: Path) -> None:
    segment = hybrid_rt.open_engine(bank, "backbone")
    assert "openvino" in segment.description
    assert [variant.chosen for variant in segment.variants] == [True, False]
    expected = small_detector().backbone(small_image())
    assert_same(tuple(segment(small_image())), tuple(expected.values()))
    with pytest.raises(InputError, match="engine 'backbone', input 'images': expected float32, got float64"):
        segment(small_image().double())
    with pytest.raises(OptionError, match="engine: expected one of backbone, got 'neck'"):
        hybrid_rt.open_engine(bank, "neck")


@pytest.mark.slow
def test_a_stored_graph_runs_operator_by_operator_with_free_sizes() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.SiLU())
            self.register_buffer("scale", torch.rand(1, 4, 1, 1))

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            fine = self.body(x)
            coarse = nn.functional.max_pool2d(fine, 2)
            up = nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
            joined = torch.cat([fine * self.scale, up + y], dim=1)
            return joined, joined.flatten(2).permute(0, 2, 1).reshape(x.shape[0], -1, 4), coarse.split(2, dim=1)[1]

    module = Pyramid().eval()
    example = (torch.rand(1, 3, 16, 24), torch.rand(1, 1, 8, 12))
    graph = ScriptGraph(hybrid_rt.torchscript.jit.trace(module, example, "pyramid"))
    other = (torch.rand(2, 3, 32, 20), torch.rand(2, 1, 16, 10))
    for x, y in (example, other):
        assert_same(graph(x=x, y=y), module(x, y))
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stored = graph

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return self.stored(x=x, y=y)

    exported = torch.export.export(Positional(), other, dynamic_shapes={"x": sizes, "y": sizes})
    assert_same(exported.module()(*example), module(*example))


def test_a_stored_graph_with_branches_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if bool(x.sum() > 0) else x - 1

    scripted = hybrid_rt.torchscript.jit.script(Branching().eval())
    with pytest.raises(hybrid_rt.CaptureError, match="expected a recorded graph, got one with prim::If"):
        ScriptGraph(scripted)
