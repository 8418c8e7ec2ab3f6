"""Engines use the memory of a large output again, but only when no tensor has it any more."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hybrid_rt
from hybrid_rt.backends import registry

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "engine", [name for name in ("openvino", "onnxruntime") if name in registry.available_for("cpu")]
)
def test_the_memory_of_a_large_output_is_used_again_when_nothing_has_it(engine: str) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(1, 12, 3, padding=1).eval().requires_grad_(False)  # 48 MiB
    images = [torch.rand(1, 1, 1024, 1024) for _ in range(2)]
    expected = [module(image) for image in images]
    compiled = hybrid_rt.compile_segment(module, images[0], engine=engine, fallback=False)
    compiled(images[0])  # the first run at a size copies what the later ones write in place

    held = compiled(images[0])
    other = compiled(images[1])
    assert other.data_ptr() != held.data_ptr()
    torch.testing.assert_close(held, expected[0], rtol=1e-4, atol=1e-5)

    place = other.data_ptr()
    del other
    again = compiled(images[0])
    assert again.data_ptr() == place
    torch.testing.assert_close(again, expected[0], rtol=1e-4, atol=1e-5)

    channel = again[0, 3]
    del again
    last = compiled(images[1])
    assert last.data_ptr() != place
    torch.testing.assert_close(last, expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(channel, expected[0][0, 3], rtol=1e-4, atol=1e-5)
