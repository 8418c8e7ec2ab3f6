"""Tests of saving, inspecting and loading bundles."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.bundle_surgery import read_record, record_names, run_python, save_with_backends
from helpers.small_detectors import small_detector, small_image
from hybrid_rt import BundleError, _native
from hybrid_rt.bundle import archive as bundle
from hybrid_rt.torchscript import jit

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the small detector with two TorchScript variants. Do not modify it."""
    return save_with_backends(tmp_path_factory.mktemp("small") / "small.pt", ["torchscript", "torchscript"])


def save_again(path: Path, output: Path) -> None:
    bundle.save(hybrid_rt.load(path), output, bundle.read_manifest(path))


# Other devices


def test_moving_a_bundle_moves_the_constants_of_its_graph(demo_bundle: Path) -> None:
    """Module.to ignores constants made by freezing. "meta" stands for a GPU here, on which nothing runs."""
    module = hybrid_rt.load(demo_bundle)

    def devices() -> set[str]:
        constants = [node.output().toIValue() for node in jit.nodes_of(module.graph) if is_constant(node)]
        return {str(value.device) for value in constants if isinstance(value, Tensor)}

    assert devices() == {"cpu"}
    module.to("meta")
    assert devices() == {"cpu"}
    _native.move_to(module._c, torch.device("meta"))
    assert devices() == {"meta"}
    assert {segment["backend"] for segment in hybrid_rt.engines(module)} == {"openvino"}  # engines are unchanged


def is_constant(node: Any) -> bool:
    return bool(node.kind() == "prim::Constant")


