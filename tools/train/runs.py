"""Defines the options of training runs, and writes their weights, losses and records."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

_LOG_EVERY = 50
"""Number of steps per entry of the loss curve."""


def make_parser(
    description: str | None, *, steps: int, batch_size: int, learning_rate: float, output: Path
) -> argparse.ArgumentParser:
    """Returns a parser of the options that all runs share.

    Args:
        description: Description of the program.
        steps: Default of ``--steps``.
        batch_size: Default of ``--batch-size``.
        learning_rate: Default of ``--learning-rate``.
        output: Default of ``--output``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of weights, images and order")
    parser.add_argument("--steps", type=int, default=steps, help="number of weight updates")
    parser.add_argument("--batch-size", type=int, default=batch_size, help="images per step")
    parser.add_argument("--learning-rate", type=float, default=learning_rate, help="peak of the one-cycle")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument(
        "--output", type=Path, default=output, help="file for the weights; the record of the run is written beside it"
    )
    return parser


class LossCurve:
    """Means of each loss over every ``_LOG_EVERY`` steps."""

    def __init__(self) -> None:
        """Starts an empty curve."""
        self.entries: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}

    def add(self, step: int, parts: Mapping[str, Tensor]) -> bool:
        """Adds the losses of a step, starting at 0. Returns true if that completed an entry."""
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.item() / _LOG_EVERY
        if (step + 1) % _LOG_EVERY:
            return False
        self.entries.append({"step": step + 1} | {name: round(value, 4) for name, value in self._sums.items()})
        self._sums = {}
        return True


def update(
    model: nn.Module,
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    step: int,
    max_norm: float,
) -> None:
    """Updates the weights by one step.

    Args:
        model: The model, in training mode.
        loss: Loss of the step.
        optimizer: Optimizer of the model's parameters.
        schedule: Schedule of the optimizer's learning rate.
        step: Number of the step, starting at 0.
        max_norm: Limit of the gradient's norm.

    Raises:
        RuntimeError: The loss is not finite.
    """
    if not torch.isfinite(loss):
        raise RuntimeError(f"step {step}: expected a finite loss, got {loss.item()}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=max_norm)
    optimizer.step()
    schedule.step()


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a plain state dict to a temporary file and renames it, so that no partial file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def record_of(
    arguments: argparse.Namespace, model: nn.Module, seconds: float, held_out: Mapping[str, Any], **others: Any
) -> dict[str, Any]:
    """Returns the record of a run.

    Args:
        arguments: Arguments parsed by :func:`make_parser`.
        model: The trained model.
        seconds: Duration of the training.
        held_out: Score on held-out data, and their description.
        others: Further entries.
    """
    options = {name: getattr(arguments, name) for name in ("seed", "steps", "batch_size", "learning_rate", "threads")}
    return {
        **options,
        "seconds": round(seconds),
        "held_out": held_out,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        **others,
    }


def write(record: Mapping[str, Any], weights: Path, path: Path, console: Console) -> None:
    """Writes the record of a run to a file, and prints the record and the paths."""
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    console.print({name: value for name, value in record.items() if name != "losses"})
    console.print(f"wrote {weights} and {path}")
