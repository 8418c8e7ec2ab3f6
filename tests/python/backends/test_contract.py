"""The contract of every backend, including an out-of-tree one."""

from __future__ import annotations

import copy
import functools
import gc
import io
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import Alone
from hybrid_rt.backends import CompileContext, registry
from hybrid_rt.backends.cache import store
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.common.specs import UNBOUNDED
from hybrid_rt.conversion.assemble.engine_module import EngineModule, engine_module
from hybrid_rt.torchscript import jit

BACKENDS = [
    pytest.param(info.name, marks=() if info.available else pytest.mark.skip(reason=info.reason))
    for info in hybrid_rt.backends()
]
RELATIVE_TOLERANCE = 1e-4


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def test_configuring_a_compiler_makes_another_one(backend: str) -> None:
    compiler = registry.backend(backend)
    told: list[float] = []
    configured = compiler.configured(compiler.devices[-1], progress=lambda share, what: told.append(share))
    assert configured is not compiler
    assert configured.target == compiler.devices[-1]
    assert compiler.context == CompileContext()
    with pytest.raises(AttributeError):
        configured.progress = None


def convolution(inputs: int = 3, outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class OneTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = convolution()

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


class ListOfLevels(OneTensor):
    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.body(images)
        return [features, nn.functional.max_pool2d(features, 2), features.mean((2, 3))]


class TupleOfDtypes(OneTensor):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.body(images)
        return features, features.argmax(1), features > 0.5


class Scalar(OneTensor):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images)
        return features, features.mean()


class DictOfLevels(OneTensor):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        return {"0": features, "pool": nn.functional.max_pool2d(features, 2)}


class NestedDict(OneTensor):
    def forward(self, images: Tensor) -> dict[str, dict[str, list[Tensor]]]:
        features = self.body(images)
        return {
            "boxes": {"deltas": [features.sin()], "anchors": [features.cos(), features * 2]},
            "classes": {"logits": [features - 1]},
        }


class TwoInputs(OneTensor):
    def forward(self, images: Tensor, bias: Tensor) -> Tensor:
        return self.body(images) + bias


class ListInput(OneTensor):
    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [self.body(level) for level in levels]