class MakesItsOwn(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        """Creates tensors without reference to an input, some of them on a named device."""
        return [torch.zeros(x.size(0), device=torch.device("cpu")) + x, x.to(torch.device("cpu"))]


def test_moving_creates_new_tensors_on_the_device_and_keeps_other_devices_of_the_head() -> None:
    module = jit.freeze(jit.script(MakesItsOwn().eval()))
    _native.move_to(module._c, torch.device("meta"))
    made, kept = ([each.toIValue() for each in node.inputs() if is_constant(each.node())] for node in two_of(module))
    assert torch.device("meta") in made
    assert torch.device("cpu") in kept


class CombinesItsOwn(nn.Module):
    """Combines a plain tensor attribute with tensors that it creates on no named device, as torchvision's SSD does."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = [torch.rand(3, 2)]

    def forward(self, x: Tensor) -> Tensor:
        shifts = torch.arange(0, x.size(0)) + torch.tensor([0.5, float(x.size(0))])[0]
        return torch.cat([torch.stack([shifts, shifts], 1), self.pairs[0], torch.zeros(x.size(0), 2)]).to(x.device)


def test_moving_creates_tensors_of_no_named_device_where_the_constants_are() -> None:
    module = jit.freeze(jit.script(CombinesItsOwn().eval()))
    expected = module(torch.rand(4))
    _native.move_to(module._c, torch.device("meta"))
    found = module(torch.rand(4, device="meta"))
    assert (found.device.type, found.shape) == ("meta", expected.shape)
    kinds = ("aten::arange", "aten::tensor", "aten::zeros")
    named = [node for node in jit.nodes_of(module.graph) if node.kind() in kinds]
    assert len(named) == 3
    for node in named:
        assert torch.device("meta") in [each.toIValue() for each in node.inputs() if is_constant(each.node())]


class Describes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Calls an operator with more arguments than its schema names, one of them None."""
        if x.size(0) > 9:
            raise ValueError("{} rows, limit {}, by {}".format(x.size(0), 9, None))  # noqa: UP032
        return x


def test_moving_keeps_calls_with_any_number_of_arguments() -> None:
    module = jit.freeze(jit.script(Describes().eval()))
    assert "aten::format" in {node.kind() for node in jit.nodes_of(module.graph)}
    _native.move_to(module._c, torch.device("meta"))
    assert module(torch.rand(2, device="meta")).shape == (2,)


def two_of(module: torch.jit.ScriptModule) -> list[Any]:
    nodes = list(jit.nodes_of(module.graph))
    return [next(node for node in nodes if node.kind() == kind) for kind in ("aten::zeros", "aten::to")]


# Contents of the file


def test_the_manifest_says_what_the_file_is(demo_bundle: Path) -> None:
    manifest = hybrid_rt.inspect(demo_bundle)
    assert manifest["format_version"] == 2
    assert manifest["detector"] == {"class": "torchvision.models.detection.faster_rcnn.FasterRCNN"}
    assert manifest["versions"] == {"hybrid_rt": hybrid_rt.__version__, "torch": torch.__version__}
    assert manifest["head"]["operators"] == [
        "hybrid_rt::batched_nms",
        "hybrid_rt::box_detections",
        "hybrid_rt::box_levels",
        "hybrid_rt::class_probabilities",
        "hybrid_rt::multiscale_roi_align",
        "hybrid_rt::normalized_batch",
        "hybrid_rt::region_proposals",
        "hybrid_rt::run_engine",
    ]
    (engine,) = manifest["engines"]
    assert engine["members"] == [{"name": "backbone", "first": 0, "count": 5}]
    assert [variant["backend"] for variant in engine["variants"]] == ["openvino", "torchscript"]
    (tensor,) = engine["variants"][0]["inputs"]
    assert (tensor["name"], tensor["dtype"]) == ("x", "float32")
    assert (tensor["min"], tensor["max"]) == ([1, 3, 32, 32], [-1, 3, 416, 416])
    assert [output["name"] for output in engine["variants"][0]["outputs"]] == ["0", "1", "2", "3", "pool"]
    verification = manifest["verification"]
    assert verification["failures"] == []
    assert verification["pictures"][0]["expected"] == verification["pictures"][0]["matched"] >= 5


def test_the_manifest_can_be_read_without_us(demo_bundle: Path) -> None:
    text = read_record(demo_bundle, "extra/hybrid_rt/manifest.json")
    assert json.loads(text) == hybrid_rt.inspect(demo_bundle)
    assert read_record(demo_bundle, "extra/hybrid_rt/format_version") == b"2"
    assert read_record(demo_bundle, "extra/hybrid_rt/manifest.sha256").decode() == hashlib.sha256(text).hexdigest()


def test_the_manifest_lists_every_record_with_its_digest(demo_bundle: Path) -> None:
    records = hybrid_rt.inspect(demo_bundle)["records"]
    ours = {f"extra/hybrid_rt/{name}" for name in ("format_version", "manifest.json", "manifest.sha256")}
    assert set(records) == set(record_names(demo_bundle)) - ours
    for name, entry in records.items():
        data = read_record(demo_bundle, name)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["size"] == len(data)


def test_the_engines_bytes_are_in_the_file_once_and_uncompressed(demo_bundle: Path) -> None:
    manifest = hybrid_rt.inspect(demo_bundle)
    wanted = manifest["engines"][0]["table"]
    blobs = {name: entry for name, entry in manifest["records"].items() if entry.get("is_blob")}
    assert sorted(entry["sha256"] for entry in blobs.values()) == sorted(entry["sha256"] for entry in wanted)
    with zipfile.ZipFile(demo_bundle) as archive:
        root = archive.namelist()[0].split("/", 1)[0]
        assert {archive.getinfo(f"{root}/{name}").compress_type for name in blobs} == {zipfile.ZIP_STORED}
    rest = sum(entry["size"] for name, entry in manifest["records"].items() if name not in blobs)
    assert demo_bundle.stat().st_size < sum(entry["size"] for entry in wanted) + rest + 100_000


def test_equal_bytes_of_two_variants_are_stored_once(small_bundle: Path) -> None:
    manifest = hybrid_rt.inspect(small_bundle)
    first, second = (variant["blobs"] for variant in manifest["engines"][0]["variants"])
    assert first == second
    assert sum(entry.get("is_blob", False) for entry in manifest["records"].values()) == 1


# Loading


@pytest.mark.parametrize("backend", ["openvino", "torchscript"])
def test_a_bundle_behaves_like_the_detector(
    demo_detector: nn.Module, demo_bundle: Path, demo_image: Tensor, backend: str
) -> None:
    module = hybrid_rt.load(demo_bundle, backend=backend)
    (engine,) = hybrid_rt.engines(module)
    assert (engine["engine"], engine["backend"], engine["precision"]) == ("backbone", backend, "fp32")
    assert backend in engine["description"]
    expected, found = demo_detector([demo_image])[0], module([demo_image])[0]
    assert set(found) == set(expected)
    assert torch.equal(found["labels"], expected["labels"])
    assert torch.allclose(found["boxes"], expected["boxes"], atol=0.01)
    assert torch.allclose(found["scores"], expected["scores"], atol=1e-4)


def test_plain_torch_load_runs_it_too(small_bundle: Path) -> None:
    image = small_image()
    found = torch.jit.load(str(small_bundle))(image)
    assert all(map(torch.allclose, found, small_detector()(image)))


def test_threads_are_taken_from_the_option_or_from_torch(demo_bundle: Path) -> None:
    (engine,) = hybrid_rt.engines(hybrid_rt.load(demo_bundle, threads=1))
    assert engine["description"].endswith(", 1 threads")
    (engine,) = hybrid_rt.engines(hybrid_rt.load(demo_bundle))
    assert engine["description"].endswith(f", {torch.get_num_threads()} threads")


def test_paths_may_be_text_or_path_and_relative(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_bundle.parent)
    for path in (small_bundle, str(small_bundle), "small.pt", Path("small.pt")):
        assert hybrid_rt.engines(hybrid_rt.load(path))[0]["backend"] == "torchscript"
        assert hybrid_rt.check(path)[0].chosen is not None
        assert hybrid_rt.inspect(path)["format_version"] == 2


def test_the_file_may_go_once_it_is_loaded(small_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "gone.pt"
    path.write_bytes(small_bundle.read_bytes())
    module = hybrid_rt.load(path)
    path.unlink()
    assert len(module(small_image())) == 3


def test_check_says_which_variant_would_run(demo_bundle: Path) -> None:
    (engine,) = hybrid_rt.check(demo_bundle)
    assert (engine.engine, engine.segments) == ("backbone", ("backbone",))
    assert [(variant.backend, variant.chosen, variant.refusal) for variant in engine.variants] == [
        ("openvino", True, ""),
        ("torchscript", False, ""),
    ]
    assert engine.chosen == engine.variants[0]
    (engine,) = hybrid_rt.check(demo_bundle, backend="torchscript")
    assert engine.chosen == engine.variants[1]
    assert engine.variants[0].refusal == "only 'torchscript' was requested"
    (engine,) = hybrid_rt.check(demo_bundle, "cuda")
    assert engine.variants[0].refusal == "runs on cpu, not on cuda"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("BankReport", "VariantChangeReport"),
        ("GoldenCheck", "GoldenVerification"),
        ("Row", "BundleBenchmark"),
        ("Segment", "OpenedEngine"),
        ("SegmentCheck", "EngineCheck"),
        ("open_segment", "open_engine"),
    ],
)
def test_names_of_version_0_1_0_warn(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"hybrid_rt.{old} is deprecated, use hybrid_rt.{new}"):
        assert getattr(hybrid_rt, old) is getattr(hybrid_rt, new)


