"""The law as a property, of random networks on random clips."""

from __future__ import annotations

import copy
import math
import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.cpu.convolutions import fallback
from deltaconvert.passes import join_whole
from tests.law.checking import Law
from tests.law.networks import Frame, Generated, clips, networks
from tests.law.steps import STEPS

BACKENDS = ["reference", "cpu"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


# To hunt: that many times the examples, and others in every run.
HUNT = int(os.environ.get("DELTACONVERT_HUNT", 0))


def suite(examples: int):
    """Settings of the suite: the same examples in every run."""
    return settings(max_examples=examples * max(1, HUNT), derandomize=not HUNT, deadline=None,
                    database=None, suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate, Phase.shrink])


def run(network: Generated, clip: list[Frame], dtype: torch.dtype, threshold: float = 0.0,
        stored: str | None = None, **config) -> None:
    """Assert the law at every node of every frame; at threshold 0, the dense outputs too.

    ``stored`` is the precision of maps and weights, where it is not the model's ``dtype``.
    """
    model = copy.deepcopy(network.model).to(dtype)
    kept = getattr(torch, stored) if stored else dtype
    assume(runs_in(model, kept, clip[0].pixels))
    # By name, so that the nodes have it too that nothing would be saved behind.
    delta = deltaconvert.convert(model, nodes={"*": threshold}, dtype=stored, **config)
    law = Law()
    delta.observe(law)
    exact = not threshold and not config.get("input_threshold")
    for time, frame in enumerate(clip):
        pixels = frame.pixels.to(dtype)
        delta.reset(frame.reset)
        fresh = [time == 0 or lane in frame.reset for lane in range(len(pixels))]
        law.expect(dict.fromkeys(delta.input_names, pixels.to(kept)), fresh)
        outputs = delta(pixels.clone())
        if exact or time == 0:
            assert_dense(model, pixels, outputs, kept)
    assert law.checked


def runs_in(model: nn.Module, dtype: torch.dtype, pixels: Tensor) -> bool:
    """Whether PyTorch has all that a model does in a precision (some resizing, not in bfloat16)."""
    try:
        with torch.no_grad():
            copy.deepcopy(model).to(dtype)(pixels.to(dtype))
    except NotImplementedError:
        return False
    return True


def assert_dense(model: nn.Module, pixels: Tensor, outputs: list[Tensor], dtype) -> None:
    """Compare with the dense model at double precision, by its own error in ``dtype``."""
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(pixels.to(torch.float64, copy=True))
        once = copy.deepcopy(model).to(dtype)(pixels.to(dtype, copy=True))
        given = model(pixels.clone())
    for number, (out, exact, dense) in enumerate(zip(outputs, expected, once, strict=True)):
        assert (out.shape, out.dtype) == (given[number].shape, given[number].dtype)
        # The clip's numbers are about 1; ill-conditioned networks are the dense model's own affair.
        scale = max(1.0, float(exact.abs().max()))
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        error = (out - exact).abs().max()
        assert error <= tolerance * scale + 20 * (dense - exact).abs().max(), (
            f"output {number}: {error:.3g} off, of {scale:.3g}")


amounts = st.sampled_from([0.0, 0.0, 0.02, 0.3])


@pytest.mark.parametrize("backend", BACKENDS)
@suite(70)
@given(data=st.data())
def test_every_node_obeys_the_law_at_every_frame(backend, data):
    network = data.draw(networks())
    clip = data.draw(clips(network.shape))
    dtype = data.draw(st.sampled_from(DTYPES))
    run(network, clip, dtype, backend=backend, threshold=data.draw(amounts),
        norm=data.draw(st.sampled_from(["max", "rms"])), input_threshold=data.draw(amounts),
        threshold_unit=data.draw(st.sampled_from(["absolute", "std"])),
        dense_fallback=data.draw(st.booleans()))


@pytest.mark.parametrize("backend", BACKENDS)
@suite(40)
@given(data=st.data())
def test_a_precision_of_the_settings_obeys_the_law(backend, data):
    network = data.draw(networks())
    clip = data.draw(clips(network.shape))
    run(network, clip, torch.float32, backend=backend, threshold=data.draw(amounts),
        stored=data.draw(st.sampled_from(["bfloat16", "float16"])),
        norm=data.draw(st.sampled_from(["max", "rms"])), input_threshold=data.draw(amounts))


WHOLE = ["attention", "windows", "whole_map_norm", "einsum", "unknown", "mixes_lanes", "softmax"]


@pytest.mark.parametrize("backend", BACKENDS)
@suite(40)
@given(data=st.data())
def test_nodes_that_run_as_one_obey_the_law(backend, data):
    """Gates too, which stay nodes otherwise: all that is no vector joins."""
    network = data.draw(networks(using=data.draw(st.lists(st.sampled_from(WHOLE), min_size=1,
                                                          max_size=3)), most_steps=3))
    clip = data.draw(clips(network.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join_whole, "GATED", data.draw(st.sampled_from([join_whole.GATED, math.inf])))
        run(network, clip, data.draw(st.sampled_from(DTYPES)), backend=backend,
            threshold=data.draw(amounts), norm=data.draw(st.sampled_from(["max", "rms"])),
            threshold_unit=data.draw(st.sampled_from(["absolute", "std"])))


@suite(60)
@given(data=st.data())
def test_lanes_that_are_dense_obey_the_law(data):
    """Of maps as small as these none would be; here all are, or those with a share to do."""
    network = data.draw(networks(using=data.draw(st.lists(
        st.sampled_from(["conv2d", "conv2d_same", "conv_norm_activation"]), min_size=1,
        max_size=3)), most_steps=3))
    clip, share = data.draw(clips(network.shape)), data.draw(st.sampled_from([0.0, 0.3, 0.9]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fallback, "LEAST_NS", 0)
        patch.setattr(fallback, "BAND_NUMBERS", data.draw(st.sampled_from([1, 64, 1 << 17])))
        patch.setattr(fallback, "break_even", lambda *_: share)
        run(network, clip, data.draw(st.sampled_from(DTYPES)), backend="cpu",
            threshold=data.draw(amounts), norm=data.draw(st.sampled_from(["max", "rms"])))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", STEPS)
@suite(8)
@given(data=st.data())
def test_each_operator_obeys_the_law(backend, name, data):
    network = data.draw(networks(using=[name, "pointwise"], most_steps=1))
    clip = data.draw(clips(network.shape, frames=3))
    dtype = data.draw(st.sampled_from(DTYPES))
    run(network, clip, dtype, backend=backend, threshold=data.draw(amounts))
