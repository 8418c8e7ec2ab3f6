"""Large outputs lie on large pages, where the system has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from hybrid_rt.backends import registry

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
OURS = torch.ops.hybrid_rt
LARGE = (1024, 1024)  # of four channels: 16 MiB

pytestmark = pytest.mark.skipif(not SETTING.exists(), reason="this kernel has no transparent huge pages")


def asks_for_large_pages(tensor: Tensor) -> bool:
    """Reads the flags of the mapping that holds the middle of a tensor."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_inside = int(found[1], 16) <= middle < int(found[2], 16)
        elif is_inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("the tensor's memory is not mapped")


def pooled(boxes: int) -> Tensor:
    corners = torch.tensor([[0.0, 2.0, 3.0, 12.0, 13.0]]).repeat(boxes, 1)
    levels = torch.zeros(boxes, dtype=torch.int64)
    return OURS.multiscale_roi_align([torch.rand(1, 64, 20, 20)], corners, levels, [1.0], 14, 14, 2)


def batch(height: int, width: int) -> Tensor:
    return OURS.normalized_batch([torch.rand(3, 20, 30)], [0.0] * 3, [1.0] * 3, [height], [width], 32)


def test_operators_put_large_results_on_large_pages() -> None:
    assert asks_for_large_pages(pooled(400))  # 20 MB
    assert asks_for_large_pages(batch(*LARGE))
    assert asks_for_large_pages(OURS.roi_align(torch.rand(1, 64, 20, 20), torch.zeros(400, 5), 1.0, 14, 14, 2, False))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", [name for name in ("openvino", "onnxruntime") if name in registry.available_for("cpu")]
)
def test_engines_put_large_outputs_on_large_pages(engine: str) -> None:
    torch.manual_seed(0)
    module = Wide().eval().requires_grad_(False)
    image = torch.rand(1, 1, *LARGE)
    compiled = hybrid_rt.compile_segment(module, image, engine=engine, fallback=False)
    for _ in range(2):  # the first run at a size copies what the later ones write in place
        found = compiled(image)
        assert asks_for_large_pages(found)
        torch.testing.assert_close(found, module(image), rtol=1e-4, atol=1e-5)
