#!/usr/bin/env python3
"""Trains the digit detector of models/digits_detector.py from scratch and writes its weights.

This takes about 35 minutes on two CPU cores. The weights are those of the last step: the held-out images are used only
to report the score, never to choose.
"""

from __future__ import annotations

import argparse
import json
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

_LOG_EVERY = 50  # steps per entry of the loss curve

# Training on windows with as many digits as a whole image halves the time per step. The detector's own resizing shrinks
# the held-out images (240..320 px high) to 256 px, by 0.9 on average; a shorter side of 170 px has the same effect on
# the windows.
_WINDOW_HEIGHT = (168, 208)
_WINDOW_WIDTH = (224, 288)
_WINDOW_MIN_SIZE = 170


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of weights, pictures and order")
    parser.add_argument("--steps", type=int, default=1100, help="number of weight updates")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of the one-cycle")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--pictures", type=int, default=200, help="held-out pictures at the end")
    parser.add_argument(
        "--output",
        type=Path,
        default=digits_detector.WEIGHTS,
        help="file for the weights; training.json is written beside it",
    )
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


def save_weights(detector: nn.Module, path: Path) -> None:
    """Writes a plain state dict to a temporary file and renames it, so that no partial file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in detector.state_dict().items()}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def score(detector: nn.Module, pictures: int) -> dict[str, float]:
    """Measures the detector on the first held-out images and puts it back into training mode."""
    held_out = digits_data.make_split("held_out", pictures)
    window_min_size = detector.transform.min_size
    detector.transform.min_size = digits_detector.build().transform.min_size
    result = digits_detector.evaluate(detector.eval(), held_out)
    detector.transform.min_size = window_min_size
    detector.train()
    return result


class LossCurve:
    """Means of each loss over every ``_LOG_EVERY`` steps."""

    def __init__(self) -> None:
        """Starts an empty curve."""
        self.entries: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}

    def add(self, step: int, parts: dict[str, Tensor]) -> bool:
        """Adds the losses of a step, starting at 0. Returns true if that completed an entry."""
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.item() / _LOG_EVERY
        if (step + 1) % _LOG_EVERY:
            return False
        self.entries.append({"step": step + 1} | {name: round(value, 4) for name, value in self._sums.items()})
        self._sums = {}
        return True


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


def run_steps(detector: nn.Module, arguments: argparse.Namespace, console: Console) -> LossCurve:
    """Updates the weights and writes checkpoints.

    Raises:
        RuntimeError: A loss is not finite.
    """
    optimizer, schedule = make_optimizer(detector, arguments)
    curve = LossCurve()
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for step in progress.track(range(arguments.steps), description="training"):
            parts = detector(*training_batch(step, arguments.batch_size, arguments.seed))
            loss = torch.stack(list(parts.values())).sum()
            if not torch.isfinite(loss):
                raise RuntimeError(f"step {step}: expected a finite loss, got {loss.item()}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), max_norm=10.0)
            optimizer.step()
            schedule.step()
            if curve.add(step, parts):
                console.print(f"{time.monotonic() - started:6.0f} s  {curve.entries[-1]}")
            if (step + 1) % arguments.checkpoint_every == 0 and step + 1 < arguments.steps:
                save_weights(detector, arguments.checkpoint)
                console.print(f"checkpoint at {step + 1}: {score(detector, 40)} (40 pictures)")
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
    save_weights(detector, arguments.output)
    result = score(digits_detector.load(arguments.output), arguments.pictures)
    return {
        "seed": arguments.seed,
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "threads": arguments.threads,
        "seconds": round(seconds),
        "held_out": {"pictures": arguments.pictures, "seed": 0}
        | {name: round(value, 4) for name, value in result.items()},
        "parameters": sum(p.numel() for p in detector.parameters()),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "losses": curve.entries,
    }


def main() -> None:
    """Trains the detector and writes weights and numbers."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    report = train(arguments, console)
    path = arguments.output.with_name("training.json")
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print({name: value for name, value in report.items() if name != "losses"})
    console.print(f"wrote {arguments.output} and {path}")


if __name__ == "__main__":
    main()
