#!/usr/bin/env python3
"""Trains the reader of models/digit_string_reader.py from scratch and writes its weights.

This takes about twelve minutes on one free CPU core. The weights are those of the last step: the held-out lines are
used only to report the score, never to choose.
"""

from __future__ import annotations

import argparse
import os
import time

# On shared cores, spinning threads triple the time of a step. OpenMP reads this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from models import digit_lines, digit_string_reader
from tools.train import runs


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = runs.make_parser(
        __doc__, steps=1500, batch_size=48, learning_rate=4e-3, output=digit_string_reader.WEIGHTS
    )
    parser.add_argument("--lines", type=int, default=1000, help="held-out lines at the end")
    return parser.parse_args()


def train(arguments: argparse.Namespace, console: Console) -> dict:
    """Trains, writes the weights, and returns the contents of the report."""
    torch.manual_seed(arguments.seed)
    reader = digit_string_reader.build().train()
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, total_steps=arguments.steps)
    loss_of = nn.CTCLoss(blank=digit_string_reader.BLANK)
    curve = runs.LossCurve()
    started = time.monotonic()
    for step in track(range(arguments.steps), "training", console=console):
        first = step * arguments.batch_size  # no image is used twice
        lines = [digit_lines.make_line("train", first + i, arguments.seed) for i in range(arguments.batch_size)]
        logits, lengths = reader.logits([digit_string_reader.to_tensor(line.image) for line in lines])
        targets = torch.tensor([int(digit) for line in lines for digit in line.text])
        counts = torch.tensor([len(line.text) for line in lines])
        loss = loss_of(logits.log_softmax(dim=2).transpose(0, 1), targets, lengths, counts)
        runs.update(reader, loss, optimizer, schedule, step=step, max_norm=5.0)
        if curve.add(step, {"loss": loss}):
            console.print(f"{time.monotonic() - started:6.0f} s  {curve.entries[-1]}")
    seconds = time.monotonic() - started
    runs.save_weights(reader, arguments.output)
    held_out = digit_lines.make_lines("held_out", arguments.lines)
    accuracy = digit_string_reader.evaluate(digit_string_reader.load(arguments.output), held_out)
    score = {"lines": arguments.lines, "seed": 0, "accuracy": round(accuracy, 4)}
    return runs.record_of(arguments, reader, seconds, score, losses=curve.entries)


def main() -> None:
    """Trains the reader and writes weights and numbers."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    report = train(arguments, console)
    path = arguments.output.with_name(f"{arguments.output.stem}_training.json")
    runs.write(report, arguments.output, path, console)


if __name__ == "__main__":
    main()