class NestedInput(OneTensor):
    def forward(self, levels: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        return self.body(levels["fine"][0]) + self.body(levels["coarse"][1]).mean()


class ItsInputAndItsWeight(OneTensor):
    """Returns tensors that it does not own: an input and a view of it, a weight, and one result twice and as a view."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0).reshape(2, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        features = self.body(images)
        return images, images.flatten(1), self.table, features, features, features.flatten(1)


def images(batch: int = 1, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(batch * height * width))


def program_of(segment: nn.Module, *calls: tuple[Any, ...], ranges: Any = None) -> Program:
    """Captures the segment in a detector that is called with each of ``calls``."""
    detector = Alone(segment).eval()
    return capture_alone(detector, "backbone", calls, ranges)


RANGES = [(1, 4), (3, 3), (8, 64), (8, UNBOUNDED)]


@functools.cache
def dynamic_program() -> Program:
    torch.manual_seed(0)
    return program_of(OneTensor(), (images(),), ranges=RANGES)


# Backends that take seconds for each program. Containers are taken apart before a backend sees them, so these compile
# the structures whose tensors differ in dtype, rank or number, and one of fixed sizes.
SLOW_COMPILERS = {"aot_inductor", "tvm"}
COMPILED_BY_SLOW_ONES = {(OneTensor, False), (TupleOfDtypes, True), (Scalar, True), (NestedInput, True)}


def compiled(program: Program, backend: str) -> EngineModule:
    """Compiles a program. Those with equal graphs and weights are compiled once per run, see the cache in conftest."""
    artifact, _ = store.get_or_compile(registry.backend(backend), program, "fp32")
    return engine_module(program, [artifact])


@functools.cache
def dynamic_engine(backend: str) -> EngineModule:
    """Returns an engine from images of RANGES to features, shared by the tests that do not change it."""
    return compiled(dynamic_program(), backend)


def eager(x: Tensor) -> Tensor:
    return dynamic_program().members[0].module(x)


def assert_equal_structure(got: Any, expected: Any) -> None:
    """Checks for equal containers, keys, dtypes and shapes, and values within the relative tolerance."""
    if isinstance(expected, Tensor):
        assert isinstance(got, Tensor)
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert got.is_contiguous()
        if not expected.numel():
            return
        limit = RELATIVE_TOLERANCE * expected.double().abs().max().item() if expected.is_floating_point() else 0
        assert (got.double() - expected.double()).abs().max().item() <= limit
        return
    assert type(got) is type(expected)
    assert len(got) == len(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected)
    for key in expected if isinstance(expected, dict) else range(len(expected)):
        assert_equal_structure(got[key], expected[key])


STRUCTURES: list[tuple[type[nn.Module], Callable[[int, int, int], tuple[Any, ...]]]] = [
    (OneTensor, lambda n, h, w: (images(n, h, w),)),
    (ListOfLevels, lambda n, h, w: (images(n, h, w),)),
    (TupleOfDtypes, lambda n, h, w: (images(n, h, w),)),
    (DictOfLevels, lambda n, h, w: (images(n, h, w),)),
    (Scalar, lambda n, h, w: (images(n, h, w),)),
    (NestedDict, lambda n, h, w: (images(n, h, w),)),
    (TwoInputs, lambda n, h, w: (images(n, h, w), torch.ones(n, 1, h, w))),
    (ListInput, lambda n, h, w: ([images(n, h, w), images(n, h // 2, w // 2)],)),
    (NestedInput, lambda n, h, w: ({"fine": (images(n, h, w),) * 2, "coarse": (images(n, h // 2, w // 2),) * 2},)),
]


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(("segment", "arguments"), STRUCTURES, ids=lambda value: getattr(value, "__name__", None))
def test_results_equal_eager_in_value_and_structure(
    backend: str, segment: type[nn.Module], arguments: Callable[[int, int, int], tuple[Any, ...]], is_dynamic: bool
) -> None:
    if backend in SLOW_COMPILERS and (segment, is_dynamic) not in COMPILED_BY_SLOW_ONES:
        pytest.skip("its tensors are those of another structure")
    torch.manual_seed(0)
    module = segment().eval()
    seen = [arguments(1, 16, 24), *([arguments(2, 24, 32)] if is_dynamic else [])]
    never_seen = [arguments(3, 40, 8)] if is_dynamic else []
    program = program_of(module, *seen)
    assert any(not spec.is_static for spec in program.inputs) == is_dynamic
    engine = compiled(program, backend)
    scripted = jit.script(engine)
    for call in [*seen, *never_seen, *seen]:
        assert_equal_structure(engine(*call), module(*call))
        assert_equal_structure(scripted(*call), module(*call))


def test_an_empty_count_gives_an_empty_result(backend: str) -> None:
    """This is what a mask head gets for an image without objects."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2)).eval()
    program = program_of(head, (images(3),), (images(2),), (images(0),))
    engine = compiled(program, backend)
    for _ in range(2):
        for count in (0, 3, 0, 1):
            assert_equal_structure(engine(images(count)), head(images(count)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 64, 8), (2, 17, 31), (1, 64, 200)], ids=str)
def test_sizes_never_seen_are_right_up_to_the_bounds(backend: str, shape: tuple[int, int, int]) -> None:
    x = images(*shape)
    assert_equal_structure(dynamic_engine(backend)(x), eager(x))


