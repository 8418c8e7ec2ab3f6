"""What the README shows runs as it stands there; only the pretrained weights, which need a network, are replaced."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torchvision
from conftest import ROOT
from PIL import Image
from torch import nn

import hybrid_rt
from hybrid_rt.cli import main

README = (ROOT / "README.md").read_text()


@pytest.fixture
def street(tmp_path: Path, demo_picture: Path, demo_detector: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with street.jpg; torchvision's Faster R-CNN is the demo detector."""
    monkeypatch.chdir(tmp_path)
    Image.open(demo_picture).convert("RGB").save("street.jpg", quality=95)
    monkeypatch.setattr(torchvision.models.detection, "fasterrcnn_resnet50_fpn", lambda weights: demo_detector)
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: demo_detector)
    return tmp_path


def test_the_python_block_runs(street: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    (detections,) = names["detections"]
    assert len(detections["boxes"]) >= 5
    assert hybrid_rt.check(street / "detector.pt")[0].chosen is not None


def test_the_command_lines_run(street: Path) -> None:
    commands = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (hybrid-rt .*)$", README, re.M)]
    assert [command[0] for command in commands] == ["convert", "inspect", "check", "detect", "doctor"]
    for command in commands:
        if command[0] == "detect":  # replaces the process
            subprocess.run(["hybrid-rt", *command], check=True)
        else:
            assert main(command) == 0


def test_the_folders_and_files_that_it_names_exist() -> None:
    for link in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / link).exists(), link
    for tool in set(re.findall(r"`?(tools/[\w./-]+)", README)):
        assert (ROOT / tool).exists(), tool