def test_the_manifests_old_name_of_its_engines_warns(demo_bundle: Path) -> None:
    manifest = hybrid_rt.inspect(demo_bundle)
    with pytest.warns(DeprecationWarning, match="The key 'segments' is deprecated, use 'engines'"):
        (segment,) = manifest["segments"]
    assert segment == manifest["engines"][0]
    with pytest.warns(DeprecationWarning, match="The key 'name' is deprecated, use the names of its 'members'"):
        assert segment["name"] == "backbone"
    (choice,) = hybrid_rt.engines(hybrid_rt.load(demo_bundle))
    with pytest.warns(DeprecationWarning, match="The key 'segment' is deprecated, use 'engine'"):
        assert choice["segment"] == "backbone"
    with pytest.raises(KeyError, match="nothing"):
        manifest["nothing"]


def test_a_name_that_the_package_never_had() -> None:
    with pytest.raises(AttributeError, match="module 'hybrid_rt' has no attribute 'nosuch'"):
        _ = hybrid_rt.nosuch


def test_engines_of_a_module_without_any() -> None:
    assert hybrid_rt.engines(torch.jit.script(nn.ReLU())) == []


# Saving


@pytest.mark.parametrize("name", ["a b.pt", "détecteur.pt", "v1.2.3.pt", "no_suffix", ".hidden.pt", "ä'\"$.pt"])
def test_any_file_name_will_do(small_bundle: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_again(small_bundle, path)
    assert hybrid_rt.check(path)[0].chosen is not None
    assert len(hybrid_rt.load(path)(small_image())) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_saving_over_an_old_file_replaces_all_of_it(small_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "detector.pt"
    path.write_bytes(b"old" * 1_000_000)
    save_again(small_bundle, path)
    assert hybrid_rt.check(path)[0].chosen is not None
    assert list(tmp_path.iterdir()) == [path]


def test_a_loaded_bundle_can_be_overwritten(small_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "detector.pt"
    save_again(small_bundle, path)
    module = hybrid_rt.load(path)
    before = module(small_image())
    bundle.save(module, path, bundle.read_manifest(path))
    assert all(map(torch.equal, before, module(small_image())))
    assert all(map(torch.equal, before, hybrid_rt.load(path)(small_image())))


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("directory", "got a directory of that name."),
        ("missing/x.pt", "got No such file or directory."),
        ("file/x.pt", "got Not a directory."),
        ("/proc/x.pt", "got No such file or directory."),
    ],
)
def test_a_place_that_cannot_be_written(small_bundle: Path, tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError) as caught:
        save_again(small_bundle, tmp_path / place)
    assert f"hybrid_rt[bundle]: {tmp_path / place}: expected to write the file, " in str(caught.value)
    assert reason in str(caught.value)
    assert str(caught.value).endswith(
        (
            "Check the free space and the permissions.",
            "Pass the path of a regular file.",
        )
    )
    assert sorted(tmp_path.rglob("*")) == before


PREPARE = """
import os, random, resource, signal, sys, time
from pathlib import Path
import hybrid_rt
from hybrid_rt.bundle import archive as bundle
source, target = map(Path, sys.argv[1:])
module, manifest = hybrid_rt.load(source, backend="torchscript"), bundle.read_manifest(source)

def in_a_child(work):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            sys.stdout.flush()
            os._exit(1)
    return child
"""

FULL_DISK = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
bundle.save(module, target, manifest)
old = target.read_bytes()
size = len(old)

def save_with(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        bundle.save(module, target, manifest)
        print("saved")
    except hybrid_rt.BundleError as error:
        print(error)
    sys.stdout.flush()
    os._exit(0)

for limit in (0, 1000, size // 2, size - 5000, size - 1):
    assert os.waitpid(in_a_child(lambda: save_with(limit)), 0)[1] == 0
    assert target.read_bytes() == old
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(demo_bundle: Path, tmp_path: Path) -> None:
    """The writer of torch would terminate the process."""
    target = tmp_path / "detector.pt"
    done = run_python(PREPARE + FULL_DISK, demo_bundle, target)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert line == (
            f"hybrid_rt[bundle]: {target}: expected to write the file, got File too large. "
            "Check the free space and the permissions."
        )
    assert list(tmp_path.iterdir()) == [target]


KILLED_BEFORE_THE_RENAME = """
def die(_):
    os.kill(os.getpid(), signal.SIGKILL)

def save_and_die():
    os.fsync = die
    bundle.save(module, target, manifest)

print(os.waitpid(in_a_child(save_and_die), 0)[1])
target = target.with_name("new.pt")
print(os.waitpid(in_a_child(save_and_die), 0)[1])
"""


@pytest.mark.slow
def test_a_process_killed_before_the_rename_leaves_the_old_file_or_none(demo_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "detector.pt"
    target.write_bytes(b"an old file")
    done = run_python(PREPARE + KILLED_BEFORE_THE_RENAME, demo_bundle, target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["9", "9"]  # they were killed by the signal
    assert target.read_bytes() == b"an old file"
    # Leftover files have hidden names, as bundle.save documents.
    left = [path.name for path in tmp_path.iterdir() if path != target]
    assert len(left) == 2
    assert all(name.startswith(".hybrid_rt-") for name in left)
    save_again(demo_bundle, target)
    assert hybrid_rt.check(target)[0].chosen is not None


KILLED_ANYWHERE = """
def save_for_ever():
    while True:
        bundle.save(module, target, manifest)

bundle.save(module, target, manifest)
random.seed(0)
for _ in range(20):
    child = in_a_child(save_for_ever)
    time.sleep(random.uniform(0.0, 0.3))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == 9
    hybrid_rt.check(target)
    print([entry for entry in os.listdir(target.parent) if not entry.startswith(".hybrid_rt-")])
"""


@pytest.mark.slow
def test_a_process_killed_at_any_time_leaves_a_whole_file(demo_bundle: Path, tmp_path: Path) -> None:
    done = run_python(PREPARE + KILLED_ANYWHERE, demo_bundle, tmp_path / "detector.pt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['detector.pt']"] * 20