REFUSED: dict[str, tuple[list[Tensor], str]] = {
    "no input": (
        [],
        "inputs: expected 1 tensors, got 0. Call it as the detector's own head does.",
    ),
    "an input too many": (
        [images(), images()],
        "inputs: expected 1 tensors, got 2. Call it as the detector's own head does.",
    ),
    "another dtype": (
        [images().double()],
        "input 'images': expected float32, got float64. Convert the input before the call.",
    ),
    "another device": (
        [images().to("meta")],
        "input 'images': expected a tensor on cpu, got one on meta. "
        "Move the input, or load the bundle with that device.",
    ),
    "no batch dimension": (
        [images()[0]],
        "input 'images': expected 4 dimensions (1..4x3x8..64x8.. float32), got 3 (3x16x24). "
        "Add or remove the batch dimension.",
    ),
    "too many images": (
        [images(5)],
        "input 'images', dimension 0: expected 1..4x3x8..64x8.. float32, got 5x3x16x24. "
        "Resize the images, or convert again with shapes= that cover this size.",
    ),
    "other channels": (
        [images()[:, :2]],
        "input 'images', dimension 1: expected 1..4x3x8..64x8.. float32, got 1x2x16x24. "
        "Resize the images, or convert again with shapes= that cover this size.",
    ),
    "too high": (
        [images(height=65)],
        "input 'images', dimension 2: expected 1..4x3x8..64x8.. float32, got 1x3x65x24. "
        "Resize the images, or convert again with shapes= that cover this size.",
    ),
    "too narrow": (
        [images(width=7)],
        "input 'images', dimension 3: expected 1..4x3x8..64x8.. float32, got 1x3x16x7. "
        "Resize the images, or convert again with shapes= that cover this size.",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_inputs_that_break_the_contract_are_refused(backend: str, what: str) -> None:
    inputs, text = REFUSED[what]
    with pytest.raises(RuntimeError, match=re.escape(f"hybrid_rt[{backend}]: engine 'backbone', {text}")):
        dynamic_engine(backend).engine.run(inputs)
    x = images()
    assert_equal_structure(dynamic_engine(backend)(x), eager(x))


def test_a_refusal_keeps_its_text_through_torchscript(backend: str) -> None:
    scripted = jit.script(dynamic_engine(backend))
    with pytest.raises(
        RuntimeError, match=re.escape(f"hybrid_rt[{backend}]: engine 'backbone', input 'images': expected float32")
    ):
        scripted(images().double())


def test_a_list_of_another_length_is_refused(backend: str) -> None:
    torch.manual_seed(0)
    engine = compiled(program_of(ListInput(), ([images(), images(1, 8, 12)],)), backend)
    text = re.escape("hybrid_rt[engine]: segment 'backbone', levels: expected 2 entries, got 1.")
    with pytest.raises(AssertionError, match=text):
        engine([images()])
    with pytest.raises(torch.jit.Error, match=text):
        jit.script(engine)([images()])


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_many_threads_at_once_get_their_own_results(backend: str, is_dynamic: bool) -> None:
    torch.manual_seed(0)
    module = OneTensor().eval()
    engine = compiled(program_of(module, (images(),), ranges=RANGES if is_dynamic else None), backend)
    sizes = [(1 + i % 4, 8 + 3 * i, 16 + 5 * i) if is_dynamic else (1, 16, 24) for i in range(8)]
    inputs = [images(*size) + i for i, size in enumerate(sizes)]
    expected = [module(x) for x in inputs]
    together = threading.Barrier(len(inputs), timeout=60)

    def call(i: int) -> list[Tensor]:
        together.wait()  # the first calls, which prepare the engine, run concurrently too
        return [engine(inputs[i]) for _ in range(20)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        for results, right in zip(pool.map(call, range(len(inputs))), expected, strict=True):
            for result in results:
                assert_equal_structure(result, right)


@pytest.mark.slow
def test_other_threads_go_on_while_an_engine_runs(backend: str) -> None:
    segment = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(8)))
    x = torch.rand(1, 64, 256, 256)  # 39 GFLOP
    engine = compiled(program_of(segment, (x,)), backend)
    engine.engine.prepare("", torch.device("cpu"), 1, False)
    engine(x)
    about_to_run, done = threading.Event(), threading.Event()

    def run() -> None:
        about_to_run.set()
        engine(x)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    about_to_run.wait()
    turns = 0
    while not done.wait(0.001):
        turns += 1
    thread.join()
    assert turns >= 5  # if the run held the interpreter's lock, there would be at most 2, one before and one after it


def test_outputs_outlive_the_engine_and_the_inputs(backend: str) -> None:
    torch.manual_seed(0)
    module = NestedDict().eval()
    engine = compiled(program_of(module, (images(),)), backend)
    x = images()
    expected = module(x)
    results = [engine(x) for _ in range(3)]
    del engine, x
    gc.collect()
    _overwritten = [torch.full((1, 4, 16, 24), -1.0) for _ in range(200)]
    for result in results:
        assert_equal_structure(result, expected)


def test_earlier_outputs_survive_a_later_run(backend: str) -> None:
    engine = dynamic_engine(backend)
    x, y = images(), images() + 1
    first = engine(x)
    engine(y)
    assert_equal_structure(first, eager(x))


def test_outputs_are_the_callers_own(backend: str) -> None:
    torch.manual_seed(0)
    module = ItsInputAndItsWeight().eval()
    engine = compiled(program_of(module, (images(),)), backend)
    for i in range(4):
        x = images() + i
        outputs = engine(x)
        assert torch.equal(x, images() + i)
        for k, expected in enumerate(module(images() + i)):
            assert_equal_structure(outputs[k], expected)
            outputs[k].fill_(-7)  # must affect neither the later outputs nor the next run
        assert torch.equal(x, images() + i)


@pytest.mark.parametrize(
    "strided",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, ::2, 1:-1],
        lambda x: x[:1, :, :1].expand(3, -1, 16, -1),
        lambda x: x.flip(3)[..., 3:],
    ],
    ids=["channels_last", "transposed", "sliced", "expanded", "flipped"],
)
def test_inputs_of_any_strides_are_read_right(backend: str, strided: Callable[[Tensor], Tensor]) -> None:
    x = strided(images(2))
    assert not x.is_contiguous() or x.storage_offset()
    assert_equal_structure(dynamic_engine(backend)(x), eager(x))


