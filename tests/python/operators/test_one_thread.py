"""Tests that operators compute a few hundred values in the calling thread, without a parallel region."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os
import torch
import hybrid_rt

def threads():
    return len(os.listdir("/proc/self/task"))

ours = torch.ops.hybrid_rt
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
corners = torch.rand(1000, 2, generator=generator) * 60
boxes = torch.cat([corners, corners + 30 * torch.rand(1000, 2, generator=generator)], 1)
codes = torch.randn(1000, 40, generator=generator)
logits = torch.randn(1000, 10, generator=generator)
maps, deltas = [torch.randn(1, 3, 20, 20, generator=generator)], [torch.randn(1, 12, 20, 20, generator=generator)]
weights = [1.0] * 4
calls = {
    "box_levels": lambda: ours.box_levels(boxes, 2, 5, 224, 4, 1e-6),
    "class_probabilities": lambda: ours.class_probabilities(logits),
    "decoded_boxes": lambda: ours.decoded_boxes(codes[:, :4], boxes, [60, 60], weights, 4.0),
    "box_detections": lambda: ours.box_detections(
        logits, codes, boxes, [60, 60], 1.5, 0.5, 100, weights, 4.0
    ),
    "region_proposals": lambda: ours.region_proposals(
        maps, deltas, [boxes[:3]], 0, [60, 60], [60, 60], 900, 900, 0.0, 0.0, 0.7, weights, 4.0
    ),
    "sigmoid_topk": lambda: ours.sigmoid_topk(logits, 0.3, 1000),
    "centered_sigmoid_topk": lambda: ours.centered_sigmoid_topk(logits, logits[:, :1], 0.3, 1000),
}
CALL
"""

OPERATORS = (
    "box_levels",
    "class_probabilities",
    "decoded_boxes",
    "box_detections",
    "region_proposals",
    "sigmoid_topk",
    "centered_sigmoid_topk",
)


def printed_by(call: str) -> list[str]:
    """Returns the words that a new process prints, in which torch has started no threads."""
    program = PROGRAM.replace("CALL", call)
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()


def test_operators_start_no_threads_for_a_thousand_boxes() -> None:
    counts = printed_by(
        "print(threads())\n"
        "for name, call in calls.items():\n"
        "    call()\n"
        "    print(name, threads())\n"
        "torch.randn(1_000_000).exp()\n"
        "print(threads())"
    )
    before, after = int(counts[0]), int(counts[-1])
    assert after > before, "a large exponential uses two threads, or this test shows nothing"
    assert dict(zip(counts[1:-1:2], map(int, counts[2:-1:2]), strict=True)) == dict.fromkeys(OPERATORS, before)


@pytest.mark.parametrize("values", [1_000, 4_000_000])
def test_the_numbers_of_threads_are_restored(values: int) -> None:
    printed = printed_by(
        "def numbers():\n"
        "    lines = torch.__config__.parallel_info().splitlines()\n"
        "    lines = [line for line in lines if 'get_num_threads()' in line or 'max_threads()' in line]\n"
        "    return ','.join(line.split(':')[-1].strip() for line in lines)\n"
        "print(numbers())\n"
        f"ours.class_probabilities(torch.zeros({values // 10}, 10))\n"
        "print(numbers(), threads())\n"
        "torch.set_num_threads(1)\n"
        f"ours.class_probabilities(torch.zeros({values // 10}, 10))\n"
        "print(numbers(), torch.get_num_threads())"
    )
    before, after, _, after_one, one = printed
    assert before == after
    assert "2" in before.split(",")
    assert one == "1"
    assert "2" not in after_one.split(",")
