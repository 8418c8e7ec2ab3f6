"""A text line reader (CRNN): convolutions down to one row, two LSTMs along it, a class per column.

python examples/convert/crnn.py crnn.pt
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import hybrid_rt

CLASSES = 37


class BidirectionalLstm(nn.Module):
    """A bidirectional LSTM that maps [columns, N, channels] to [columns, N, out]."""

    def __init__(self, channels: int, hidden: int, out: int) -> None:
        """Builds the LSTM and the layer over its two directions."""
        super().__init__()
        self.rnn = nn.LSTM(channels, hidden, bidirectional=True)
        self.embedding = nn.Linear(2 * hidden, out)

    def forward(self, columns: Tensor) -> Tensor:
        """Returns the features of each column."""
        recurrent, _ = self.rnn(columns)
        length, batch, channels = recurrent.size()
        return self.embedding(recurrent.view(length * batch, channels)).view(length, batch, -1)


class Crnn(nn.Module):
    """Maps grey lines [N, 1, 32, W] to logits [columns, N, classes], one column per four pixels."""

    def __init__(self) -> None:
        """Builds the convolutions and the two LSTMs."""
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d(2, 2),
            nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d(2, 2),
            nn.Conv2d(32, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(True), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            nn.Conv2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(True), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            nn.Conv2d(64, 64, 2), nn.BatchNorm2d(64), nn.ReLU(True),
        )  # fmt: skip
        self.rnn = nn.Sequential(BidirectionalLstm(64, 32, 32), BidirectionalLstm(32, 32, CLASSES))

    def forward(self, lines: Tensor) -> Tensor:
        """Returns the logits of each column."""
        features = self.cnn(lines)
        assert features.size(2) == 1, "the height of a line must be 32"
        return self.rnn(features.squeeze(2).permute(2, 0, 1))


def build() -> nn.Module:
    """Returns a model with random weights. Load yours from a checkpoint."""
    torch.manual_seed(0)
    return Crnn().eval().requires_grad_(False)


def main(path: str) -> None:
    """Converts the model, and compares the loaded file with it at a length that the conversion did not use."""
    reader = build()
    shapes = {"batch": (1, 8), "height": (32, 32), "width": (32, 512)}
    result = hybrid_rt.convert(reader, (torch.rand(2, 1, 32, 100),), path, shapes=shapes)
    print(result.report)

    lines = torch.rand(3, 1, 32, 217)
    torch.testing.assert_close(hybrid_rt.load(path)(lines), reader(lines), rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1])
