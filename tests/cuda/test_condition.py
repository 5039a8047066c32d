"""What decides which way a frame goes behind its doors, and what it is told by the last one."""

from __future__ import annotations

import pytest
import torch

from deltaconvert.backends.cuda.dense import BREAK_EVEN, LEAST, estimated
from deltaconvert.cuda.arguments import ConditionArgs, DenseArgs, EndArgs
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from tests.cuda.host.launcher import HostLauncher

SPARSE, DENSE, NEITHER = range(3)


def decide(fresh: int, changed: tuple[int, int], work: torch.Tensor, ways: int,
           refused: tuple[int, int] = (0, 0)) -> int:
    """Return what the kernel says of a frame of two lanes and two doors."""
    bad = torch.tensor(refused, dtype=torch.int32)
    flags = torch.tensor([0, 0, fresh], dtype=torch.int32)  # of two lanes, and of any
    counters = torch.tensor(changed, dtype=torch.int32)
    said = torch.full((1,), 9, dtype=torch.int32)
    work[5] = 0.5
    args = ConditionArgs(condition=said.data_ptr(), fresh=flags.data_ptr(), bad=bad.data_ptr(),
                         work=work.data_ptr(), lanes=2, doors=2, ways=ways)
    args.changed[0], args.changed[1] = counters.data_ptr(), counters.data_ptr() + 4
    HostLauncher().launch(
        Launch(kernel("condition.cu", "decide", torch.float32), args, (1, 1), 32))
    return int(said)


@pytest.mark.parametrize("fresh, changed, runs", [
    (0, (0, 0), 0), (1, (0, 0), 1), (0, (5, 0), 1), (0, (0, 7), 1)])
def test_the_body_runs_where_a_lane_is_fresh_or_a_door_let_something_in(fresh, changed, runs):
    assert decide(fresh, changed, torch.zeros(8), 1) == runs
    assert decide(fresh, changed, torch.zeros(8), 2) == (SPARSE if runs else NEITHER)


@pytest.mark.parametrize("share, doors, changed, way", [
    (0.6, 10, (4, 6), DENSE), (0.4, 10, (4, 6), SPARSE),
    (0.4, 10, (10, 6), DENSE),  # 16 pixels at the doors, where 10 made 40 %
    (0.6, 10, (2, 2), SPARSE), (1.0, 10, (0, 0), NEITHER), (0.6, 0, (1, 0), DENSE)])
def test_the_way_follows_from_the_last_frames_work(share, doors, changed, way):
    work = torch.tensor([share, doors, *[0.0] * 6])
    assert decide(0, changed, work, 2) == way
    assert bool(work[2]) == (way == DENSE)


def test_small_nodes_go_the_dense_way_sooner():
    shares = [estimated(100 * each, 100) for each in (1e9, 1e8, 4e7, 2e7, 1e6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(BREAK_EVEN, abs=0.01)
    assert shares[-1] == LEAST


def test_a_frame_with_a_refused_lane_is_sparse():
    work = torch.tensor([0.6, 10, *[0.0] * 6])
    assert decide(0, (4, 6), work, 2, refused=(0, 1)) == SPARSE
    assert not work[2]


def test_a_frame_compares_now_and_then_and_the_less_often_the_longer_it_lasts():
    work = torch.tensor([0.6, 10, *[0.0] * 6])
    ways = [decide(0, (4, 6), work, 2) for _ in range(1000)]
    sparse = [i for i, way in enumerate(ways) if way == SPARSE]
    assert sparse == [16, 49, 114, 243, 500, 757]
    assert decide(0, (0, 0), work, 2) == NEITHER, "which says nothing of the others"
    assert decide(0, (1, 0), work, 2) == SPARSE
    ways = [decide(0, (4, 6), work, 2) for _ in range(17)]
    assert ways == [DENSE] * 16 + [SPARSE], "as in the beginning"


def test_the_dense_way_begins_with_everything_changed():
    masks, counters = torch.zeros(64, dtype=torch.uint8), torch.arange(600, dtype=torch.int32)
    wholes, fresh = 5 * (counters % 2), torch.zeros(4, dtype=torch.int32)
    wanted = torch.where(wholes > 0, wholes, counters)
    wanted[599], counters[599] = 599, 599
    args = DenseArgs(
        masks=masks.data_ptr(), mask_packs=3, counters=counters.data_ptr(),
        wholes=wholes.data_ptr(), fresh=fresh.data_ptr(), counted=599, lanes=2)
    HostLauncher().launch(
        Launch(kernel("masks.cu", "change_everything", torch.float32), args, (2, 1), 256))
    assert masks.tolist() == [1] * 48 + [0] * 16
    assert torch.equal(counters, wanted)
    assert fresh.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("dense", [False, True])
def test_the_end_of_a_frame_tells_what_there_was_to_do(dense):
    size = 300  # more than a block has threads
    counters = torch.arange(size, dtype=torch.int32) % 7
    grains, doors = torch.full_like(counters, 4), torch.zeros(size, dtype=torch.uint8)
    doors[3] = doors[280] = 1
    costs, totals = torch.rand(size), torch.zeros(size, 2, dtype=torch.int64)
    bad, work = torch.ones(2, dtype=torch.int32), torch.tensor([9.0, 9.0, float(dense), *[0.0] * 5])
    args = EndArgs(
        counters=counters.data_ptr(), grains=grains.data_ptr(), costs=costs.data_ptr(),
        doors=doors.data_ptr(), totals=totals.data_ptr(),
        bad=bad.data_ptr(), work=work.data_ptr(), counted=size, lanes=2)
    launch = Launch(kernel("masks.cu", "end_frame", torch.float32), args, (1, 1), 256, 64)
    HostLauncher().launch(launch)
    tiled = counters if dense else (counters + 3) // 4 * 4
    assert torch.equal(totals, torch.stack([counters, tiled], 1).long())
    assert not bad.any()
    if dense:
        assert work[:2].tolist() == [9.0, 9.0], "what there was to do, it does not know"
        return
    assert float(work[0]) == pytest.approx(float((counters * costs).sum()), rel=1e-5)
    assert float(work[1]) == int(counters[3] + counters[280])
    counters[3] = counters[280] = 0
    HostLauncher().launch(launch)
    assert float(work[1]) > 0, "a frame equal to the last says nothing of the next"
