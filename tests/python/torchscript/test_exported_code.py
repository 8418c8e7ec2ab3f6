"""Tests of the source line that an error about an exported head names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hybrid_rt
from hybrid_rt.torchscript.exported_code import _user_line

OURS = Path(hybrid_rt.__file__).parent / "capture" / "export_head.py"
TORCHS = Path(torch.__file__).parent / "nn" / "functional.py"


@pytest.mark.parametrize("directory", ["/home/user", "/srv/hybrid_rt/models", "/srv/torch/hybrid_rt/x"])
def test_the_users_line_is_named_whatever_its_directory_is_called(directory: str) -> None:
    node = torch.fx.Graph().placeholder("x")
    frames = [(f"{directory}/head.py", 12), (TORCHS, 5849), (OURS, 3)]
    node.meta["stack_trace"] = "\n".join(f'  File "{file}", line {line}, in forward\n    x' for file, line in frames)
    assert _user_line(node) == " at head.py:12"


def test_without_a_line_of_the_users_none_is_named() -> None:
    node = torch.fx.Graph().placeholder("x")
    assert _user_line(node) == ""
    node.meta["stack_trace"] = f'File "{TORCHS}", line 1, in forward\n    x'
    assert _user_line(node) == ""
