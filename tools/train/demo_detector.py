#!/usr/bin/env python3
"""Trains the digit detector of models/digits_detector.py from scratch and writes its weights.

This takes about 35 minutes on two CPU cores. The weights are those of the last step: the held-out images are used only
to report the score, never to choose.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

# On shared cores, spinning threads triple the time of a step. OpenMP reads this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torchvision
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from models import digits_data, digits_detector
from tools.train import runs

# Training on windows with as many digits as a whole image halves the time per step. The detector's own resizing shrinks
# the held-out images (240..320 px high) to 256 px, by 0.9 on average; a shorter side of 170 px has the same effect on
# the windows.
_WINDOW_HEIGHT = (168, 208)
_WINDOW_WIDTH = (224, 288)
_WINDOW_MIN_SIZE = 170


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = runs.make_parser(__doc__, steps=1100, batch_size=8, learning_rate=2e-3, output=digits_detector.WEIGHTS)
    parser.add_argument("--pictures", type=int, default=200, help="held-out images at the end")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(tempfile.gettempdir()) / "digits_fasterrcnn_checkpoint.pt",
        help="file for the weights so far, outside the repository",
    )
    parser.add_argument("--checkpoint-every", type=int, default=150, help="steps between checkpoints")
    return parser.parse_args()


def training_batch(step: int, batch_size: int, seed: int) -> tuple[list[Tensor], list[dict]]:
    """Creates the images of one step. No image is ever used twice.

    Returns:
        The images, each float32 [3, height, width], and torchvision's targets.
    """
    samples = [
        digits_data.make_sample(
            "train",
            step * batch_size + position,
            seed,
            height_range=_WINDOW_HEIGHT,
            width_range=_WINDOW_WIDTH,
        )
        for position in range(batch_size)
    ]
    images = [digits_detector.to_tensor(sample.image) for sample in samples]
    targets = [
        {"boxes": torch.from_numpy(sample.boxes), "labels": torch.from_numpy(sample.labels)} for sample in samples
    ]
    return images, targets


def score(detector: nn.Module, images: int) -> dict[str, float]:
    """Measures the detector on the first held-out images and puts it back into training mode."""
    held_out = digits_data.make_split("held_out", images)
    window_min_size = detector.transform.min_size
    detector.transform.min_size = digits_detector.build().transform.min_size
    result = digits_detector.evaluate(detector.eval(), held_out)
    detector.transform.min_size = window_min_size
    detector.train()
    return result


def make_optimizer(
    detector: nn.Module, arguments: argparse.Namespace
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Returns AdamW with weight decay only on weights, and one cycle of the learning rate."""
    decayed = [p for p in detector.parameters() if p.ndim > 1]
    others = [p for p in detector.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.learning_rate, total_steps=arguments.steps, pct_start=0.15
    )
    return optimizer, schedule


def run_steps(detector: nn.Module, arguments: argparse.Namespace, console: Console) -> runs.LossCurve:
    """Updates the weights and writes checkpoints.

    Raises:
        RuntimeError: A loss is not finite.
    """
    optimizer, schedule = make_optimizer(detector, arguments)
    curve = runs.LossCurve()
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for step in progress.track(range(arguments.steps), description="training"):
            parts = detector(*training_batch(step, arguments.batch_size, arguments.seed))
            loss = torch.stack(list(parts.values())).sum()
            runs.update(detector, loss, optimizer, schedule, step=step, max_norm=10.0)
            if curve.add(step, parts):
                console.print(f"{time.monotonic() - started:6.0f} s  {curve.entries[-1]}")
            if (step + 1) % arguments.checkpoint_every == 0 and step + 1 < arguments.steps:
                runs.save_weights(detector, arguments.checkpoint)
                console.print(f"checkpoint at {step + 1}: {score(detector, 40)} (40 images)")
    return curve


def train(arguments: argparse.Namespace, console: Console) -> dict:
    """Trains, writes the weights, and returns the contents of training.json."""
    torch.manual_seed(arguments.seed)
    # channels_last is about a quarter faster here; the saved weights are contiguous again.
    detector = digits_detector.build().to(memory_format=torch.channels_last).train()
    detector.transform.min_size = (_WINDOW_MIN_SIZE,)
    started = time.monotonic()
    curve = run_steps(detector, arguments, console)
    seconds = time.monotonic() - started
    runs.save_weights(detector, arguments.output)
    result = score(digits_detector.load(arguments.output), arguments.pictures)
    return runs.record_of(
        arguments,
        detector,
        seconds,
        {"pictures": arguments.pictures, "seed": 0} | {name: round(value, 4) for name, value in result.items()},
        torchvision=torchvision.__version__,
        losses=curve.entries,
    )


def main() -> None:
    """Trains the detector and writes weights and numbers."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    report = train(arguments, console)
    runs.write(report, arguments.output, arguments.output.with_name("training.json"), console)


if __name__ == "__main__":
    main()
