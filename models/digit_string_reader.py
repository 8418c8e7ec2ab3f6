"""A small reader of handwritten digit strings with trained weights: convolutions, then a recurrent head.

A convolutional backbone turns a line of digits into a row of features. A bidirectional LSTM and a linear layer turn
these into classes, and greedy CTC decoding turns them into a string. The backbone takes and returns one tensor, and a
converter makes it an engine; the rest stays TorchScript.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.digit_lines import LINE_HEIGHT, Line

__all__ = ["BLANK", "WEIGHTS", "DigitStringReader", "build", "evaluate", "load", "read", "to_tensor"]

WEIGHTS = Path(__file__).parent / "weights" / "digit_string_reader.pt"

BLANK = 10  # CTC's class for "no digit here"; the classes 0 to 9 are the digits
STRIDE = 4  # px of a line's width per step of the recurrent layer

_CHANNELS = (16, 32, 64, 96)
_POOLS = ((2, 2), (2, 2), (2, 1), (2, 1))  # a line's height shrinks to 2, its width to a quarter
_ROWS = LINE_HEIGHT // 16
_HIDDEN = 64

Read = Callable[[list[Tensor]], list[dict[str, Tensor]]]


def _backbone() -> nn.Sequential:
    """Returns a network that maps [N, 3, 32, W] to [N, 96, 2, W / 4]."""
    layers: list[nn.Module] = []
    before = 3
    for channels, pool in zip(_CHANNELS, _POOLS, strict=True):
        layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        layers.append(nn.MaxPool2d(pool))
        before = channels
    return nn.Sequential(*layers)


class DigitStringReader(nn.Module):
    """Reads the digits of each line, from left to right. It can be scripted."""

    def __init__(self) -> None:
        """Creates the layers with untrained weights."""
        super().__init__()
        # TorchScript can't access globals.
        self.line_height = LINE_HEIGHT
        self.stride = STRIDE
        self.blank = BLANK
        self.backbone = _backbone()
        self.recurrent = nn.LSTM(_CHANNELS[-1] * _ROWS, _HIDDEN, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(2 * _HIDDEN, BLANK + 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Reads lines.

        Args:
            images: At least one image, each float32 [3, H, W] in 0..1, of any size. They are resized to a height of
                32 px.

        Returns:
            For each image "digits", int64 [n] in 0..9, and "scores", float32 [n] in 0..1, the probability of each.
        """
        logits, lengths = self.logits(images)
        scores, classes = logits.softmax(dim=2).max(dim=2)
        found: list[dict[str, Tensor]] = []
        for i in range(len(images)):
            steps = classes[i, : int(lengths[i])]
            # A class over several steps is one digit. Two equal digits have a blank between them.
            begins = torch.ones_like(steps, dtype=torch.bool)
            begins[1:] = steps[1:] != steps[:-1]
            kept = torch.where(begins & (steps != self.blank))[0]
            found.append({"digits": steps[kept], "scores": scores[i][kept]})
        return found

    def logits(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the classes' logits at each step, in the form of CTC's loss.

        Args:
            images: See :meth:`forward`.

        Returns:
            float32 [N, steps, 11], padded to the longest, and the number of steps of each image, int64 [N].
        """
        batch, lengths = self.batch(images)
        features = self.backbone(batch)
        steps = features.flatten(1, 2).transpose(1, 2)
        packed = pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return self.classes(hidden), lengths

    def batch(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Resizes images to one height and pads them at the right to one width. Returns them and the steps of each."""
        lines: list[Tensor] = []
        widest = 1
        for image in images:
            height, width = image.shape[1], image.shape[2]
            if height != self.line_height:
                size = [self.line_height, max(1, width * self.line_height // height)]
                line = nn.functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
            else:
                line = image
            lines.append(line)
            widest = max(widest, line.shape[2])
        widest = (widest + self.stride - 1) // self.stride * self.stride
        batch = torch.zeros([len(lines), 3, self.line_height, widest])
        lengths: list[int] = []
        for i, line in enumerate(lines):
            batch[i, :, :, : line.shape[2]] = (line - 0.5) * 4.0
            lengths.append((line.shape[2] + self.stride - 1) // self.stride)
        return batch, torch.tensor(lengths)


def build() -> DigitStringReader:
    """Builds the reader with untrained weights, in training mode."""
    return DigitStringReader()


def load(weights: str | Path = WEIGHTS) -> DigitStringReader:
    """Loads the trained reader.

    Args:
        weights: A state dict that ``tools/train/digit_string_reader.py`` wrote.

    Returns:
        The reader in eval mode on the CPU, float32, without gradients.

    Raises:
        FileNotFoundError: The file of weights does not exist.
    """
    reader = build()
    reader.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return reader.requires_grad_(False).eval()


def to_tensor(image: np.ndarray) -> Tensor:
    """Turns a uint8 image [height, width, 3] into float32 [3, height, width] in 0..1."""
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().float().div(255.0)


def read(reader: Read, images: Sequence[np.ndarray], batch_size: int = 1) -> list[str]:
    """Reads images with a reader, or with a converted one.

    Args:
        reader: Takes a list of float32 images [3, H, W] and returns a dictionary with "digits" for each.
        images: uint8 arrays [H, W, 3].
        batch_size: Number of images per call.

    Returns:
        The string on each image.
    """
    texts = []
    for start in range(0, len(images), batch_size):
        with torch.inference_mode():
            found = reader([to_tensor(image) for image in images[start : start + batch_size]])
        texts += ["".join(str(digit) for digit in line["digits"].tolist()) for line in found]
    return texts


def evaluate(reader: Read, lines: Sequence[Line], batch_size: int = 16) -> float:
    """Returns the fraction of lines, in 0..1, whose whole string is read correctly."""
    texts = read(reader, [line.image for line in lines], batch_size)
    return sum(text == line.text for text, line in zip(texts, lines, strict=True)) / len(lines)
