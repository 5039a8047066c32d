"""The search for a threshold."""

import math

import pytest
import torch

from deltaconvert.bench.outputs import relative_rms
from deltaconvert.checking.fidelity import Truth
from deltaconvert.outputs import tensors


def test_the_frozen_error_is_that_of_the_first_output():
    clip = [torch.tensor([[[[value]]]]) for value in (1.0, 2.0, 3.0)]
    truth = Truth(torch.nn.Identity(), clip)
    rms = math.sqrt((1 + 4 + 9) / 3)
    assert truth.frozen == pytest.approx(math.sqrt((0 + 1 + 4) / 3) / rms)
    assert truth.allowed == pytest.approx(0.01)
    assert Truth(torch.nn.Identity(), clip, 2.0).allowed == pytest.approx(truth.frozen / 10)
    assert truth.error(1, [torch.tensor([[[[2.5]]]])]) == pytest.approx(0.5 / rms)
    assert truth.error(1, [torch.tensor([[[[math.nan]]]])]) == math.inf


def test_outputs_in_any_structure():
    one, two = torch.ones(2), torch.zeros(3)
    found = tensors({"a": [one, torch.tensor([1])], "b": (two.numpy(),)})
    assert [t.tolist() for t in found] == [[1.0, 1.0], [0.0, 0.0, 0.0]]
    assert relative_rms(2 * one, one) == 1.0
    assert relative_rms(one, two) == math.inf
    assert relative_rms(two, two) == 0.0
