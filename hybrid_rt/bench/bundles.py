"""Compares bundles on the same images: latency, measured alternately, and mean average precision."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..bundle import archive
from ..common.atomic_files import atomic_write, check_writable
from ..common.errors import OptionError
from ..common.latency import Latency, benchmark
from ..verification import coco

PLOTS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class BundleBenchmark:
    """One bundle in the result of :func:`compare`.

    Attributes:
        name: name of the bundle in the table.
        latency: latency of one call with one image.
        accuracy: mAP on the dataset; None if none was given.
        size: size of the file, in bytes.
        engines: {engine: description of the variant that runs it}.
    """

    name: str
    latency: Latency
    accuracy: coco.Accuracy | None
    size: int
    engines: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)


def compare(
    bundles: Mapping[str, str | os.PathLike[str]],
    pictures: Sequence[Tensor],
    *,
    dataset: coco.CocoDataset | None = None,
    repeat: int = 20,
    threads: int = 0,
) -> list[BundleBenchmark]:
    """Runs bundles alternately on the same images.

    Args:
        bundles: {name: path of the bundle}. Each takes a list of images, like torchvision's detectors.
        pictures: images, float32 [3, H, W] in 0..1. The rounds take them one after the other; in a round, every
            bundle gets the same one.
        dataset: annotated dataset for the mean average precision; None: latency only.
        repeat: number of timed rounds.
        threads: threads per engine and call; 0: as many as torch uses.

    Returns:
        One row per bundle, in the order given.

    Raises:
        OptionError: there is no bundle or no image, or the dataset can't be used.
        BundleError: a bundle can't be read.
        BackendError: no variant of an engine can run here.

    Examples:
        >>> rows = hybrid_rt.compare({"first": "detector.pt", "second": "detector.pt"}, [image], repeat=3)
        >>> [(row.name, row.latency.count) for row in rows]
        [('first', 3), ('second', 3)]
    """
    if not bundles or not pictures:
        raise OptionError.make(
            "bench",
            "bundles" if not bundles else "pictures",
            expected="at least one",
            got="none",
        )
    truth = coco.read(dataset) if dataset is not None else None
    modules = {name: archive.load(path, threads=threads) for name, path in bundles.items()}
    latencies = benchmark({name: _in_turn(module, pictures) for name, module in modules.items()}, (), repeat=repeat)
    found: list[coco.Accuracy | None] = [None] * len(modules)
    if truth is not None:
        found = list(coco.accuracies(list(modules.values()), truth))
    return [
        BundleBenchmark(
            name,
            latencies[name],
            accuracy,
            Path(bundles[name]).stat().st_size,
            {choice["engine"]: choice["description"] for choice in archive.engines(module)},
        )
        for (name, module), accuracy in zip(modules.items(), found, strict=True)
    ]


def _in_turn(module: Callable[..., Any], images: Sequence[Tensor]) -> Callable[[], Any]:
    order = itertools.cycle(images)
    return lambda: module([next(order)])


def plot(rows: Sequence[BundleBenchmark], path: str | os.PathLike[str]) -> None:
    """Draws latency against mean average precision, one point per bundle; bars of latency if no accuracy is known.

    Args:
        rows: the result of :func:`compare`.
        path: path of a .png, .svg or .pdf.

    Raises:
        OptionError: The path has another suffix, or matplotlib is missing.
        BundleError: The file can't be written.
    """
    target = Path(path)
    check_plot(target)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2 if rows[0].accuracy else 1 + 0.5 * len(rows)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    if all(row.accuracy for row in rows):
        for i, row in enumerate(rows):
            assert row.accuracy is not None
            whisker: Any = [[0.0], [row.latency.p95 - row.latency.median]]
            axes.errorbar(
                row.latency.median,
                row.accuracy.mAP,
                xerr=whisker,
                fmt="o",
                capsize=3,
                color=f"C{i % 10}",
                label=row.name,
            )
        axes.set_ylabel("mAP (IoU 0.50 to 0.95)")
        axes.set_title("latency against accuracy", loc="left")
        axes.legend(loc="best", frameon=False)
        axes.margins(0.15)
    else:
        names = [row.name for row in rows]
        axes.barh(names, [row.latency.median for row in rows], color=[f"C{i % 10}" for i in range(len(rows))])
        axes.invert_yaxis()
        axes.set_title("latency", loc="left")
    axes.set_xlim(left=0)
    axes.set_xlabel(f"milliseconds per image (median of {rows[0].latency.count}, whisker to p95)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(target) as temporary:
        figure.savefig(temporary)


def check_plot(path: Path) -> None:
    """Checks before long work that a plot can be drawn to a path.

    Raises:
        OptionError: The path has another suffix, or matplotlib is missing.
        BundleError: The file can't be written.
    """
    if path.suffix.lower() not in PLOTS:
        raise OptionError.make(
            "bench", f"plot {path}", expected=f"a name that ends in one of {', '.join(PLOTS)}", got=f"'{path.suffix}'"
        )
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise OptionError.make(
            "bench", "plot", expected="the package matplotlib", got=str(error), remedy="pip install matplotlib"
        ) from error
    check_writable(path)
