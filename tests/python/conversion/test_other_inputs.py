"""Tests of inputs that are not images: the sizes that differ among ``verify_inputs`` are free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from hybrid_rt.capture.find_images import find_images
from hybrid_rt.capture.probe_inputs import samples_of
from hybrid_rt.common.errors import OptionError


class PointDetector(nn.Module):
    """Scores points [n, 4] by their own features and those of all points."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(64, 8)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(points)
        together = features.amax(0, keepdim=True).expand_as(features)
        found = self.head(torch.cat([features, together], 1))
        scores = found[:, 7].sigmoid()
        keep = scores > 0.5
        return found[keep, :7], scores[keep]


class Pillars(nn.Module):
    """Scatters features of voxels [n, p, 4] to a map of their coordinates [n, 3], as PointPillars does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.voxels = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
        self.backbone = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Conv2d(16, 8, 1)

    def forward(self, voxels: Tensor, counts: Tensor, places: Tensor) -> dict[str, Tensor]:
        mask = torch.arange(voxels.shape[1], device=voxels.device)[None, :] < counts[:, None]
        features = (self.voxels(voxels) * mask[:, :, None]).amax(1)
        canvas = torch.zeros(16, 24 * 32, dtype=features.dtype, device=features.device)
        canvas[:, places[:, 1] * 32 + places[:, 2]] = features.t()
        found = self.head(self.backbone(canvas.view(1, 16, 24, 32)))[0].flatten(1).t()
        scores, order = found[:, 7].sigmoid().topk(20)
        return {"boxes": found[order, :7], "scores": scores}


def points(count: int) -> tuple[Tensor]:
    return (torch.randn(count, 4, generator=torch.Generator().manual_seed(count)),)


def voxels(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    cells = torch.randperm(24 * 32, generator=generator)[:count]
    places = torch.stack([torch.zeros_like(cells), cells // 32, cells % 32], 1)
    return torch.randn(count, 9, 4, generator=generator), torch.randint(1, 10, (count,), generator=generator), places


@pytest.mark.parametrize("engine", ["torchscript", "openvino"])
@pytest.mark.parametrize(("detector", "inputs"), [(PointDetector, points), (Pillars, voxels)])
def test_any_number_of_points_is_taken_if_the_further_inputs_have_another(
    detector: type[nn.Module], inputs: Callable[[int], tuple[Any, ...]], engine: str, tmp_path: Path
) -> None:
    eager, path = detector().eval(), tmp_path / "found.pt"
    hybrid_rt.convert(eager, inputs(40), path, engine=engine, verify_inputs=[inputs(17)], measure=False)
    hybrid = hybrid_rt.load(path)
    for count in (40, 17, 1, 333):
        torch.testing.assert_close(hybrid(*inputs(count)), eager(*inputs(count)), rtol=1e-4, atol=1e-4)


def test_another_number_of_points_is_refused_by_name_without_them(tmp_path: Path) -> None:
    path = tmp_path / "points.pt"
    hybrid_rt.convert(PointDetector().eval(), points(40), path, engine="torchscript", measure=False)
    hybrid = hybrid_rt.load(path)
    with pytest.raises(RuntimeError, match=r"dimension 0: expected 40x4 float32, got 41x4"):
        hybrid(*points(41))


def test_a_range_by_the_name_of_another_input_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="For inputs that are not images, pass verify_inputs= with other sizes"):
        hybrid_rt.convert(PointDetector().eval(), points(40), tmp_path / "no.pt", shapes={"points": (1, 100)})


class WritesIntoItsInputs(nn.Module):
    """Passes features on in the dict that it gets, as OpenPCDet does, and normalises the image in place."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, stride=4, padding=1)

    def forward(self, batch: dict[str, Tensor], levels: list[Tensor]) -> dict[str, Tensor]:
        batch["image"].sub_(0.5).div_(0.25)
        batch["features"] = self.backbone(batch["image"])
        levels.append(batch["features"].relu())
        return {"scores": levels[0].sigmoid(), "found": levels[-1]}


@pytest.mark.parametrize("head", ["script", "export", "trace"])
def test_arguments_that_the_detector_changes(head: str, tmp_path: Path) -> None:
    def arguments() -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(3)
        return {"image": torch.rand(1, 3, 32, 48, generator=generator)}, [torch.rand(1, 5, generator=generator)]

    detector, example, path = WritesIntoItsInputs().eval(), arguments(), tmp_path / "writes.pt"
    options = {"segments": ["backbone"], "engine": "torchscript", "head": head}
    report = hybrid_rt.convert(detector, example, path, **options).report
    assert report.measurement is not None
    torch.testing.assert_close(example, arguments())
    torch.testing.assert_close(hybrid_rt.load(path)(*arguments()), detector(*arguments()))


class Guided(nn.Module):
    """Takes an image and points."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        return self.layer(image).mean() * points


def test_only_other_inputs_vary_and_each_size_runs_once() -> None:
    detector = Guided().eval()
    image = torch.rand(1, 3, 32, 32)
    example = (image, torch.rand(5, 2))
    images = find_images(detector, example, None)
    further = [
        (image, torch.rand(5, 2)),  # the example's sizes
        (torch.rand(1, 3, 48, 32), torch.rand(6, 2)),  # sizes of images are named by shapes=
        (image, torch.rand(7, 2)),
        (image, torch.rand(7, 2)),
    ]
    usual = samples_of(detector, example, images, None)
    more = samples_of(detector, example, images, None, further)
    assert [sample.arguments for sample in more[len(usual) :]] == [further[2]]
