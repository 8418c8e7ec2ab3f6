"""Tests of finding the largest part of an exported graph that an engine can compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_rt.capture.graph_cut import Part, Partition, counted, schema_name, without_notes


class Function(nn.Module):
    """Applies a function to a tensor and a weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 3, 3, 3), requires_grad=False)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def partition(function: Callable[[Tensor, Tensor], Tensor]) -> Partition:
    x = torch.rand(1, 3, 16, 16)
    program = torch.export.export(Function(function).eval(), (x,), strict=False)
    graph_module = without_notes(program.graph_module)
    inputs = [*program.state_dict.values(), x]
    return Partition(graph_module.graph, counted(graph_module, inputs), list(graph_module.graph.nodes)[1:2])


def names(part: Part | None) -> list[str]:
    assert part is not None
    return [schema_name(node).removeprefix("aten::") for node in part.nodes]


def two_stages(x: Tensor, weight: Tensor) -> Tensor:
    """Values of the first convolution determine the input size of the second."""
    first = functional.conv2d(x, weight)
    rows = first[0, 0].flatten().nonzero()[:, 0]
    picked = x.flatten(2)[:, :, :8].view(1, 3, 2, 4) + rows.sum()
    return functional.conv2d(picked, weight, padding=1).relu()


def test_no_value_leaves_the_part_and_comes_back() -> None:
    found = partition(two_stages).largest()
    assert names(found).count("conv2d") == 1
    assert found is not None
    assert found.nodes[-1].users
    inside = set(found.nodes)
    outside = {node for node in found.nodes[0].graph.nodes if node.op == "call_function" and node not in inside}
    behind: set[torch.fx.Node] = set()
    for node in found.nodes[0].graph.nodes:
        if node in outside and any(each in inside or each in behind for each in node.all_input_nodes):
            behind.add(node)
        assert not (node in inside and behind & set(node.all_input_nodes))


def test_layers_that_feed_only_the_second_stage_are_in_its_part() -> None:
    def one_way(x: Tensor, weight: Tensor) -> Tensor:
        rows = x[0, 0].flatten().nonzero()[:, 0].sum()
        first = functional.conv2d(x, weight)  # it does not depend on the rows, and forms one part with the second
        return functional.conv2d(first[:, :3] + rows, weight).relu()

    assert names(partition(one_way).largest()).count("conv2d") == 2


def test_an_excluded_operator_is_outside() -> None:
    def smooth(x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(x, weight)[:, :3].cumsum(1), weight)

    assert "cumsum" in names(partition(smooth).largest())
    left = partition(smooth).largest(frozenset({"aten::cumsum"}))
    assert "cumsum" not in names(left)
    assert names(left).count("conv2d") == 1


def test_the_dense_part_ends_at_the_last_convolution() -> None:
    def decoded(x: Tensor, weight: Tensor) -> Tensor:
        places = torch.arange(16.0).exp()
        return (functional.conv2d(x / 255 + places, weight).sigmoid() * 8).flatten(1).topk(4).values

    whole = partition(decoded)
    assert {"div", "topk"} <= set(names(whole.largest()))
    assert names(whole.largest(dense_only=True)) == ["conv2d"]


@pytest.mark.parametrize("shown", [False, True], ids=["nothing else", "a view"])
def test_a_write_in_place_is_a_new_tensor_if_nothing_else_shows_it(shown: bool) -> None:
    def written(x: Tensor, weight: Tensor) -> Tensor:
        made = functional.conv2d(x, weight)
        view = made[:, 0] if shown else x[:, 0, 2:, 2:]
        made.relu_()
        return made + view

    part = partition(written).largest()
    assert (part is None) == shown
    if part is not None:
        assert {"conv2d", "relu"} <= set(names(part))


def test_random_numbers_and_float64_are_outside() -> None:
    def noisy(x: Tensor, weight: Tensor) -> Tensor:
        made = functional.conv2d(x + torch.rand_like(x), weight)
        return made.double().cumsum(1).float().relu()

    found = names(partition(noisy).largest())
    assert "conv2d" in found
    assert not {"rand_like", "to", "cumsum"} & set(found)


def test_the_choice_is_the_same_each_time() -> None:
    assert names(partition(two_stages).largest()) == names(partition(two_stages).largest())
