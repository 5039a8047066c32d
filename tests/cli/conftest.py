"""Running the command line in this process, and a small model to run it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from deltaconvert.cli import main

NETWORK = '''
import torch
from torch import nn


def small(channels=8, unknown=False, width=3):
    layers = [nn.Conv2d(width, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels),
              nn.ReLU(), nn.Conv2d(channels, 4, 3, padding=1)]
    return nn.Sequential(*layers, Odd()) if unknown else nn.Sequential(*layers)


class Odd(nn.Module):
    def forward(self, x):
        return torch.cummax(x, 1)[0]


class Cropped(nn.Module):
    """Branches on shapes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(x[..., :-1] if x.shape[-1] % 2 else x)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x if x.sum() > 0 else -x
'''


class Done(NamedTuple):
    """What a run left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys) -> Callable[..., Done]:
    """Run the command line with these words."""

    def run(*words: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(word) for word in words])
        text = capsys.readouterr()
        return Done(int(exit_.value.code or 0), text.out, text.err)

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a network's source, and checkpoints of it."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "small_network_for_cli.py"
    source.write_text(NETWORK)
    namespace: dict[str, object] = {}
    exec(NETWORK, namespace)
    torch.manual_seed(0)
    model = namespace["small"]()
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    averaged = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"model": {}, "ema": averaged, "epoch": 3}, tmp_path / "training.pth")
    return tmp_path


SPEC = "small_network_for_cli:small"


@pytest.fixture
def converted(folder, cli):
    """`small.delta`, exact, run by the reference backend."""
    done = cli("convert", "plain.pth", "--model", SPEC, "-o", "small.delta",
               "--backend", "reference")
    assert done.code == 0, done.err
    return folder / "small.delta"
