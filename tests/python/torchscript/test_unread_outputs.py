"""Tests of outputs of which a head reads only the sizes: every use counts as a read unless known otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybrid_rt.bundle.blob_table import pack
from hybrid_rt.common.specs import Artifact, ArtifactSpec
from hybrid_rt.conversion.assemble.engine_module import make_engine
from hybrid_rt.torchscript import jit

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")


class Head(nn.Module):
    """Runs an engine with three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.hybrid_rt_engine = make_engine(
            ["backbone"], pack([Artifact(ArtifactSpec("none", "fp32", "cpu", (), ()), {})])
        )


class SizesInALoop(Head):
    def forward(self, x: Tensor) -> tuple[Tensor, list[int]]:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        kept = {"a": levels[0], "b": levels[1]}
        sizes = [level.size(2) for level in list(kept.values())]
        return levels[2].relu(), sizes


class UnusedOutput(Head):
    def forward(self, x: Tensor) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        return levels[1] * levels[0].shape[3]


class ReadInABranch(Head):
    def forward(self, x: Tensor) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        chosen = levels[0]
        if levels[0].size(2) > 4 or levels[1].dim() == 3:
            chosen = levels[2]
        return chosen.relu()


class Returned(Head):
    def forward(self, x: Tensor) -> tuple[int, dict[str, Tensor]]:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        return levels[0].size(2) + levels[1].size(2), {"b": levels[1]}


class ReadByAnyIndex(Head):
    def forward(self, x: Tensor, which: int) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        sizes = [level.size(2) for level in levels]
        return levels[which] + sizes[0]


class CarriedByALoop(Head):
    def forward(self, x: Tensor, times: int) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        first, second = levels[0], levels[1]
        for _ in range(times + levels[2].size(0)):
            first, second = second, first
        return first.relu() + second.size(1)


class PutIntoAList(Head):
    def forward(self, x: Tensor) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        kept = [x]
        kept.append(levels[0])
        return kept[1] * levels[1].size(1) * levels[0].size(1)


class ReorderedList(Head):
    def forward(self, x: Tensor) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        count = levels[0].size(0) + levels[2].size(0)
        levels.reverse()
        return levels[0] * count


class Sliced(Head):
    def forward(self, x: Tensor) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        return levels[0][:, :1] + levels[1].numel()


class ViewedAsAnother(Head):
    def forward(self, x: Tensor) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        return levels[1].new_zeros(levels[1].shape) + torch.zeros_like(levels[2]) + levels[0].size(0)


class KnownEntries(Head):
    def forward(self, x: Tensor) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        named = {"a": levels[0], "b": levels[1], "c": levels[2]}
        kept = list(named.values())
        return kept[0] * kept[1].size(0) * named["c"].size(0)


class DictThatChanges(Head):
    def forward(self, x: Tensor) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        named = {"a": levels[0], "b": levels[1]}
        count = named["a"].size(0) + levels[1].size(0) + levels[2].size(0)
        named["a"] = levels[1]
        return named["a"] * count


class EqualKeys(Head):
    def forward(self, x: Tensor, key: str) -> Tensor:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        count = levels[0].size(0) + levels[1].size(0) + levels[2].size(0)
        named = {"a": levels[0], key: levels[1]}
        return named["a"] * count


class GivenToTheEngineAgain(Head):
    def forward(self, x: Tensor) -> int:
        levels = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [x])
        again = torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, [levels[0]])
        return levels[0].size(0) + levels[1].size(0) + again[2].size(0)


CASES: list[tuple[type[Head], set[int]]] = [
    (SizesInALoop, {0, 1}),
    (UnusedOutput, {0}),
    (ReadInABranch, {1}),
    (Returned, {0}),
    (ReadByAnyIndex, set()),
    (CarriedByALoop, {2}),
    (PutIntoAList, {1}),
    (ReorderedList, set()),
    (Sliced, {1}),
    (ViewedAsAnother, {0}),
    (KnownEntries, {1, 2}),
    (DictThatChanges, {2}),
    (EqualKeys, {2}),
    (GivenToTheEngineAgain, {1, 2}),
]


@pytest.mark.parametrize(("head", "unread"), CASES, ids=[head.__name__ for head, _ in CASES])
def test_outputs_of_which_a_head_reads_only_sizes(head: type[Head], unread: set[int]) -> None:
    frozen = jit.freeze(jit.script(head().eval()))
    assert jit.unread_outputs(frozen, {"backbone": 3}) == {"backbone": frozenset(unread)}
