"""Whole networks by the cuda backend, its kernels run on the host: the law, frame by frame."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import deltaconvert
from deltaconvert.backends import cuda
from deltaconvert.backends.cuda import CudaBackend
from deltaconvert.errors import FrameError
from tests.cuda.host.launcher import HostLauncher, compiler
from tests.law.networks import clips, networks
from tests.law.test_law import amounts, run, suite


@pytest.fixture(scope="module", autouse=True)
def _on_the_host():
    """Make ``backend="cuda"`` run on the CPU."""
    compiler()
    patch = pytest.MonkeyPatch()
    patch.setattr(cuda, "create", lambda config, device: CudaBackend(
        config, device, HostLauncher()))
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield
    patch.undo()


@suite(25)
@given(data=st.data())
def test_every_node_obeys_the_law_at_every_frame(data):
    network = data.draw(networks())
    clip = data.draw(clips(network.shape))
    run(network, clip, torch.float32, backend="cuda", threshold=data.draw(amounts),
        norm=data.draw(st.sampled_from(["max", "rms"])), input_threshold=data.draw(amounts),
        threshold_unit=data.draw(st.sampled_from(["absolute", "std"])))
