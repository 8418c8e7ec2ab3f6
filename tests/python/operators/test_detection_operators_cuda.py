"""Tests of the operators of known heads on a GPU, where torch's operators compute them, against the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hybrid_rt  # noqa: F401  registers the operators
from hybrid_rt.common.tensor_tree import map_tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

OURS = torch.ops.hybrid_rt


def boxes(count: int, generator: torch.Generator) -> Tensor:
    corners = torch.rand(count, 2, generator=generator) * 300
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 60], 1)


def inputs(name: str) -> tuple[Any, ...]:
    """Returns arguments whose scores are so far apart that rounding does not change their order."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randperm(900, generator=generator).float().view(90, 10) / 900
    logits = torch.logit(scores * 0.98 + 0.01)
    centerness = torch.zeros(90, 1)
    features = [torch.randn(2, 8, side, side + 3, generator=generator) for side in (32, 16, 8)]
    rois = torch.cat([torch.randint(2, (70, 1), generator=generator), boxes(70, generator) * 0.4], 1)
    levels = torch.randint(3, (70,), generator=generator)
    return {
        "batched_nms": (boxes(900, generator), scores.flatten(), torch.arange(900) % 7, 0.5),
        "ssd_detections": (boxes(90, generator), scores, 0.02, 30, 0.45, 200),
        "sigmoid_topk": (logits, 0.5, 100),
        "centered_sigmoid_topk": (logits, centerness, 0.5, 100),
        "class_probabilities": (logits,),
        "box_levels": (rois[:, 1:], 2, 5, 40, 4, 1e-6),
        "multiscale_roi_align": (features, rois, levels, [0.25, 0.125, 0.0625], 3, 2, 2),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "batched_nms",
        "ssd_detections",
        "sigmoid_topk",
        "centered_sigmoid_topk",
        "class_probabilities",
        "box_levels",
        "multiscale_roi_align",
    ],
)
def test_a_heads_operator_computes_on_the_gpu_what_it_does_on_the_cpu(name: str) -> None:
    arguments = inputs(name)
    operator: Callable[..., Any] = getattr(OURS, name)
    there = operator(*map_tensors(arguments, lambda tensor: tensor.cuda()))
    expected = operator(*arguments)
    pairs = zip(there, expected, strict=True) if isinstance(expected, tuple) else [(there, expected)]
    for found, wanted in pairs:
        assert found.is_cuda
        assert wanted.numel() > 0
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-6)
