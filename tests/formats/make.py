"""Writes the file that stands for a released format: once, with the version that releases it.

    python -m tests.formats.make

``v1.delta`` and the like are never written again: what they prove is that every later
version still reads them, to the same outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert.files import VERSION
from deltaconvert.outputs import named_outputs

FOLDER = Path(__file__).parent


class Answer(NamedTuple):
    maps: list[Tensor]
    score: Tensor


class Everything(nn.Module):
    """A little of all that a file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
                                   nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.tied = self.second
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 3)
        self.head.bias = nn.Parameter(torch.zeros(3))
        self.register_buffer("offset", torch.full((8, 1, 1), 0.25))
        self.register_buffer("hidden", torch.full((8, 1, 1), 2.0), persistent=False)
        self.register_buffer("labels", torch.arange(3, dtype=torch.int16))
        self.plain = torch.full((8, 1, 1), 0.5)

    def forward(self, x: Tensor) -> Answer:
        x = self.first(x)
        y = self.tied(F.silu(self.second(x))) + x
        y = self.norm(y) * self.hidden + self.offset - self.plain
        y[:, :2] += 1.0
        up = F.interpolate(y, scale_factor=2, mode="nearest")
        score = torch.softmax(self.head(y.mean((2, 3))), 1)
        return Answer([torch.cat((up, up.sigmoid()), 1), y.max(1)[0]], score)


def frames() -> list[Tensor]:
    """Three frames; a corner of them moves."""
    made = [torch.linspace(-1, 1, 3 * 12 * 16).view(1, 3, 12, 16).sin()]
    for step in (1, 2):
        frame = made[-1].clone()
        frame[..., step:step + 4, step:step + 4] = 0.3 * step
        made.append(frame)
    return made


def outputs(delta: deltaconvert.DeltaModule) -> dict[str, np.ndarray]:
    """What a model answers to the frames, by frame and place."""
    return {f"{time}.{name}": value.numpy() for time, frame in enumerate(frames())
            for name, value in named_outputs(delta(frame))}


def main() -> None:
    path = FOLDER / f"v{VERSION}.delta"
    if path.exists():
        raise SystemExit(f"{path.name} is there: a released format does not change.")
    torch.manual_seed(0)
    model = Everything().eval()
    model.first[1].running_mean.uniform_(-0.2, 0.2)
    delta = deltaconvert.convert(
        model, backend="reference", threshold=0.01, nodes={"second*": 0.02},
        preprocessing=deltaconvert.Preprocessing("bgr", (0.5,), (0.25, 0.5, 0.25)))
    deltaconvert.save(delta, path)
    np.savez(path.with_suffix(".npz"), **outputs(delta))


if __name__ == "__main__":
    main()
