"""A small classifier for scikit-learn's handwritten digits, as one writes it by hand.

Single pictures, one unlike the next, are the worst case for computing only what changed;
this network is there to show that the answers stay the same. Nothing in this file knows
about deltaconvert.
"""

from torch import Tensor, nn


def unit(c_in: int, c_out: int) -> list[nn.Module]:
    """3x3 convolution that keeps the size, BatchNorm, ReLU."""
    return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]


class DigitsCNN(nn.Module):
    """Five convolutions and a linear layer: `[N, 1, 8, 8]`, 0..1, to `[N, 10]` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *unit(1, 16), *unit(16, 16), nn.MaxPool2d(2),
            *unit(16, 32), *unit(32, 32), nn.MaxPool2d(2),
            *unit(32, 64),
        )  # fmt: skip
        self.classifier = nn.Linear(64 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(x.size(0), -1)
        return self.classifier(x)
