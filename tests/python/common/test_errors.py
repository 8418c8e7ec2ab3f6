"""Tests that the code of a refusal ends its text, once, however the error is passed on."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

from hybrid_rt import BackendError, BundleError, CaptureError, HybridRTError
from hybrid_rt.common.error_text import described
from hybrid_rt.common.errors import FusionError, common_code, split_code

TEXT = "hybrid_rt[capture]: segment 'backbone': expected one thing, got another. Change it."


def made(code: str = "keeps-state") -> CaptureError:
    return CaptureError.make(
        "capture", "segment 'backbone'", expected="one thing", got="another", remedy="Change it.", code=code
    )


def test_the_code_ends_the_text() -> None:
    assert (str(made()), made().code) == (f"{TEXT} [keeps-state]", "keeps-state")
    assert (str(made("")), made("").code) == (TEXT, "")
    without_remedy = CaptureError.make("capture", "a", expected="b", got="c", code="no-head-fits")
    assert str(without_remedy) == "hybrid_rt[capture]: a: expected b, got c. [no-head-fits]"


@pytest.mark.parametrize(
    "text",
    [
        *("sizes [1, 3, 32, 48]", "got ['a', 'b']", "got [cpu]", "[keeps-state] first", "no space[keeps-state]", ""),
        *("got [Keeps-State]", "two lines [keeps-state]\n", "got [-state]", "got [-1]"),
    ],
)
def test_other_brackets_are_not_a_code(text: str) -> None:
    assert HybridRTError(text).code == ""
    assert split_code(text) == (text, "")


def test_an_error_derived_from_another_keeps_the_code() -> None:
    assert BackendError(str(made())).code == "keeps-state"
    fusion = FusionError.of(["a", "b"], made())
    assert (fusion.code, str(fusion)) == ("keeps-state", str(made()))
    again = pickle.loads(pickle.dumps(made()))  # as received from another process
    assert (type(again), again.code) == (CaptureError, "keeps-state")


def test_an_added_remedy_precedes_the_code() -> None:
    extended = made().extended("Or leave it.")
    assert (str(extended), extended.code) == (f"{TEXT} Or leave it. [keeps-state]", "keeps-state")
    assert str(made("").extended("Or leave it.")) == f"{TEXT} Or leave it."
    fusion = FusionError.of(["a", "b"], made()).extended("Or leave it.")
    assert (type(fusion), fusion.segments) == (FusionError, ("a", "b"))


def test_an_error_inside_another_drops_its_code() -> None:
    outer = CaptureError.make("capture", "x", expected="y", got=described(made()), code="sizes-not-taken")
    assert outer.code == "sizes-not-taken"
    assert "keeps-state" not in str(outer)
    assert "Change it." in str(outer)
    assert described(ValueError("got [keeps-state]")) == "ValueError: got [keeps-state]"


def test_several_errors_share_only_a_common_code() -> None:
    assert common_code(["a [keeps-state]", "b [keeps-state]"], "no-head-fits") == "keeps-state"
    assert common_code(["a [keeps-state]", "b [value-not-plain]"], "no-head-fits") == "no-head-fits"
    assert common_code(["a [keeps-state]", "b"], "no-head-fits") == "no-head-fits"
    assert common_code(["a", "b"], "no-head-fits") == "no-head-fits"
    assert common_code([], "no-head-fits") == "no-head-fits"


def test_control_characters_are_escaped() -> None:
    """A message may quote a file. A terminal obeys escape sequences."""
    error = BundleError.make("bundle", "record 'a\x00\x1b[31m\x9b'", expected="x\ty", got="1\n2", code="not-a-bundle")
    assert str(error) == ("hybrid_rt[bundle]: record 'a\\x00\\x1b[31m\\x9b': expected x\ty, got 1\n2. [not-a-bundle]")


class Compares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * "a"  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_the_line_of_the_code_stands_instead_of_all_overloads() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.jit.script(Compares())
    text = described(caught.value)
    assert "Expected a value of type 'Tensor' for argument 'other' but instead found type 'str'." in text
    assert 'return x * "a"' in text
    assert text.count("aten::mul") == 1
    assert len(text.splitlines()) < 10
