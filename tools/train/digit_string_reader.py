#!/usr/bin/env python3
"""Trains the reader of models/digit_string_reader.py from scratch and writes its weights.

This takes about twelve minutes on one free CPU core. The weights are those of the last step: the held-out lines are
used only to report the score, never to choose.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

# On shared cores, spinning threads triple the time of a step. OpenMP reads this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from models import digit_lines, digit_string_reader

_LOG_EVERY = 50  # steps per entry of the loss curve


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of weights, pictures and order")
    parser.add_argument("--steps", type=int, default=1500, help="number of weight updates")
    parser.add_argument("--batch-size", type=int, default=48, help="pictures per step")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak of the one-cycle")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--lines", type=int, default=1000, help="held-out lines at the end")
    parser.add_argument(
        "--output",
        type=Path,
        default=digit_string_reader.WEIGHTS,
        help="file for the weights; NAME_training.json is written beside it",
    )
    return parser.parse_args()


def train(arguments: argparse.Namespace, console: Console) -> dict:
    """Trains, writes the weights, and returns the contents of the report."""
    torch.manual_seed(arguments.seed)
    reader = digit_string_reader.build().train()
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, total_steps=arguments.steps)
    loss_of = nn.CTCLoss(blank=digit_string_reader.BLANK)
    losses: list[dict[str, float]] = []
    mean = 0.0
    started = time.monotonic()
    for step in track(range(arguments.steps), "training", console=console):
        first = step * arguments.batch_size  # no image is used twice
        lines = [digit_lines.make_line("train", first + i, arguments.seed) for i in range(arguments.batch_size)]
        logits, lengths = reader.logits([digit_string_reader.to_tensor(line.image) for line in lines])
        targets = torch.tensor([int(digit) for line in lines for digit in line.text])
        counts = torch.tensor([len(line.text) for line in lines])
        loss = loss_of(logits.log_softmax(dim=2).transpose(0, 1), targets, lengths, counts)
        if not torch.isfinite(loss):
            raise RuntimeError(f"step {step}: expected a finite loss, got {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), max_norm=5.0)
        optimizer.step()
        schedule.step()
        mean += loss.item() / _LOG_EVERY
        if (step + 1) % _LOG_EVERY == 0:
            losses.append({"step": step + 1, "loss": round(mean, 4)})
            console.print(f"{time.monotonic() - started:6.0f} s  {losses[-1]}")
            mean = 0.0
    seconds = time.monotonic() - started
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.output.with_suffix(".partial")
    torch.save(reader.state_dict(), partial)
    os.replace(partial, arguments.output)
    held_out = digit_lines.make_lines("held_out", arguments.lines)
    accuracy = digit_string_reader.evaluate(digit_string_reader.load(arguments.output), held_out)
    return {
        "seed": arguments.seed,
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "threads": arguments.threads,
        "seconds": round(seconds),
        "held_out": {"lines": arguments.lines, "seed": 0, "accuracy": round(accuracy, 4)},
        "parameters": sum(p.numel() for p in reader.parameters()),
        "torch": torch.__version__,
        "losses": losses,
    }


def main() -> None:
    """Trains the reader and writes weights and numbers."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    report = train(arguments, console)
    path = arguments.output.with_name(f"{arguments.output.stem}_training.json")
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print({name: value for name, value in report.items() if name != "losses"})
    console.print(f"wrote {arguments.output} and {path}")


if __name__ == "__main__":
    main()
