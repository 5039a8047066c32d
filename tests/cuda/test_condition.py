"""What decides which way a frame goes behind its doors, and what it is told by the last one."""

from __future__ import annotations

import pytest
import torch

from deltaconvert.cuda.arguments import ConditionArgs, EndArgs
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from tests.cuda.host.launcher import HostLauncher

SPARSE, DENSE, NEITHER = range(3)


def decide(fresh: int, changed: tuple[int, int], work: torch.Tensor, ways: int) -> int:
    """Return what the kernel says of a frame of two lanes and two doors."""
    flags = torch.tensor([0, 0, fresh], dtype=torch.int32)  # of two lanes, and of any
    counters = torch.tensor(changed, dtype=torch.int32)
    said = torch.full((1,), 9, dtype=torch.int32)
    args = ConditionArgs(condition=said.data_ptr(), fresh=flags.data_ptr(), work=work.data_ptr(),
                         lanes=2, doors=2, break_even=0.5, ways=ways)
    args.changed[0], args.changed[1] = counters.data_ptr(), counters.data_ptr() + 4
    HostLauncher().launch(
        Launch(kernel("condition.cu", "decide", torch.float32), args, (1, 1), 32))
    return int(said)


@pytest.mark.parametrize("fresh, changed, runs", [
    (0, (0, 0), 0), (1, (0, 0), 1), (0, (5, 0), 1), (0, (0, 7), 1)])
def test_the_body_runs_where_a_lane_is_fresh_or_a_door_let_something_in(fresh, changed, runs):
    assert decide(fresh, changed, torch.zeros(4), 1) == runs
    assert decide(fresh, changed, torch.zeros(4), 2) == (SPARSE if runs else NEITHER)


@pytest.mark.parametrize("share, doors, changed, way", [
    (0.6, 10, (4, 6), DENSE), (0.4, 10, (4, 6), SPARSE),
    (0.4, 10, (10, 6), DENSE),  # 16 pixels at the doors, where 10 made 40 %
    (0.6, 10, (2, 2), SPARSE), (1.0, 10, (0, 0), NEITHER), (0.6, 0, (1, 0), DENSE)])
def test_the_way_follows_from_the_last_frames_work(share, doors, changed, way):
    work = torch.tensor([share, doors, 0.0, 0.0])
    assert decide(0, changed, work, 2) == way
    assert bool(work[2]) == (way == DENSE)


@pytest.mark.parametrize("dense", [False, True])
def test_the_end_of_a_frame_tells_what_there_was_to_do(dense):
    size = 300  # more than a block has threads
    counters = torch.arange(size, dtype=torch.int32) % 7
    grains, wholes = torch.full_like(counters, 4), torch.zeros_like(counters)
    wholes[5], doors = 100, torch.zeros(size, dtype=torch.uint8)
    doors[3] = doors[280] = 1
    costs, totals = torch.rand(size), torch.zeros(size, 2, dtype=torch.int64)
    bad, work = torch.ones(2, dtype=torch.int32), torch.tensor([9.0, 9.0, float(dense), 0.0])
    args = EndArgs(
        counters=counters.data_ptr(), grains=grains.data_ptr(), costs=costs.data_ptr(),
        wholes=wholes.data_ptr(), doors=doors.data_ptr(), totals=totals.data_ptr(),
        bad=bad.data_ptr(), work=work.data_ptr(), counted=size, lanes=2)
    launch = Launch(kernel("masks.cu", "end_frame", torch.float32), args, (1, 1), 256, 64)
    HostLauncher().launch(launch)
    tiled = (counters + 3) // 4 * 4
    tiled[5] = 100 if dense else 8
    assert torch.equal(totals, torch.stack([counters, tiled], 1).long())
    assert not bad.any()
    assert float(work[0]) == pytest.approx(float((counters * costs).sum()), rel=1e-5)
    assert float(work[1]) == int(counters[3] + counters[280])
    counters[3] = counters[280] = 0
    HostLauncher().launch(launch)
    assert float(work[1]) > 0, "a frame equal to the last says nothing of the next"
