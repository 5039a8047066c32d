"""Which tiles are chosen for convolutions: each has room on the device."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from deltaconvert.backends.cuda.tiles import (
    LARGE_CLUSTER,
    MOST_COLUMNS,
    ROW_BYTES,
    _of_warpgroups,
    choose_tile,
)
from tests.backends.cpu.test_backend import conv, make_node, weights
from tests.backends.test_cuda import at
from tests.cuda.host.launcher import HostLauncher

SHARED_LIMIT = 227 * 1024
SCANNED = 6 * 1024  # bytes: for what `scan.cuh` finds


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("processors", [114, 132])
def test_a_tile_of_warpgroups_fits(processors: int, itemsize: int) -> None:
    bk, most = ROW_BYTES // itemsize, LARGE_CLUSTER if processors >= 132 else MOST_COLUMNS
    seen = set()
    for width, depth, rows in product((8, 48, 64, 96, 200, 256, 512, 1000, 2048),
                                      (0, 1, 3, 8, 18, 36, 72, 144), (1, 99, 1500, 9000, 80000)):
        tile = _of_warpgroups(width, depth, rows, processors, bk)
        assert tile is not None
        assert tile.cluster(width) <= most
        assert tile.shared_bytes(itemsize, (3, 3), width) + SCANNED <= SHARED_LIMIT
        assert tile.splits <= max(1, depth), "a part of K is a stage at least"
        # What the parts of a sum are exchanged through.
        assert 4 * tile.bm * tile.bn <= ROW_BYTES * tile.stages * (tile.bm + tile.bn)
        seen.add((tile.bn, tile.splits))
    assert {bn for bn, _ in seen} == {32, 64, 128, 256}
    assert {splits for _, splits in seen} == ({1, 2} if itemsize == 2 else {1, 2, 4})


def test_there_is_none_for_more_channels_than_a_cluster_has() -> None:
    assert _of_warpgroups(MOST_COLUMNS * 256 + 1, 8, 1000, 132, 64) is None


@pytest.mark.parametrize("taps, ahead", [((1, 3), True), ((3, 31), False), ((41, 41), True)])
def test_a_tile_has_room_for_the_rows_of_large_windows(taps: tuple[int, int], ahead: bool) -> None:
    case = conv(weights(72, 8, *taps), padding=(taps[0] // 2, taps[1] // 2))
    node, launcher = at(make_node((case, [(1, 8, 40, 60)])), torch.float16), HostLauncher(
        processors=1)
    tile = choose_tile(node, 1, 72, launcher, {})
    assert tile.shared_bytes(2, taps, 72) <= launcher.shared_limit
    assert tile.warpgroups
    assert tile.ahead is ahead
