"""What decides whether anything follows a frame's doors."""

from __future__ import annotations

import pytest
import torch

from deltaconvert.cuda.arguments import ConditionArgs
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from tests.cuda.host.launcher import HostLauncher


@pytest.mark.parametrize("fresh, changed, runs", [
    (0, (0, 0), 0), (1, (0, 0), 1), (0, (5, 0), 1), (0, (0, 7), 1)])
def test_the_body_runs_where_a_lane_is_fresh_or_a_door_let_something_in(fresh, changed, runs):
    flags = torch.tensor([0, 0, fresh], dtype=torch.int32)  # of two lanes, and of any
    counters = torch.tensor(changed, dtype=torch.int32)
    said = torch.full((1,), 9, dtype=torch.int32)
    args = ConditionArgs(condition=said.data_ptr(), fresh=flags.data_ptr(), lanes=2, doors=2)
    args.changed[0], args.changed[1] = counters.data_ptr(), counters.data_ptr() + 4
    HostLauncher().launch(
        Launch(kernel("condition.cu", "decide", torch.float32), args, (1, 1), 32))
    assert int(said) == runs
