"""Maps of no pixels, which a slice of a small map may be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deltaconvert


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y, y[:, :, 2:3]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_map_without_rows(backend: str) -> None:
    model = Cut().eval()
    delta = deltaconvert.convert(model, backend=backend)
    for frame in torch.randn(3, 2, 3, 1, 7):
        with torch.no_grad():
            torch.testing.assert_close(delta(frame), model(frame), rtol=1e-5, atol=1e-5)
    assert "conv" in delta.summary()
