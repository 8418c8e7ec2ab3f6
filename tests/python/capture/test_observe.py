"""Tests of observing a detector's submodules in a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from helpers.small_detectors import small_detector, small_image
from hybrid_rt import CaptureError
from hybrid_rt.capture.call_recording import recording
from hybrid_rt.capture.observe import arguments_of, observe
from hybrid_rt.capture.side_effects import find_side_effects


def test_each_submodule_that_runs_is_seen_with_its_time_and_shapes() -> None:
    detector = small_detector()
    detector.never = nn.ReLU()
    seen = observe(detector, (small_image(),))
    assert {"backbone", "backbone.first", "backbone.first.0", "classes"} <= set(seen.uses)
    assert "never" not in seen.uses
    (call,) = seen.uses["backbone"].calls
    assert call.input_tensors == [(torch.Size([1, 3, 32, 32]), torch.float32)]
    assert [tuple(shape) for shape, _ in call.output_tensors] == [(1, 8, 16, 16), (1, 8, 8, 8)]
    assert 0 < seen.uses["backbone.first"].seconds < seen.uses["backbone"].seconds < seen.seconds
    assert 0 < seen.share("backbone") < 1
    assert seen.share("never") == 0


def test_the_result_is_the_detectors_own_and_no_hook_is_left() -> None:
    detector = small_detector()
    seen = observe(detector, (small_image(),))
    for got, expected in zip(seen.result, detector(small_image()), strict=True):
        assert torch.equal(got, expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in detector.modules())


def test_a_hook_of_the_users_sees_what_it_saw_before() -> None:
    detector = small_detector()
    detector.classes.register_forward_hook(lambda module, inputs, output: output * 0)
    seen = observe(detector, (small_image(),))
    assert torch.all(seen.result[1] == 0.5)  # the sigmoid of 0


def test_the_source_of_a_tensor_is_known_until_it_is_written_to() -> None:
    class Detector(nn.Module):
        def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.first, self.second, self.change = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), change

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.change(self.first(x)))

    def sources(change: Callable[[Tensor], Tensor]) -> frozenset[tuple[str, int]]:
        (call,) = observe(Detector(change).eval(), (small_image(),)).uses["second"].calls
        return call.sources[0]

    assert sources(lambda x: x) == {("first", 0)}
    assert sources(lambda x: x.mul_(2)) == frozenset()
    assert sources(lambda x: x + 1) == frozenset()


def test_a_call_with_more_than_tensors_has_a_reason() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, rows: slice) -> Tensor:
            return x[rows]

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scaled = Scaled()

        def forward(self, x: Tensor) -> Tensor:
            return self.scaled(x, slice(2))

    use = observe(Detector(), (small_image(),)).uses["scaled"]
    assert use.calls == [None]
    assert "segment 'scaled', input 'rows': expected tensors in lists, tuples and dicts" in use.refusal


def test_arguments_without_names_are_refused() -> None:
    class Any_(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return tensors[0]

    with pytest.raises(CaptureError, match=r"forward, argument 'tensors': expected parameters with names"):
        arguments_of(Any_(), (torch.zeros(1),), {})


def test_an_optional_argument_that_is_none_is_left_out() -> None:
    class Optional_(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x

    assert list(arguments_of(Optional_(), (torch.zeros(1), None), {})) == ["x"]


class Body(nn.Module):
    """Has a submodule that does one more thing with its input, a weight or itself."""

    def __init__(self, act: Callable[[Body, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.register_buffer("count", torch.zeros(1))
        self.calls = 0
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        features = self.layer(x)
        got = self.act(self, x)
        return features + got if isinstance(got, Tensor) else features


class Holder(nn.Module):
    def __init__(self, act: Callable[[Body, Tensor], Any]) -> None:
        super().__init__()
        self.body = Body(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def found(act: Callable[[Body, Tensor], Any]) -> str:
    return find_side_effects(Holder(act).eval(), (small_image(),)).get("body", "")


def count_up(body: Body, x: Tensor) -> None:
    body.calls += 1


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda body, x: 1 if x.mean() > 0 else 2, "aten::_local_scalar_dense, which depends on the values of tensors"),
        (lambda body, x: x.mean().item(), "aten::_local_scalar_dense, which depends on the values"),
        (lambda body, x: x[x > 0.5].sum(), "aten::index, which depends on the values"),
        (lambda body, x: torch.nonzero(x).sum(), "aten::nonzero, which depends on the values"),
        (lambda body, x: nms(x[0, 0, :, :4], x[0, 0, :, 0], 0.5).sum(), "torchvision::nms, which depends on"),
        (lambda body, x: x.mul_(2).sum(), "aten::mul_, which writes into an input"),
        (lambda body, x: body.count.add_(1), "aten::add_, which writes into a weight or buffer"),
        (lambda body, x: torch.rand(1), "aten::rand, which draws random numbers"),
        (count_up, "a change of its attribute 'calls'"),
    ],
)
def test_unrepeatable_operations_are_named_with_their_line(act: Callable[[Body, Tensor], Any], text: str) -> None:
    finding = found(act)
    assert finding.startswith(text)
    if "attribute" not in text:
        assert re.search(r"test_observe\.py:\d+: ", finding), finding


@pytest.mark.parametrize(
    "act",
    [
        lambda body, x: x.shape[2] > 3,
        lambda body, x: x[:, torch.tensor([0, 0, 1, 2])],
        lambda body, x: body.layer(x).relu_(),
        lambda body, x: 1 if body.count.item() == 0 else 2,  # a constant of the module
        lambda body, x: nn.functional.dropout(x, 0.5, training=False).mean(),
        lambda body, x: torch.zeros(1).add_(x.mean()),
    ],
)
def test_repeatable_operations_are_not_reported(act: Callable[[Body, Tensor], Any]) -> None:
    assert found(act) == ""


def test_an_lstm_in_eval_mode_draws_nothing() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 4, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    assert find_side_effects(Reader().eval(), (torch.rand(1, 5, 8),)) == {}


class Kept(nn.Module):
    """Has a head that reads, through an attribute, a tensor that the first layer of its body made."""

    def __init__(self, keep: Callable[[Kept], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.other = nn.Conv2d(4, 4, 1)
        self.kept: list[Tensor] = []
        keep(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.other(self.body(x))
        return found, self.kept.pop() if self.kept else found


@pytest.mark.parametrize(
    ("layer", "names"),
    [("body.0", {"body", "body.0"}), ("body.1", {"body", "body.1"}), ("body", {"body"}), ("other", {"other"})],
)
def test_a_tensor_that_is_used_outside_of_its_submodule_without_being_returned(layer: str, names: set[str]) -> None:
    def keep(detector: Kept) -> None:
        detector.get_submodule(layer).register_forward_hook(lambda _, __, made: detector.kept.append(made))

    findings = find_side_effects(Kept(keep).eval(), (small_image(),))
    assert findings.keys() == names
    assert all("used outside of it that it does not return" in finding for finding in findings.values())


def test_the_detectors_own_attributes_may_change() -> None:
    """Nothing reads them after the call. Another check finds reads in the next call."""
    detector = Kept(lambda kept: kept.register_forward_pre_hook(lambda _, given: (given[0] + 1,))).eval()
    detector.calls = 0
    detector.register_forward_hook(lambda module, _, __: setattr(module, "calls", module.calls + 1))
    assert find_side_effects(detector, (small_image(),)) == {}
    assert detector.calls > 0


def test_recorded_tensors_are_copies() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + 1
            features = self.body(x)
            x.zero_()
            return features.zero_()

    detector = Writes().eval()
    with recording(detector, ["body"]) as seen:
        detector(small_image())
    ((arguments, result),) = seen["body"]
    assert torch.equal(arguments["input"], small_image() + 1)
    assert torch.equal(result, detector.body(small_image() + 1))
    assert not detector.body._forward_hooks
