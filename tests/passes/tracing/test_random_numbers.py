"""A forward that goes by random numbers of its own is refused; one that draws in vain is not."""

from __future__ import annotations

import copy
import math
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.errors import TraceError
from tests.passes.graphs import Model, assert_same_outputs, frames_like

FRAME = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))


def model(function) -> Model:
    torch.manual_seed(0)
    return Model(lambda self, x: function(self.conv(x)), conv=nn.Conv2d(3, 4, 3))


@pytest.mark.parametrize("frames", [[], [FRAME]], ids=["any", "with a frame"])
@pytest.mark.parametrize("function", [
    lambda y: y * 2 if random.random() < 0.01 else y,
    lambda y: y * 2 if np.random.rand() < 0.01 else y,
    lambda y: y * 2 if torch.rand(1) < 0.01 else y,
    lambda y: y[:, random.choice([0, 1])],
    lambda y: y[:, round(0.1 * random.uniform(0, 1)):],
    lambda y: y[:, math.floor(1.1 * np.random.uniform()):],
    lambda y: y * random.random(),
    lambda y: y * 2 if math.sqrt(random.random()) < 0.01 else y,
    lambda y: y * 2 if np.float64(0.01) > random.uniform(0, 1) else y,
    lambda y: y * 2 if torch.full((), random.random()) < 0.01 else y,
    lambda y: y * 2 if {random.random(): 1}.get(0.5) else y,
    lambda y: y + np.random.rand(4, 1, 1).max(),
    lambda y: y + torch.rand(4, 1, 1),
    lambda y: y + torch.randn(y.shape),
    lambda y: y * torch.rand(1).item(),
    lambda y: y[:, torch.randperm(4)],
    lambda y: y + torch.empty(4, 1, 1).normal_(),
    lambda y: y + y.new_empty(4, 1, 1).uniform_(),
    lambda y: y + torch.distributions.Normal(0.0, 1.0).sample((4, 1, 1)),
])
def test_random_numbers_that_count_are_refused(function, frames):
    with pytest.raises(TraceError, match=r"draws random numbers, .*modules='auto'"):
        deltaconvert.convert(model(function), frames)


def drawn_in_vain(y):
    p, training = torch.rand([]), False
    return y * 2 if training and p < 0.5 else y


def drawn_to_be_kept(self, x):
    self.kept = random.random()
    return self.conv(x)


def test_what_stood_for_a_number_may_be_copied():
    kept = Model(drawn_to_be_kept, conv=nn.Conv2d(3, 4, 3))
    copy.deepcopy(deltaconvert.convert(kept, FRAME))(FRAME)


def test_other_threads_draw_meanwhile():
    def drawn_by_another(y):
        thread = threading.Thread(target=lambda: found.append(type(random.random())))
        thread.start()
        thread.join()
        return y if random.random() is not None else 2 * y
    found: list[type] = []
    with pytest.raises(TraceError):  # what others draw moves the same numbers
        deltaconvert.convert(model(drawn_by_another))
    assert set(found) == {float}


def drawn_in_vain_by_others(y):
    p, q, training = random.uniform(0, 1), np.random.random(), False
    return y * 2 if training and p < q else y


def seeded(y):
    torch.manual_seed(0)
    return y + torch.rand(4, 1, 1)


@pytest.mark.parametrize("function", [
    drawn_in_vain, drawn_in_vain_by_others, seeded, lambda y: F.dropout(y, 0.5, False)])
def test_random_numbers_that_do_not_count_are_left_alone(function):
    assert_same_outputs(model(function), frames_like(1, 3, 6, 7))


def test_what_is_drawn_like_a_map_is_drawn_in_each_frame():
    delta = deltaconvert.convert(model(torch.rand_like))
    assert not torch.equal(delta(FRAME), delta(FRAME + 1))


def test_the_parts_are_converted_and_the_model_draws():
    islands = deltaconvert.convert(model(lambda y: y + random.random()), FRAME, modules="auto")
    assert not torch.equal(islands(FRAME), islands(FRAME))


def test_converting_draws_nothing():
    def drawn():
        return random.getstate(), np.random.get_state()[2], torch.get_rng_state().tolist()
    noisy = model(lambda y: y + random.random() + np.random.rand() + torch.rand(1))
    before = drawn()
    with pytest.raises(TraceError):
        deltaconvert.convert(noisy)
    assert drawn() == before
