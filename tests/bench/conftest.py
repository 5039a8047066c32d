"""A small network on a short clip, measured once for all tests that read the figures."""

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.bench import networks, peers
from deltaconvert.bench.pictures import unrelated
from deltaconvert.calibrate import batch_norm_statistics
from deltaconvert.checking.fidelity import Truth
from deltaconvert.clips import synthetic

SIZE = (32, 48)


@pytest.fixture(scope="session")
def frames():
    return [frame[None] for frame in synthetic(SIZE, 10, active_share=0.1, seed=3)]


@pytest.fixture(scope="session")
def model(frames):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
              nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 4, 1)]
    made = nn.Sequential(*layers)
    batch_norm_statistics(made, frames)
    return made


@pytest.fixture(scope="session")
def delta(model, frames):
    return deltaconvert.convert(model, frames[0], backend="reference")


@pytest.fixture(scope="session")
def case(model, delta, frames):
    ready = peers.prepare(model, frames[0], 1, ["eager"])
    return networks.Case(model, delta, frames, unrelated(SIZE, lambda p: p[None]), ready)


@pytest.fixture(scope="session")
def result(case, model, frames):
    return networks.measure(case, judge=Truth(model, frames), rounds=3)
