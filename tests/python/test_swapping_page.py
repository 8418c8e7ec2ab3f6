"""What docs/swapping.md shows runs as it stands there; only the weights that need a network are replaced."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import ROOT
from test_swap import deeper_demo_backbone
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

import hybrid_rt
from hybrid_rt.cli import main
from models import digits_detector

PAGE = (ROOT / "docs" / "swapping.md").read_text()

MY_MODELS = """
from models import digits_detector
from test_swap import deeper_demo_backbone

def other_backbone():
    return deeper_demo_backbone(digits_detector.load())
"""


@pytest.fixture
def folder(tmp_path: Path, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with detector.pt and my_models.py; torchvision's Faster R-CNN is the demo detector."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "detector.pt").symlink_to(demo_bundle)
    (tmp_path / "my_models.py").write_text(MY_MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    monkeypatch.setattr(torchvision.models.detection, "fasterrcnn_resnet50_fpn", lambda weights: digits_detector.load())
    return tmp_path


def test_the_python_blocks_run(folder: Path, demo_image: Tensor, demo_detector: FasterRCNN) -> None:
    names: dict[str, object] = {"image": demo_image}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    compiled = names["detector"]
    assert isinstance(compiled, nn.Module)
    torch.testing.assert_close(
        compiled([demo_image])[0]["boxes"], demo_detector([demo_image])[0]["boxes"], rtol=1e-3, atol=0.1
    )
    assert len(names["detections"][0]["boxes"]) > 3
    assert hybrid_rt.inspect(folder / "other.pt")["segments"][0]["swapped"]["segment"] == "backbone"


def test_the_command_lines_run(folder: Path) -> None:
    commands = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (hybrid-rt .*)$", PAGE, re.M)]
    assert [command[0] for command in commands] == ["swap", "inspect", "check", "extract"]
    for command in commands:
        assert main(command) == 0
    assert (folder / "engines" / "backbone-openvino-fp32.xml").exists()


def test_the_error_that_it_shows_is_the_one_that_comes(folder: Path, demo_detector: FasterRCNN) -> None:
    class BackboneWithFPN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = deeper_demo_backbone(demo_detector)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.inner(x)
            wide = nn.functional.avg_pool2d(torch.cat([features["0"]] * 4, dim=1), 2)
            return {"0": wide, **{key: features[key] for key in ("1", "2", "3")}}

    with pytest.raises(hybrid_rt.OptionError) as caught:
        hybrid_rt.swap_backbone("detector.pt", BackboneWithFPN().eval(), "other.pt")
    (shown,) = re.findall(r"\n    (hybrid_rt\[swap\]: .*?)\n\n", PAGE, flags=re.DOTALL)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[:4] == [line.strip() for line in shown.splitlines()]


def test_the_pages_that_it_names_exist() -> None:
    for link in re.findall(r"\]\(([\w./-]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
