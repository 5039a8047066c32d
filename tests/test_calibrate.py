"""BatchNorm statistics from frames."""

import pytest
import torch
from torch import nn

from deltaconvert.calibrate import batch_norm_statistics
from deltaconvert.errors import InputError


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 8, 10, generator=generator) + i for i in range(3)]


def test_statistics_are_the_plain_mean_over_the_frames(frames):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    weight = model[1].weight.clone()
    assert batch_norm_statistics(model, frames) == 2
    mean = torch.stack([f.mean((0, 2, 3)) for f in frames]).mean(0)
    variance = torch.stack([f.var((0, 2, 3)) for f in frames]).mean(0)
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, variance)
    assert model[0].momentum == 0.1
    assert not any(m.training for m in model.modules())
    assert torch.equal(model[1].weight, weight)


def test_only_batch_norm_is_in_training_mode(frames):
    """Dropout of everything would leave statistics of zero behind it."""
    model = nn.Sequential(nn.Dropout(1.0), nn.BatchNorm2d(3))
    batch_norm_statistics(model, frames)
    assert bool((model[1].running_mean > 1).all())


def test_old_statistics_are_forgotten(frames):
    model = nn.BatchNorm2d(3)
    model.running_mean.fill_(1e6)
    model.num_batches_tracked.fill_(100)
    batch_norm_statistics(model, frames)
    assert bool((model.running_mean < 3).all())


def test_without_running_statistics_there_is_nothing_to_set(frames):
    assert batch_norm_statistics(nn.BatchNorm2d(3, track_running_stats=False), frames) == 0
    assert batch_norm_statistics(nn.Conv2d(3, 3, 1), []) == 0


def test_refusals(frames):
    with pytest.raises(InputError, match="no frames"):
        batch_norm_statistics(nn.BatchNorm2d(3), [])
    with pytest.raises(InputError, match="in float32"):
        batch_norm_statistics(nn.BatchNorm2d(3).half(), frames)
    one_number = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    with pytest.raises(InputError, match="one number a channel"):
        batch_norm_statistics(one_number, [f[:1] for f in frames])
    assert one_number[1].momentum == 0.1
    assert not one_number.training
