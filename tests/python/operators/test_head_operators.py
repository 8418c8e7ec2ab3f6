import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision  # noqa: F401  (registers the reference)
from torch import Tensor

import hybrid_rt  # registers the operators

NAN, INF = float("nan"), float("inf")
SPECIAL_VALUES = torch.tensor([NAN, INF, -INF, 1e30, -1e30, 3e38, 0.0])
FLOATS = [torch.float32, torch.float64]
ROI_ALIGN_DTYPES = [*FLOATS, torch.float16]
BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 11.0, 11.0], [20.0, 20.0, 30.0, 30.0]])
SCORES = torch.tensor([1.0, 3.0, 2.0])
FEATURES = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).sin().reshape(2, 3, 8, 8)
ROIS = torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0], [1.0, 0.0, 0.5, 7.0, 6.5]])


LIBRARIES = Path(hybrid_rt._native.__file__).parent / "lib"
CUDA_LIBRARY = LIBRARIES / "hybrid_rt_cuda_operators.so"
ONLY_CUDA = pytest.mark.parametrize("device", ["cuda"], indirect=True)

device_of_operators = "cpu"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Returns the device of the operators; inputs are created and results compared on the CPU."""
    global device_of_operators
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    device_of_operators = request.param
    yield request.param
    device_of_operators = "cpu"


def on_device(tensor: Tensor) -> Tensor:
    """Copies a tensor to the device, including the memory between its elements, so that its strides are kept."""
    if device_of_operators == "cpu":
        return tensor
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    memory = tensor.as_strided((elements,), (1,), 0).to(device_of_operators)
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def from_device(result: Tensor) -> Tensor:
    assert result.device.type == device_of_operators
    return result.cpu()


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return from_device(torch.ops.hybrid_rt.nms(on_device(dets), on_device(scores), iou_threshold))


def torchvision_nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.ops.torchvision.nms(dets, scores, iou_threshold)


def roi_align(input, rois, spatial_scale=1.0, size=(2, 2), sampling_ratio=2, aligned=False) -> Tensor:
    arguments = (spatial_scale, *size, sampling_ratio, aligned)
    return from_device(torch.ops.hybrid_rt.roi_align(on_device(input), on_device(rois), *arguments))


def torchvision_roi_align(input, rois, spatial_scale=1.0, size=(2, 2), sampling_ratio=2, aligned=False) -> Tensor:
    return torch.ops.torchvision.roi_align(input, rois, spatial_scale, *size, sampling_ratio, aligned)


def assert_same_nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    kept = nms(dets, scores, iou_threshold)
    expected = torchvision_nms(dets, scores, iou_threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == expected.tolist()
    return kept


def assert_same_roi_align(*args, **kwargs) -> Tensor:
    pooled = roi_align(*args, **kwargs)
    expected = torchvision_roi_align(*args, **kwargs)
    assert pooled.dtype == expected.dtype
    assert pooled.shape == expected.shape
    assert pooled.stride() == expected.stride()
    assert torch.equal(pooled, expected), f"off by up to {(pooled - expected).abs().max()}"
    return pooled


def make_boxes(count: int, generator: torch.Generator, spread=100.0, size=40.0, dtype=torch.float32) -> Tensor:
    corners = torch.rand(count, 2, generator=generator, dtype=dtype) * spread
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator, dtype=dtype) * size], 1)


def put_special_values(tensor: Tensor, share: float, generator: torch.Generator) -> None:
    where = torch.rand(tensor.shape, generator=generator) < share
    which = torch.randint(0, len(SPECIAL_VALUES), (int(where.sum()),), generator=generator)
    tensor[where] = SPECIAL_VALUES.to(tensor.dtype)[which]


def refuses(text: str):
    return pytest.raises(RuntimeError, match=re.escape(text))


def schema_arguments(operator) -> list[tuple[str, str]]:
    return [(a.name, str(a.type).replace("SymInt", "int")) for a in operator.default._schema.arguments]


@pytest.mark.parametrize("name", ["nms", "roi_align"])
def test_schema_is_torchvisions_with_plain_ints(name):
    ours, theirs = getattr(torch.ops.hybrid_rt, name), getattr(torch.ops.torchvision, name)
    assert schema_arguments(ours) == schema_arguments(theirs)
    assert "SymInt" not in str(ours.default._schema)


# nms


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", range(60))
def test_nms_random_boxes(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    boxes = make_boxes(int(torch.randint(1, 300, (1,), generator=generator)), generator, dtype=dtype)
    scores = torch.rand(len(boxes), generator=generator, dtype=dtype)
    if seed % 3 == 0:  # overlaps exactly at the threshold
        boxes = (boxes / 10).round() * 10
    for threshold in (0.0, 0.3, 1 / 3, 0.5, 0.7, 1.0):
        kept = assert_same_nms(boxes, scores, threshold)
        assert 0 < len(kept) <= len(boxes)


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("count", [5, 16, 17, 64, 65, 1000])
def test_nms_equal_scores_keep_the_order_of_the_boxes(count, levels):
    generator = torch.Generator().manual_seed(count)
    boxes = make_boxes(count, generator, spread=300.0)
    scores = torch.randint(0, levels, (count,), generator=generator).float()
    assert_same_nms(boxes, scores, 0.5)
    assert nms(boxes, scores, 2.0).tolist() == scores.sort(stable=True, descending=True).indices.tolist()


@pytest.mark.parametrize("seed", range(40))
def test_nms_special_values(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = make_boxes(150, generator, dtype=FLOATS[seed % 2])
    scores = torch.rand(150, generator=generator, dtype=boxes.dtype)
    put_special_values(boxes, 0.1, generator)
    put_special_values(scores, 0.2, generator)
    for threshold in (-0.1, 0.0, 0.5):
        assert_same_nms(boxes, scores, threshold)


def test_nms_nan_is_the_best_score():
    assert nms(BOXES, torch.tensor([1.0, NAN, INF]), 0.5).tolist() == [1, 2]
    assert nms(BOXES, torch.tensor([NAN, INF, -INF]), 0.5).tolist() == [0, 2]
    assert nms(BOXES, torch.tensor([INF, -NAN, 1.0]), 0.5).tolist() == [1, 2]


def test_nms_zeros_of_both_signs_are_equal_scores():
    assert nms(BOXES, torch.tensor([-0.0, 0.0, -0.0]), 2.0).tolist() == [0, 1, 2]
    assert nms(BOXES, torch.tensor([0.0, -0.0, -1e-45]), 2.0).tolist() == [0, 1, 2]
    assert nms(BOXES, torch.tensor([-2.0, -1.0, -INF]), 2.0).tolist() == [1, 0, 2]


@pytest.mark.parametrize("threshold", [-INF, -1e300, -1.0, -1e-9, 0.0, 1.0, 1.5, 1e300, INF, NAN])
def test_nms_odd_thresholds(threshold):
    boxes = make_boxes(70, torch.Generator().manual_seed(0))
    boxes[10:20] = boxes[0]
    kept = assert_same_nms(boxes, torch.linspace(0, 1, 70), threshold)
    assert len(kept) == (1 if threshold < 0 else 70 if not threshold < 1 else len(kept))


def test_nms_threshold_is_compared_in_double():
    # 1/3 as a float is above 1/3 as a double, so that this overlap, the float nearest to 1/3, exceeds only the double.
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 3.0, 1.0]])
    assert len(assert_same_nms(boxes, torch.tensor([2.0, 1.0]), 1 / 3)) == 1
    assert len(assert_same_nms(boxes, torch.tensor([2.0, 1.0]), float(torch.tensor(1 / 3)))) == 2


def test_nms_identical_boxes_leave_one():
    assert assert_same_nms(BOXES[:1].repeat(200, 1), torch.arange(200.0), 0.5).tolist() == [199]


def test_nms_degenerate_boxes():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(200, 4, generator=generator) * 100  # x2 < x1 in half of them
    boxes[:20, 2:] = boxes[:20, :2]  # no area
    for threshold in (0.0, 0.3, -0.5):
        assert_same_nms(boxes, torch.rand(200, generator=generator), threshold)


@pytest.mark.parametrize("count", [0, 1])
def test_nms_no_box_and_one_box(count):
    assert assert_same_nms(BOXES[:count], SCORES[:count], 0.5).tolist() == list(range(count))


def test_nms_does_not_need_contiguous_tensors():
    generator = torch.Generator().manual_seed(0)
    boxes = make_boxes(100, generator)
    scores = torch.rand(200, generator=generator)[::2]
    expected = torchvision_nms(boxes, scores, 0.5).tolist()
    assert len(expected) < 100
    assert nms(boxes.t().contiguous().t(), scores, 0.5).tolist() == expected
    assert nms(torch.cat([boxes, boxes], 1)[:, 4:], scores, 0.5).tolist() == expected


def test_nms_many_boxes():
    generator = torch.Generator().manual_seed(0)
    boxes = make_boxes(4000, generator, spread=1000.0, size=100.0)
    assert 500 < len(assert_same_nms(boxes, torch.rand(4000, generator=generator), 0.5)) < 4000


@pytest.mark.slow
def test_nms_more_boxes_than_are_compared_at_once():
    generator = torch.Generator().manual_seed(0)
    count = 30_000  # On CUDA, the mask of all pairs would exceed the memory limit.
    boxes = make_boxes(count, generator, spread=2000.0, size=100.0)
    assert 1000 < len(assert_same_nms(boxes, torch.rand(count, generator=generator), 0.3)) < count / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.int64])
def test_nms_refuses_other_dtypes(dtype):
    with pytest.raises(RuntimeError):
        torchvision_nms(BOXES.to(dtype), SCORES.to(dtype), 0.5)
    with refuses("hybrid_rt[operators]: nms: expected dets of dtype Float or Double, got "):
        nms(BOXES.to(dtype), SCORES.to(dtype), 0.5)


@pytest.mark.parametrize(
    ("dets", "scores", "text"),
    [
        (BOXES[0], SCORES, "expected dets of shape [N, 4], got Float [4]. Pass one row"),
        (BOXES[None], SCORES, "expected dets of shape [N, 4], got Float [1, 3, 4]. Pass one row"),
        (BOXES[:, :3], SCORES, "expected dets of shape [N, 4], got Float [3, 3]. Pass one row"),
        (torch.zeros(0), SCORES[:0], "expected dets of shape [N, 4], got Float [0]. Pass one row"),
        (BOXES, SCORES[:2], "expected scores of shape [3], one per box, got Float [2]. Pass one score"),
        (BOXES, SCORES[:, None], "expected scores of shape [3], one per box, got Float [3, 1]. Pass one score"),
        (BOXES, SCORES.double(), "expected scores of the dtype of dets, Float, got Double [3]. Convert one"),
        (BOXES.double(), SCORES, "expected scores of the dtype of dets, Double, got Float [3]. Convert one"),
    ],
)
def test_nms_refuses_what_torchvision_refuses(dets, scores, text):
    with pytest.raises(RuntimeError):
        torchvision_nms(dets, scores, 0.5)
    with refuses("hybrid_rt[operators]: nms: " + text):
        nms(dets, scores, 0.5)


# roi_align


def make_rois(count: int, features: Tensor, spatial_scale: float, generator: torch.Generator) -> Tensor:
    """Returns boxes of all sizes, some partly or entirely outside of the image."""
    height, width = features.shape[2:]
    corners = torch.rand(count, 2, 2, generator=generator) * 1.6 - 0.3
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1) * torch.tensor([width, height, width, height])
    images = torch.randint(0, len(features), (count, 1), generator=generator)
    return torch.cat([images, boxes / spatial_scale], 1).to(features.dtype)


def lay_out(features: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return features.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return features.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "strided":
        batch, channels, height, width = features.shape
        wide = torch.full((batch, channels * 2, height + 3, width * 2), NAN, dtype=features.dtype)
        wide[:, ::2, 3:, ::2] = features
        return wide[:, ::2, 3:, ::2]
    return features


@pytest.mark.parametrize("dtype", ROI_ALIGN_DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "strided"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 9, 14), (3, 16, 20, 7), (1, 37, 13, 13)])
def test_roi_align_is_torchvisions_bit_for_bit(shape, sampling_ratio, aligned, layout, dtype):
    generator = torch.Generator().manual_seed(sum(shape) + sampling_ratio)
    features = lay_out(torch.randn(shape, generator=generator).to(dtype), layout)
    for spatial_scale, size, count in ((1.0, (7, 7), 6), (0.25, (3, 5), 1), (0.3, (1, 2), 40)):
        rois = make_rois(count, features, spatial_scale, generator)
        assert_same_roi_align(features, rois, spatial_scale, size, sampling_ratio, aligned)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("count", [1, 20, 500])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_roi_align_few_and_many_boxes_on_any_number_of_threads(threads, count, layout):
    generator = torch.Generator().manual_seed(count)
    features = lay_out(torch.randn(2, 40, 50, 68, generator=generator), layout)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pooled = assert_same_roi_align(features, make_rois(count, features, 0.25, generator), 0.25, (7, 7), 2)
    finally:
        torch.set_num_threads(before)
    assert pooled.count_nonzero() > pooled.numel() / 4


def test_roi_align_does_not_need_contiguous_rois():
    columns = ROIS.t().contiguous().t()
    wide = torch.cat([ROIS, ROIS], 1)[:, 5:]
    expected = torchvision_roi_align(FEATURES, ROIS)
    assert torch.equal(roi_align(FEATURES, columns), expected)
    assert torch.equal(roi_align(FEATURES, wide), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_roi_align_more_bins_than_a_block_takes(layout):
    features = lay_out(torch.randn(2, 33, 9, 9, generator=torch.Generator().manual_seed(0)), layout)
    assert_same_roi_align(features, ROIS, size=(40, 31))


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_degenerate_boxes(aligned):
    rois = torch.tensor([[0.0, 5.0, 5.0, 1.0, 1.0], [1.0, 3.0, 3.0, 3.0, 3.0], [0.0, 5.0, 1.0, 2.0, 6.0]])
    pooled = assert_same_roi_align(FEATURES, rois, sampling_ratio=2, aligned=aligned)
    assert pooled.count_nonzero() > 0


def test_roi_align_box_without_points_gives_zeros():
    rois = torch.tensor([[0.0, 5.0, 5.0, 1.0, 1.0], [0.0, 5.0, 1.0, 2.0, 6.0], [0.0, 1.0, 1.0, 5.0, 5.0]])
    pooled = roi_align(FEATURES, rois, sampling_ratio=0, aligned=True)
    assert pooled[:2].count_nonzero() == 0
    assert torch.equal(pooled[2:], torchvision_roi_align(FEATURES, rois[2:], sampling_ratio=0, aligned=True))


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_boxes_outside_the_image_give_zeros(aligned):
    rois = torch.tensor([[0.0, 100.0, 100.0, 120.0, 120.0], [1.0, -50.0, -50.0, -20.0, -20.0], [0, 0, 9.5, 5, 30]])
    pooled = assert_same_roi_align(FEATURES, rois, sampling_ratio=2, aligned=aligned)
    assert pooled.count_nonzero() == 0


def test_roi_align_huge_boxes():
    rois = torch.tensor([[0.0, -1e30, 2.0, 1e30, 6.0], [1.0, -1e5, 1.0, 1e5, 7.0]])
    assert_same_roi_align(FEATURES, rois, sampling_ratio=2)
    pooled = assert_same_roi_align(FEATURES, rois[1:], sampling_ratio=0)
    assert pooled.count_nonzero() > 0


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("column", [1, 2, 3, 4])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_box_with_a_non_finite_coordinate_never_reads_outside(aligned, sampling_ratio, column, value):
    # torchvision 0.29.2 crashes on most of these.
    rois = ROIS.clone()
    rois[0, column] = value
    pooled = roi_align(FEATURES + 1, rois, sampling_ratio=sampling_ratio, aligned=aligned)
    expected = torchvision_roi_align(FEATURES + 1, ROIS[1:], sampling_ratio=sampling_ratio, aligned=aligned)
    assert torch.equal(pooled[1:], expected)
    becomes_one_pixel = not aligned and value == -INF and column >= 3  # the end is before the start
    assert (pooled[0].count_nonzero() > 0) == becomes_one_pixel
    assert pooled.isfinite().all()


def test_roi_align_non_finite_features_stay_where_they_are():
    features = FEATURES.clone()
    features[0, 1, 4, 4], features[1, 2, 3, 3] = NAN, INF
    pooled = roi_align(features, ROIS)
    torch.testing.assert_close(pooled, torchvision_roi_align(features, ROIS), rtol=0, atol=0, equal_nan=True)
    assert 0 < pooled.isfinite().sum() < pooled.numel()


@pytest.mark.parametrize(
    ("features", "rois", "size"),
    [
        (FEATURES, ROIS[:0], (2, 2)),
        (FEATURES[:0], ROIS[:0], (2, 2)),
        (FEATURES[:, :0], ROIS, (2, 2)),
        (FEATURES, ROIS, (0, 2)),
        (FEATURES[:, :, :0], ROIS[:0], (2, 2)),
    ],
)
def test_roi_align_empty_output(features, rois, size):
    assert assert_same_roi_align(features, rois, size=size).numel() == 0


@pytest.mark.parametrize(("index", "same_as"), [(0.9, 0.0), (-0.0, 0.0), (1.5, 1.0)])
def test_roi_align_image_index_is_truncated(index, same_as):
    rois, whole = ROIS.clone(), ROIS.clone()
    rois[:, 0], whole[:, 0] = index, same_as
    assert torch.equal(assert_same_roi_align(FEATURES, rois), roi_align(FEATURES, whole))


@pytest.mark.parametrize("index", [-1.0, -0.5, 2.0, 1e9, INF, -INF, NAN])
def test_roi_align_refuses_a_missing_image(index):
    rois = ROIS.clone()
    rois[1, 0] = index
    with refuses("hybrid_rt[operators]: roi_align: expected rois[:, 0] to index a batch of 2, got "):
        roi_align(FEATURES, rois)


@pytest.mark.parametrize("sampling_ratio", [50_000, 5_000_000_000])
def test_roi_align_refuses_too_many_points(sampling_ratio):
    with refuses("hybrid_rt[operators]: roi_align: expected at most 2147483647 sampling points per box, got "):
        roi_align(FEATURES, ROIS, sampling_ratio=sampling_ratio)
    huge = torch.tensor([[0.0, 0.0, 0.0, 1e6, 1e6]])
    with refuses("hybrid_rt[operators]: roi_align: expected at most 2147483647 sampling points per box, got "):
        roi_align(FEATURES, huge, sampling_ratio=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int32, torch.int64])
def test_roi_align_refuses_other_dtypes(dtype):
    with pytest.raises(RuntimeError):
        torchvision_roi_align(FEATURES.to(dtype), ROIS.to(dtype))
    with refuses("hybrid_rt[operators]: roi_align: expected input of dtype Float, Double or Half, got "):
        roi_align(FEATURES.to(dtype), ROIS.to(dtype))


@pytest.mark.parametrize(
    ("features", "rois", "size", "text"),
    [
        (FEATURES[0], ROIS, (2, 2), "expected input of shape [N, C, H, W], got Float [3, 8, 8]. Add the missing"),
        (FEATURES, ROIS[0], (2, 2), "expected rois of shape [K, 5], got Float [5]. Pass one row"),
        (FEATURES, ROIS[:, 1:], (2, 2), "expected rois of shape [K, 5], got Float [2, 4]. Pass one row"),
        (FEATURES, ROIS[None], (2, 2), "expected rois of shape [K, 5], got Float [1, 2, 5]. Pass one row"),
        (FEATURES, ROIS.double(), (2, 2), "expected rois of the dtype of input, Float, got Double [2, 5]. Convert"),
        (FEATURES.half(), ROIS, (2, 2), "expected rois of the dtype of input, Half, got Float [2, 5]. Convert"),
        (FEATURES, ROIS, (2, -1), "expected an output size of 0 or more, got 2 x -1. Check"),
    ],
)
def test_roi_align_refuses_what_torchvision_refuses(features, rois, size, text):
    with pytest.raises((RuntimeError, IndexError)):  # the wrapper of its CUDA kernel reads missing sizes
        torchvision_roi_align(features, rois, size=size)
    with refuses("hybrid_rt[operators]: roi_align: " + text):
        roi_align(features, rois, size=size)


@pytest.mark.parametrize("features", [FEATURES[:, :, :0], FEATURES[:, :, :, :0]])
def test_roi_align_refuses_an_image_without_pixels(features):
    # torchvision 0.29.2 crashes.
    with refuses("hybrid_rt[operators]: roi_align: expected input with pixels, got Float [2, 3, "):
        roi_align(features, ROIS)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_operators_run_in_torchscript_and_survive_saving(tmp_path, device):
    class Head(torch.nn.Module):
        def forward(self, features: Tensor, boxes: Tensor, scores: Tensor) -> Tensor:
            kept = boxes[torch.ops.hybrid_rt.nms(boxes, scores, 0.5)]
            rois = torch.cat([torch.zeros_like(kept[:, :1]), kept], 1)
            return torch.ops.hybrid_rt.roi_align(features, rois, 0.25, 2, 2, 2, False)

    scripted = torch.jit.script(Head())
    scripted.save(str(tmp_path / "head.pt"))
    inputs = [tensor.to(device) for tensor in (FEATURES, BOXES, SCORES)]
    pooled = from_device(torch.jit.load(str(tmp_path / "head.pt"))(*inputs))
    kept = BOXES[[1, 2]]
    assert torch.equal(pooled, torchvision_roi_align(FEATURES, torch.cat([torch.zeros(2, 1), kept], 1), 0.25))


# CUDA only


@ONLY_CUDA
def test_cuda_kernels_are_used_where_they_were_built(device):
    if not CUDA_LIBRARY.exists():
        pytest.skip("hybrid_rt was built without nvcc")
    nms(BOXES, SCORES, 0.5)
    assert CUDA_LIBRARY.name in Path("/proc/self/maps").read_text()


@ONLY_CUDA
def test_cuda_tensors_go_through_the_cpu_where_the_kernels_are_missing(device, tmp_path):
    library = shutil.copy(LIBRARIES / "libhybrid_rt.so", tmp_path)
    program = f"""