def test_inputs_are_not_modified(backend: str) -> None:
    x = images(2)
    for given in (x, x.to(memory_format=torch.channels_last)):
        before = given.clone()
        dynamic_engine(backend)(given)
        assert torch.equal(given, before)
        assert given.stride() == before.stride()


def test_gradients_are_not_lost_silently(backend: str) -> None:
    with torch.enable_grad():
        output = dynamic_engine(backend)(images().requires_grad_())
        with pytest.warns(UserWarning, match="hybrid_rt::run_engine: an autograd kernel was not registered"):
            output.sum().backward()


def test_runs_in_inference_mode(backend: str) -> None:
    with torch.inference_mode():
        x = images()
        assert_equal_structure(dynamic_engine(backend)(x), eager(x))


class WritesInPlace(Alone):
    """Writes into the segment's input before it runs, and into its output afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        features = self.backbone(x)
        x.zero_()
        return features.mul_(2)


def test_in_place_writes_of_the_detector_are_not_attributed_to_the_segment(backend: str) -> None:
    torch.manual_seed(0)
    detector = WritesInPlace(OneTensor()).eval()
    program = capture_alone(detector, "backbone", [(images(),)])
    expected = detector.backbone(images() + 1)
    assert torch.equal(program.examples[0], images() + 1)
    assert torch.equal(program.calls[0].outputs[0], expected)
    assert_equal_structure(compiled(program, backend)(*program.examples), expected)


def test_it_says_what_runs(backend: str) -> None:
    engine = dynamic_engine(backend)
    engine(images())
    choice = engine.engine.choice()
    assert f'"backend":"{backend}"' in choice
    assert '"engine":"backbone"' in choice
    assert '"description":""' not in choice


def reloaded(module: nn.Module) -> nn.Module:
    return torch.jit.load(io.BytesIO(jit.to_bytes(jit.script(module))))


def reloaded_frozen(module: nn.Module) -> nn.Module:
    return torch.jit.load(io.BytesIO(jit.to_bytes(jit.freeze(jit.script(module)))))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("copied", [copy.deepcopy, reloaded, reloaded_frozen], ids=lambda value: value.__name__)
def test_the_state_survives(backend: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    module = NestedDict().eval()
    original = compiled(program_of(module, (images(),)), backend)
    again = copied(original)
    del original
    gc.collect()
    assert_equal_structure(again(images()), module(images()))


def test_a_state_of_another_version_is_refused(backend: str) -> None:
    engine = compiled(dynamic_program(), backend).engine
    (version, fields, blobs), qualified_name = engine.__getstate__()
    assert version == 2
    for other, remedy in (
        (3, "Upgrade hybrid_rt: the file was made by a newer version"),
        (0, "Convert the detector again: the file is too old"),
    ):
        with pytest.raises(
            RuntimeError, match=rf"hybrid_rt\[engine\]: state version: expected 1 or 2, got {other}. .*{remedy}"
        ):
            torch.ScriptObject.__new__(torch.ScriptObject).__setstate__(((other, fields, blobs), qualified_name))


def test_a_state_of_altered_bytes_is_refused(backend: str) -> None:
    engine = compiled(dynamic_program(), backend).engine
    fields, blobs = engine.fields(), engine.blobs()
    altered = [blob.clone() for blob in blobs]
    altered[0][len(altered[0]) // 2] ^= 1
    damaged = torch.classes.hybrid_rt.Engine(fields, altered)
    with pytest.raises(RuntimeError, match=rf"hybrid_rt\[{backend}\]: engine 'backbone', blob .* expected the SHA-256"):
        damaged.run([images()])
    with pytest.raises(RuntimeError, match=r"blobs, entry 0: expected \d+ bytes, got \d+"):
        torch.classes.hybrid_rt.Engine(fields, [blob[1:].clone() for blob in blobs])
