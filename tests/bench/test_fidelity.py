"""The search for a threshold."""

import math

import pytest
import torch

from deltaconvert.bench.fidelity import ALLOWED, OF_FROZEN, Truth, at_threshold, find_threshold
from deltaconvert.bench.outputs import relative_rms, tensors


def test_the_frozen_error_is_that_of_the_first_output():
    clip = [torch.tensor([[[[value]]]]) for value in (1.0, 2.0, 3.0)]
    truth = Truth(torch.nn.Identity(), clip)
    rms = math.sqrt((1 + 4 + 9) / 3)
    assert truth.frozen == pytest.approx(math.sqrt((0 + 1 + 4) / 3) / rms)
    assert truth.allowed == pytest.approx(min(ALLOWED, OF_FROZEN * truth.frozen))
    assert truth.error(1, [torch.tensor([[[[2.5]]]])]) == pytest.approx(0.5 / rms)
    assert truth.error(1, [torch.tensor([[[[math.nan]]]])]) == math.inf


def test_the_largest_threshold_that_every_frame_allows(model, delta, frames):
    truth = Truth(model, frames)
    search = find_threshold(delta, truth)
    assert search.threshold > 0
    passed = [t for t, error in search.tried if error <= search.allowed]
    failed = [t for t, error in search.tried if error > search.allowed]
    assert passed
    assert failed
    assert search.threshold == max(passed) < min(failed)
    assert search.error == dict(search.tried)[search.threshold] <= search.allowed
    held = at_threshold(delta, search.threshold)
    assert search.goal == f"an error of at most {search.allowed:.2%} in every frame"
    assert (held.config.threshold_unit, held.config.norm) == ("std", "rms")
    assert 0 < truth.worst_error(held) <= search.allowed


def test_where_nothing_is_allowed_nothing_is_held_back(model, delta, frames):
    """A clip that stands still: a frozen output is right, so any error is too much."""
    truth = Truth(model, frames[:1] * 3)
    search = find_threshold(delta, truth)
    assert (truth.frozen, search.allowed, truth.tolerance) == (0.0, 0.0, None)
    errors = [error for _, error in search.tried]
    assert search.threshold == 0.0 or max(errors) == 0.0


def test_outputs_in_any_structure():
    one, two = torch.ones(2), torch.zeros(3)
    found = tensors({"a": [one, torch.tensor([1])], "b": (two.numpy(),)})
    assert [t.tolist() for t in found] == [[1.0, 1.0], [0.0, 0.0, 0.0]]
    assert relative_rms(2 * one, one) == 1.0
    assert relative_rms(one, two) == math.inf
    assert relative_rms(two, two) == 0.0