import torch
torch.ops.load_library({str(library)!r})
boxes, scores = torch.tensor({BOXES.tolist()}).cuda(), torch.tensor({SCORES.tolist()}).cuda()
for _ in range(2):
    kept = torch.ops.hybrid_rt.nms(boxes, scores, 0.5)
print(kept.device, kept.tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "cuda:0 [1, 2]\n"
    assert done.stderr.count("the CUDA kernels of nms and roi_align can't be used (there is no ") == 1


@ONLY_CUDA
def test_cuda_refuses_tensors_on_different_devices(device):
    with refuses("hybrid_rt[operators]: nms: expected dets and scores on one device, got cuda:0 and cpu. Move one"):
        torch.ops.hybrid_rt.nms(BOXES.to(device), SCORES, 0.5)
    with refuses("hybrid_rt[operators]: roi_align: expected input and rois on one device, got cpu and cuda:0. Move"):
        torch.ops.hybrid_rt.roi_align(FEATURES, ROIS.to(device), 1.0, 2, 2, 2, False)


@ONLY_CUDA
def test_cuda_names_the_first_row_that_it_refuses_and_goes_on(device):
    rois = ROIS.repeat(1000, 1)
    rois[700, 0], rois[1500, 0] = 7.0, -3.0
    with refuses("expected rois[:, 0] to index a batch of 2, got 7 in row 700. Number the images from 0."):
        roi_align(FEATURES, rois)
    assert_same_roi_align(FEATURES, ROIS)


@ONLY_CUDA
def test_cuda_works_on_the_current_stream(device):
    generator = torch.Generator().manual_seed(0)
    boxes, scores = make_boxes(3000, generator, spread=500.0), torch.rand(3000, generator=generator)
    rois = torch.cat([torch.zeros(3000, 1), boxes / 500 * 8], 1)
    expected = torchvision_nms(boxes, scores, 0.5), torchvision_roi_align(FEATURES, rois)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        inputs = [tensor.to(device) for tensor in (boxes, scores, FEATURES, rois)]
        busy = torch.ones(4000, 4000, device=device)
        for _ in range(20):  # later work finds its inputs only if it waits for this stream
            busy = busy @ busy * 0
        late = [tensor + busy[0, 0] for tensor in inputs]
        kept = torch.ops.hybrid_rt.nms(late[0], late[1], 0.5)
        pooled = torch.ops.hybrid_rt.roi_align(late[2], late[3], 1.0, 2, 2, 2, False)
    stream.synchronize()
    assert torch.equal(kept.cpu(), expected[0])
    assert torch.equal(pooled.cpu(), expected[1])
