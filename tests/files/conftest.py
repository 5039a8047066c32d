"""A file to be damaged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.files import save
from tests.files.saving import trained


@pytest.fixture
def path(tmp_path):
    """Path of a small, good file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU())
    save(deltaconvert.convert(trained(model), backend="reference"), tmp_path / "m.delta")
    return tmp_path / "m.delta"
