"""Which tile a convolution is computed by: its size, its kernel, and how many blocks there are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltaconvert.backends.cuda.context import PACK_BYTES
from deltaconvert.cuda.launcher import Launcher
from deltaconvert.nodes import DeltaNode

# Share of the pixels that are expected to be candidates, where a choice hangs on it.
EXPECTED_SHARE = 0.1
# The same for warpgroups, as measured where 5 % of the input's pixels change; windows that overlap
# reach further, at a stride less so.
LIKELY_SHARE, LIKELY_SHARE_OF_STEPS, LIKELY_SHARE_OF_WINDOWS = 0.058, 0.064, 0.0725
# With more, a block would be busy with one tile's columns for too long.
MOST_FUSED_CHANNELS = 256
BLOCKS_A_PROCESSOR = 4
RESULT_PAD = 8
ROW_BYTES = 128  # of a stage of warpgroups, along K
MOST_COLUMNS = 8  # blocks of a cluster that every Hopper GPU can run together
LARGE_CLUSTER, LARGE_GPU = 16, 132  # what those with so many multiprocessors can
WIDTHS = (32, 64, 128, 256)  # columns of a warpgroup's tile
MEDIUM_SUM, LONG_SUM = 16, 32  # stages of K
# Blocks a multiprocessor, of what a device does at once: where several are resident, where one is,
# and where one is and clusters are large, which leave some multiprocessors out.
AT_ONCE, ALONE_AT_ONCE, ALONE_IN_CLUSTERS = 1.12, 0.95, 0.8
# Columns of tiles whose sums are cut in four, the stages that pays from, blocks a multiprocessor.
QUARTERS = ((128, 2 * LONG_SUM, ALONE_IN_CLUSTERS), (64, LONG_SUM, 1.25))
# Tiles of 128 rows a multiprocessor, from which on it pays that a warpgroup copies: for long sums,
# for shorter ones, and for those of one stage or few columns.
FEWEST_OF_LONG, FEWEST_OF_SHORT, FEWEST_OF_SHORTEST = 0.2, 0.85, 2
REGISTERS, BLOCK_LIMIT = 65536, 8
# Sums of convolutions, and bytes of small and of large maps, of which we compute all pixels.
LONGEST_OF_ALL, MOST_BYTES_OF_FEW, FEWEST_BYTES_OF_ALL = 256, 6e6, 30e6


@dataclass(frozen=True)
class Tile:
    """A specialisation, but for what memory alignment allows.

    Args:
        tensor: tensor cores or not.
        bm, bn, bk: rows, columns and depth.
        stages: of asynchronous copies.
        fused: the rule is applied in the same kernel; else by a second one.
        warpgroups: by convolution_sm90.cu, whose blocks are a cluster over the channels.
        early: old values and residual are copied to shared memory while a tile is multiplied.
        splits: parts of K, each a block of the cluster.
        ahead: by convolution_ahead_sm90.cu, of whose warpgroups one copies for the others; 16-bit
            numbers, with the stages for old values and residual, too.
    """

    tensor: bool
    bm: int
    bn: int
    bk: int
    stages: int
    fused: bool
    warpgroups: bool = False
    early: bool = False
    splits: int = 1
    ahead: bool = False

    @property
    def threads(self) -> int:
        """Threads of a block."""
        if self.warpgroups:
            return (self.bm // 64 + self.ahead) * 128
        if self.tensor:
            return self.bm // 32 * (self.bn // (64 if self.bn >= 128 else 32)) * 32
        return self.bm // 8 * (self.bn // (8 if self.bn >= 128 else 4))

    @property
    def resident(self) -> int:
        """Blocks of warpgroups that a multiprocessor has registers and shared memory for."""
        registers = {32: 80, 64: 80, 128: 128, 256: 255}[self.bn]
        return max(1, min(BLOCK_LIMIT, REGISTERS // (registers * self.threads),
                          224 * 1024 // (self._stage_bytes(True) + 8 * 1024)))

    def _stage_bytes(self, residual: bool) -> int:
        """Count what a block of warpgroups has for maps and filters."""
        maps = (1 + residual) * (self.early and not self.ahead)
        itemsize = ROW_BYTES // self.bk
        return (ROW_BYTES * self.stages * (self.bm + self.bn)
                + itemsize * maps * self.bm * self.bn)

    def cluster(self, channels: int) -> int:
        """Return the blocks of a cluster."""
        return -(-channels // self.bn) * self.splits if self.warpgroups else 1

    def shared_bytes(self, itemsize: int, taps: tuple[int, int], channels: int,
                     residual: bool = True) -> int:
        """Count a block's shared memory as `Shared` in the kernel's file lays it out."""
        if self.warpgroups:
            rows = 1 + 2 * (2 + taps[0] + taps[1])
            if self.ahead:
                rows += 2 * self.cluster(channels) - 1
                return (self._stage_bytes(residual) + 4 * self.bm * rows + 4 * self.bn
                        + 8 * (2 * self.stages + 6))
            return self._stage_bytes(residual) + 4 * self.bm * rows + (self.stages + 1) // 2 * 16
        pad_a, pad_b = 16 // itemsize, 8 if self.tensor else 16 // itemsize
        pipeline = self.stages * itemsize * (
            self.bm * (self.bk + pad_a) + self.bk * (self.bn + pad_b))
        product = 4 * self.bm * (self.bn + 8) if self.fused else 0
        rows = 4 * (self.bm * (2 + taps[0] + taps[1]) + 4)
        results = self.bm * (-(-channels // 8) * 8 + RESULT_PAD) * itemsize if self.fused else 0
        return max(pipeline, product) + rows + results


def choose_tile(node: DeltaNode, groups: int, width: int, launcher: Launcher,
                told: Mapping[str, Any]) -> Tile:
    """Choose by dtype, channels and how many rows are expected.

    Args:
        node: a convolution.
        groups, width: groups and their output channels, narrow ones merged.
        launcher: of the device.
        told: fields of the tile that are settled already.
    """
    dtype, shape = node.about.output.dtype, node.about.output.shape
    assert dtype is not None
    assert shape is not None
    pixels = math.prod(node.about.output.mask_shape)
    rows = round(EXPECTED_SHARE * pixels)
    taps = node.about.args[1].shape[2], node.about.args[1].shape[3]
    tensor = tensor_cores(dtype, launcher)
    if tensor and groups == 1 and launcher.capability == (9, 0) and told.get("warpgroups", True):
        likely = _likely_share(max(taps), max(node.about.params["stride"])) * pixels
        depth = node.about.args[1][0].numel() * dtype.itemsize // ROW_BYTES
        bk = ROW_BYTES // dtype.itemsize
        whole = all(size * dtype.itemsize % PACK_BYTES == 0
                    for size in node.about.args[1].shape[:2])
        found = (_of_warpgroups(width, depth, likely, launcher.processors, bk, ahead)
                 for ahead in (whole, False))
        # Of very large windows, rows would take more memory than many slots leave.
        tile = next((tile for tile in found if tile and tile.shared_bytes(
            dtype.itemsize, taps, width) <= launcher.shared_limit), None)
        if told.get("warpgroups"):  # whatever the number of tiles
            tile = tile or _tile(64, 64, bk, 4)
        if tile and told.get("fused", True):
            # Whose stages are told, that is by the kernel that is told, or by the plain one.
            return replace(tile, **({"ahead": False, **told} if "stages" in told else told))
    bn = 128 if width > 64 else 64 if width > 32 else 32
    half = tensor and dtype.itemsize == 2
    # Of a dozen of each tried on an H100, in docs/tried.md.
    fused = Tile(tensor, 128 if half and bn < 128 else 64, bn, 32 if half else 16, 4, True)
    parts = Tile(tensor, 64, bn, 64 if half else 32 if tensor else 16, 3, False)
    fits = fused.shared_bytes(dtype.itemsize, taps, shape[1]) <= launcher.shared_limit
    many = shape[1] <= MOST_FUSED_CHANNELS and rows / 64 >= launcher.processors
    told = {name: value for name, value in told.items() if name != "warpgroups"}
    return replace(fused if fits and many else parts, **told)


def tile_of_all(node: DeltaNode, tile: Tile) -> Tile | None:
    """Return the tile for all pixels, where that is faster than the library.

    Behind the library's convolution another kernel reads and writes the map again, unless it adds
    bias and ReLU itself. So it is where sums are short, for maps that no cache holds, and for those
    that are done as soon as a kernel has begun.

    Args:
        node: a convolution.
        tile: by which it is computed at the candidates.
    """
    about, weight = node.about, node.about.args[1]
    dtype, shape = about.output.dtype, about.output.shape
    assert dtype is not None
    assert shape is not None
    residual, activation = len(about.inputs) > 1, about.params.get("activation")
    if not tile.warpgroups or dtype.itemsize != 2 or weight.shape[2:] != (1, 1):
        return None
    if not residual and activation in (None, ("relu",)):
        return None
    if not about.footprints[0].is_identity or weight[0].numel() > LONGEST_OF_ALL:
        return None
    nbytes, narrow = math.prod(shape) * dtype.itemsize, 64 if shape[1] >= 64 else 32
    if nbytes <= MOST_BYTES_OF_FEW:
        return _tile(64, narrow, tile.bk, 4)
    if nbytes < FEWEST_BYTES_OF_ALL:
        return None
    return _tile(128, 128 if shape[1] > 64 else narrow, tile.bk, 3)


def _likely_share(taps: int, stride: int) -> float:
    if taps <= stride:
        return LIKELY_SHARE
    return LIKELY_SHARE_OF_WINDOWS if stride == 1 else LIKELY_SHARE_OF_STEPS


def _of_warpgroups(width: int, depth: int, rows: float, processors: int, bk: int,
                   whole: bool = True) -> Tile | None:
    """Return the largest tile of which there are enough to keep a device busy.

    Nothing, where there are too many channels. Found by trying some for each layer of ResNet-50,
    with one stream and eight (`gpu_tiles.py`); docs/tried.md.

    Args:
        width, depth: output channels, and whole stages of K that each sums.
        rows: expected.
        processors: multiprocessors.
        bk: numbers of K in a stage.
        whole: pixels are whole packs; else one warpgroup would copy too many parts of them.
    """
    narrowest = next((bn for bn in WIDTHS if -(-width // bn) <= MOST_COLUMNS), 0)

    def enough(bm: int, bn: int, share: float) -> bool:
        blocks = -(-int(rows) // bm) * -(-width // bn)
        return narrowest <= bn < 2 * max(width, WIDTHS[0]) and blocks >= share * processors

    narrow = max(narrowest, 64 if width > 32 else 32)
    if not narrowest:
        return None
    if whole and bk == ROW_BYTES // 2:
        many = _of_many_rows(width, depth, rows, processors)
        if many:
            return many
    few = _of_few_rows(width, depth, -(-int(rows) // 64), processors, bk)
    if few:
        return few
    if width <= 512 and enough(128, 128, 2):
        return _tile(128, 128, bk, 3)
    if width >= 512 and enough(128, 256, 0.75):
        return _tile(128, 256, bk, 4)
    if width > 64 and depth >= 4 and enough(128, 128, 0.48):
        return _tile(128, 128, bk, 3 if enough(128, 128, 1) else 4)
    if narrow <= 64 and enough(128, narrow, 2):
        return _tile(128, narrow, bk, 3)
    if narrow <= 64 and enough(128, narrow, 0.6 if width > 64 else 0.4) and (
            width <= 64 or depth * bk >= 128):
        return _tile(128, narrow, bk, 6)
    if narrow <= 64 and (width <= 64 or depth * bk >= 128):
        return _tile(64, narrow, bk, 4)
    wide = max(narrow, 128)
    early = _tile(64, wide, bk, 3, early=True)
    return early if wide == 128 and early.resident > 1 else _tile(64, wide, bk, 4)


def _of_many_rows(width: int, depth: int, rows: float, processors: int) -> Tile | None:
    """Return the tile of which a warpgroup copies, where many rows wait.

    Nothing, where that does not pay, nor where clusters would be large. Tiles of 128x128 are one a
    multiprocessor, the others two: better for long sums, worse for short ones of many columns,
    whose blocks wait for each other.

    Args:
        width, depth, rows, processors: see `_of_warpgroups`; of 16-bit numbers.
    """
    columns, bk = -(-width // 128), ROW_BYTES // 2
    share = -(-int(rows) // 128) * columns / processors
    if width <= 32 or columns > MOST_COLUMNS:
        return None
    if width <= 64:
        pays = share >= FEWEST_OF_SHORTEST
        return _tile(128, 64, bk, 4, early=True, ahead=True) if pays else None
    long = depth >= MEDIUM_SUM
    fewest = FEWEST_OF_LONG if long else FEWEST_OF_SHORT if depth > 1 else FEWEST_OF_SHORTEST
    if share < fewest:
        return None
    if not long and (depth > 1 or columns != 2):
        return _tile(128, 128, bk, 6, early=True, ahead=True)
    return _tile(64, 128, bk, 4, early=True, ahead=True)


def _of_few_rows(width: int, depth: int, tiles: int, processors: int, bk: int) -> Tile | None:
    """Return the tile for what is done at once: at most one block a multiprocessor, or little more.

    Nothing, where there are more. K is cut where half of the multiprocessors would have nothing;
    of tf32 sooner and into more parts, because a part takes twice as long and a cut does not.

    Args:
        width, depth, processors, bk: see `_of_warpgroups`.
        tiles: of 64 rows, expected.
    """
    most = LARGE_CLUSTER if processors >= LARGE_GPU else MOST_COLUMNS
    tf32 = bk == ROW_BYTES // 4
    # 16-bit numbers gain less by more parts, and where more rows change, they lose a quarter.
    for bn, least, room in QUARTERS if tf32 else ():
        columns = -(-width // bn)
        if (width > bn // 2 and depth >= least and 4 * columns <= most
                and 4 * tiles * columns <= room * processors):
            return _tile(64, bn, bk, 4, early=True, splits=4)
    bn, share = 32 if width <= 32 else 64, tiles * -(-width // 128) / processors
    if width > 64 and (share >= (0.75 if depth < LONG_SUM else 0.5)
                       or width > 64 * MOST_COLUMNS):
        bn = 128
    # So few stages that two or three blocks are resident, should there be more rows than expected.
    stages = 3 if bn == 128 and depth < MEDIUM_SUM and not tf32 else 4
    tile, columns = _tile(64, bn, bk, stages, early=True), -(-width // bn)
    blocks, alone = tiles * columns, tile.resident == 1
    if blocks > (ALONE_AT_ONCE if alone else AT_ONCE) * processors or columns > most:
        return None
    shortest, cluster = MEDIUM_SUM // (1 + tf32), 2 * columns  # were K cut in two
    large = cluster > MOST_COLUMNS
    fits = 2 * blocks <= (ALONE_IN_CLUSTERS if large and alone else 1) * processors and (
        not large or (cluster <= most and depth >= 2 * shortest))
    cut = depth >= shortest and (fits or (tf32 and cluster <= 4 and not alone))
    return replace(tile, splits=2) if cut else tile


def _tile(bm: int, bn: int, bk: int, stages: int, early: bool = False, splits: int = 1,
          ahead: bool = False) -> Tile:
    """Return a tile of warpgroups."""
    return Tile(True, bm, bn, bk, stages, True, True, early, splits, ahead)


def tensor_cores(dtype: torch.dtype, launcher: Launcher) -> bool:
    """Whether tensor cores may compute in this dtype; tf32 where PyTorch's own may."""
    if dtype == torch.float32:
        return bool(torch.backends.cudnn.allow_tf32) and launcher.capability >= (8, 0)
    return dtype == torch.float16 or launcher.capability >= (8, 0)


def grid_of(node: DeltaNode, tile: Tile, taps: tuple[int, int], launcher: Launcher) -> int:
    """Return as many blocks as may be resident, or as there is work for."""
    dtype, shape = node.about.output.dtype, node.about.output.shape
    assert dtype is not None
    assert shape is not None
    tiles = -(-math.prod(node.about.output.mask_shape) // tile.bm)
    if tile.warpgroups:
        cluster = tile.cluster(shape[1])
        return cluster * max(1, min(launcher.processors * tile.resident // cluster, tiles))
    shared = tile.shared_bytes(dtype.itemsize, taps, shape[1])
    resident = launcher.processors * max(1, min(BLOCKS_A_PROCESSOR,
                                                launcher.shared_limit // shared))
    return max(1, min(resident, tiles)) if tile.fused else resident
