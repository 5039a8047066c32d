"""Convolutions by `convolution.cu`: which tile, filters in its layout, and the launches."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda import pixels
from deltaconvert.backends.cuda.candidates import Tables, candidates
from deltaconvert.backends.cuda.context import Context, channels_of, pixel_step, size_of, widest
from deltaconvert.backends.cuda.filters import (
    FilterPhase,
    argument,
    bias_of,
    filter_phases,
    period_of,
)
from deltaconvert.cuda.arguments import ConvArgs, Phase
from deltaconvert.cuda.launcher import Launch, Launcher
from deltaconvert.cuda.loader import kernel
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode, Slot

# Share of the pixels that are expected to be candidates, where a choice hangs on it.
EXPECTED_SHARE = 0.1
# With more, a block would be busy with one tile's columns for too long.
MOST_FUSED_CHANNELS = 256
BLOCKS_A_PROCESSOR = 4
RESULT_PAD = 8


@dataclass(frozen=True)
class Tile:
    """A specialisation, but for what memory alignment allows.

    Args:
        tensor: tensor cores or not.
        bm, bn, bk: rows, columns and depth.
        stages: of asynchronous copies.
        fused: the rule is applied in the same kernel; else by a second one.
    """

    tensor: bool
    bm: int
    bn: int
    bk: int
    stages: int
    fused: bool

    @property
    def threads(self) -> int:
        """Threads of a block."""
        if self.tensor:
            return self.bm // 32 * (self.bn // (64 if self.bn >= 128 else 32)) * 32
        return self.bm // 8 * (self.bn // (8 if self.bn >= 128 else 4))

    def shared_bytes(self, itemsize: int, taps: tuple[int, int], channels: int) -> int:
        """Count a block's shared memory as `Shared` in convolution.cu lays it out."""
        pad_a, pad_b = 16 // itemsize, 8 if self.tensor else 16 // itemsize
        pipeline = self.stages * itemsize * (
            self.bm * (self.bk + pad_a) + self.bk * (self.bn + pad_b))
        product = 4 * self.bm * (self.bn + 8) if self.fused else 0
        rows = 4 * (self.bm * (2 + taps[0] + taps[1]) + 4)
        results = self.bm * (-(-channels // 8) * 8 + RESULT_PAD) * itemsize if self.fused else 0
        return max(pipeline, product) + rows + results


@dataclass(frozen=True)
class Folded:
    """A convolution's weights and tables on the device, once a program.

    Args:
        tile: that the layout is for.
        weight: see `ConvArgs` in convolution.cu.
        bias: float32, or nothing.
        tables, phases: what `Phase` points into, and the phases as bytes.
        period: of the phases.
        groups: groups and their channels in and out, narrow ones merged.
        taps: the most of any phase.
        stages: of each phase.
    """

    tile: Tile
    weight: Tensor
    bias: Tensor | None
    tables: Tensor
    phases: Tensor
    period: tuple[int, int]
    groups: tuple[int, int, int]
    taps: tuple[int, int]


def refusal(node: DeltaNode) -> str | None:
    """Return why this convolution has no kernel."""
    x, weight, bias, residual = (argument(node, index) for index in range(4))
    if not isinstance(x, Slot) or isinstance(weight, Slot) or isinstance(bias, Slot):
        return "the filter changes from frame to frame"
    if weight.dtype != node.about.output.dtype:
        return f"the filter is {weight.dtype}, the map {node.about.output.dtype}"
    if isinstance(residual, Tensor):
        return "the residual is a constant"
    if isinstance(residual, Slot) and (
            node.about.inputs[residual.index].shape != node.about.output.shape):
        return "the residual has another shape than the output"
    return None


def choose_tile(node: DeltaNode, channels_out: int, launcher: Launcher,
                told: Mapping[str, Any]) -> Tile:
    """Choose by dtype, channels and how many rows are expected.

    Args:
        node: a convolution.
        channels_out: of a group.
        launcher: of the device.
        told: fields of the tile that are settled already.
    """
    dtype, shape = node.about.output.dtype, node.about.output.shape
    assert dtype is not None
    assert shape is not None
    tensor = tensor_cores(dtype, launcher)
    bn = 128 if channels_out > 64 else 64 if channels_out > 32 else 32
    half = tensor and dtype.itemsize == 2
    # Of a dozen of each tried on an H100, in docs/performance-cuda.md.
    fused = Tile(tensor, 128 if half and bn < 128 else 64, bn, 32 if half else 16, 4, True)
    parts = Tile(tensor, 64, bn, 64 if half else 32 if tensor else 16, 3, False)
    rows = EXPECTED_SHARE * math.prod(node.about.output.mask_shape)
    taps = node.about.args[1].shape[2], node.about.args[1].shape[3]
    fits = fused.shared_bytes(dtype.itemsize, taps, shape[1]) <= launcher.shared_limit
    many = shape[1] <= MOST_FUSED_CHANNELS and rows / 64 >= launcher.processors
    return replace(fused if fits and many else parts, **told)


def tensor_cores(dtype: torch.dtype, launcher: Launcher) -> bool:
    """Whether tensor cores may compute in this dtype; tf32 where PyTorch's own may."""
    if dtype == torch.float32:
        return bool(torch.backends.cudnn.allow_tf32) and launcher.capability >= (8, 0)
    return dtype == torch.float16 or launcher.capability >= (8, 0)


def fold_filters(node: DeltaNode, launcher: Launcher, told: Mapping[str, Any]) -> Folded:
    """Derive the kernel's layout from a node's weight and bias."""
    phases = filter_phases(node)
    width = phases[0].matrices[0].shape[1]
    tile = choose_tile(node, width, launcher, told)
    groups = len(phases[0].matrices)
    source = node.about.inputs[argument(node, 0).index].shape
    assert source is not None
    group_in = source[1] // groups
    footprint = node.about.footprints[argument(node, 0).index]
    packed = _Packed(node, phases, footprint, tile, group_in)
    device = node.about.args[1].device
    return Folded(
        tile, torch.cat(packed.weights).contiguous(), bias_of(node),
        torch.from_numpy(np.concatenate(packed.tables).astype(np.int32)).to(device),
        torch.frombuffer(bytearray(b"".join(map(bytes, packed.phases))),
                         dtype=torch.uint8).to(device),
        period_of(node), (groups, group_in, width),
        (max(p.taps_y for p in packed.phases), max(p.taps_x for p in packed.phases)))


class _Packed:
    """Phases, tables and weights, each behind the one before."""

    def __init__(self, node: DeltaNode, phases: list[FilterPhase], footprint: Footprint, tile: Tile,
                 group_in: int) -> None:
        self.phases: list[Phase] = []
        self.tables: list[np.ndarray] = []
        self.weights: list[Tensor] = []
        lanes, height, width = node.about.output.mask_shape
        first, at_table, at_weight = 0, 0, 0
        for phase in phases:
            rows, cols = (_taps(table, taps) for table, taps in zip(
                (footprint.rows, footprint.cols), phase.taps, strict=True))
            matrices = [_pad(m, group_in, tile) for m in phase.matrices]
            self.phases.append(Phase(
                first, rows.shape[1], cols.shape[1], at_table, at_table + rows.size,
                matrices[0].shape[1] // tile.bk, at_weight))
            self.tables += [rows.ravel(), cols.ravel()]
            self.weights += [m.flatten() for m in matrices]
            at_table += rows.size + cols.size
            at_weight += sum(m.numel() for m in matrices)
            (y, x), (period_y, period_x) = phase.place, period_of(node)
            first += lanes * -(-(height - y) // period_y) * -(-(width - x) // period_x)


def _taps(table: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Cut a table to a phase's taps; where it has none, to one that is not there."""
    return table[:, taps] if len(taps) else np.full((len(table), 1), -1, np.int32)


def _pad(matrix: Tensor, group_in: int, tile: Tile) -> Tensor:
    """Pad a filter with zeros to whole stages and tiles: ``[tiles, K, bn]``."""
    depth = max(matrix.shape[0], group_in)
    down, across = -depth % tile.bk + depth - matrix.shape[0], -matrix.shape[1] % tile.bn
    padded = F.pad(matrix.detach(), (0, across, 0, down))
    return padded.unflatten(1, (-1, tile.bn)).transpose(0, 1).contiguous()


def plan(node: DeltaNode, folded: Folded, launcher: Launcher) -> list[Scratch]:
    """Return the memory for sums, where a second kernel finishes them."""
    if folded.tile.fused:
        return []
    rows, columns = _part_size(node, folded, launcher)
    return [Scratch("cuda.parts", 4 * rows * columns)]


def _part_size(node: DeltaNode, folded: Folded, launcher: Launcher) -> tuple[int, int]:
    """Return rows and columns of float32 sums, at most."""
    tile, (groups, _, width) = folded.tile, folded.groups
    across = groups * -(-width // tile.bn)
    blocks = grid_of(node, folded, launcher)
    phases = folded.period[0] * folded.period[1]
    pixels = math.prod(node.about.output.mask_shape)
    return max(pixels + phases * tile.bm, -(-blocks // across) * tile.bm), across * tile.bn


def grid_of(node: DeltaNode, folded: Folded, launcher: Launcher) -> int:
    """Return as many blocks as may be resident, or as there is work for."""
    tile, dtype, shape = folded.tile, node.about.output.dtype, node.about.output.shape
    assert dtype is not None
    assert shape is not None
    shared = tile.shared_bytes(dtype.itemsize, folded.taps, shape[1])
    resident = launcher.processors * max(1, min(BLOCKS_A_PROCESSOR,
                                                launcher.shared_limit // shared))
    if not tile.fused:
        return resident
    return max(1, min(resident, -(-math.prod(node.about.output.mask_shape) // tile.bm)))


def bind(node: DeltaNode, folded: Folded, buffers: Buffers, context: Context,
         tables: Tables) -> list[Launch]:
    """Return the launches of a convolution."""
    made, launches = candidates(node, buffers, context, tables, folded.period)
    args = _arguments(node, folded, buffers, context)
    args.list, args.counts = made.pixels, context.counter(made.counts)
    tile = folded.tile
    edge = buffers.output
    itemsize = edge.value.element_size()
    defines = {"TENSOR": int(tile.tensor), "BM": tile.bm, "BN": tile.bn, "BK": tile.bk,
               "STAGES": tile.stages, "FUSED": int(tile.fused),
               "VEC": widest(itemsize, args.group_in, args.step_in, addresses=(args.input,)),
               "OUT_VEC": _out_vec(args, itemsize) if tile.fused else 1}
    launches.append(Launch(
        kernel("convolution.cu", "convolve", edge.value.dtype, **defines), args,
        (grid_of(node, folded, context.launcher), 1), tile.threads,
        tile.shared_bytes(itemsize, folded.taps, channels_of(edge))))
    if not tile.fused:
        launches.append(pixels.finish_parts(node, folded, buffers, context, args, made))
    context.grains[made.counts:made.counts + made.phases] = tile.bm
    return launches


def _out_vec(args: ConvArgs, itemsize: int) -> int:
    return widest(itemsize, args.group_out, args.step_out, args.step_residual or 0,
                  addresses=(args.output, args.residual or 0))


def _arguments(node: DeltaNode, folded: Folded, buffers: Buffers, context: Context) -> ConvArgs:
    source, edge = buffers.inputs[argument(node, 0).index], buffers.output
    residual = argument(node, 3)
    groups, group_in, group_out = folded.groups
    args = ConvArgs(
        rule=context.rule(node, buffers), input=source.value.data_ptr(),
        weight=folded.weight.data_ptr(), output=edge.value.data_ptr(),
        tables=folded.tables.data_ptr(), phases=folded.phases.data_ptr(),
        step_in=pixel_step(source), step_out=pixel_step(edge), group_in=group_in,
        group_out=group_out, groups=groups,
        phase_count=folded.phases.numel() // ctypes.sizeof(Phase),
        most_taps_y=folded.taps[0], most_taps_x=folded.taps[1])
    (args.height_in, args.width_in), (args.height_out, args.width_out) = (
        size_of(source), size_of(edge))
    if folded.bias is not None:
        args.bias = folded.bias.data_ptr()
    if isinstance(residual, Slot):
        args.residual = buffers.inputs[residual.index].value.data_ptr()
        args.step_residual = pixel_step(buffers.inputs[residual.index])
    if not folded.tile.fused:
        args.parts = buffers.scratch["cuda.parts"].data_ptr()
    return args


