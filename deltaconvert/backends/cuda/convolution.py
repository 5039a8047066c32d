"""Convolutions by `convolution.cu`: which tile, filters in its layout, and the launches."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deltaconvert.backends.base import Buffers, Scratch, Step
from deltaconvert.backends.cuda import pixels
from deltaconvert.backends.cuda.candidates import (
    candidates,
    list_name,
    list_scratch,
    windows,
)
from deltaconvert.backends.cuda.context import (
    PACK_BYTES,
    Context,
    Lists,
    activation_of,
    channels_of,
    pixel_step,
    size_of,
    widest,
)
from deltaconvert.backends.cuda.dense import everywhere
from deltaconvert.backends.cuda.filters import (
    FilterPhase,
    argument,
    bias_of,
    channel_order,
    filter_phases,
    is_convolution,
    is_transposed,
    period_of,
    rounded_to_tf32,
    swizzled,
)
from deltaconvert.backends.cuda.functions import NOTHING, applied
from deltaconvert.backends.cuda.kinds import Bound, CudaStep, Program, Unfit, at_candidates
from deltaconvert.backends.cuda.library import LibraryStep
from deltaconvert.backends.cuda.scan import scan_bytes, scans, words_of
from deltaconvert.backends.cuda.tiles import Tile, choose_tile, grid_of, tile_of_all
from deltaconvert.cuda.arguments import ConvArgs, Phase, Window
from deltaconvert.cuda.launcher import Launch, Launcher
from deltaconvert.cuda.loader import Kernel, kernel
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode, Slot
from deltaconvert.sharing import shared


@dataclass
class Folded:
    """A convolution's weights and tables on the device, once a program.

    Args:
        tile: that the layout is for.
        given: the filter as the model has it.
        weight: see `ConvArgs` in convolution.cu.
        bias: float32, or nothing.
        tables, phases: what `Phase` points into, and the phases as bytes.
        period: of the phases.
        groups: groups and their channels in and out, narrow ones merged.
        taps: the most of any phase.
        window: what all pixels read, where that is one window.
        scans: each block finds the candidates itself; settled by `plan`.
        everywhere: the same in the tile that all pixels are computed by, but by the library.
    """

    tile: Tile
    given: Tensor
    weight: Tensor
    bias: Tensor | None
    tables: Tensor
    phases: Tensor
    period: tuple[int, int]
    groups: tuple[int, int, int]
    taps: tuple[int, int]
    window: Window | None
    scans: bool = False
    everywhere: Folded | None = None

    @cached_property
    def whole(self) -> Tensor:
        """The filter as the library takes it, for the dense way; one for all programs."""
        if self.given.is_contiguous(memory_format=torch.channels_last):
            return self.given
        return shared((Folded, self.given), lambda: self.given.detach().clone(
            memory_format=torch.channels_last))


def prepare(node: DeltaNode, program: Program) -> Folded:
    """Derive the kernel's layout from a node's weight and bias."""
    if not at_candidates(node) or not is_convolution(node):
        raise Unfit
    phases = filter_phases(node)
    groups, width = len(phases[0].matrices), phases[0].matrices[0].shape[1]
    tile = choose_tile(node, groups, width, program.launcher, program.told)
    folded = _fold(node, phases, tile)
    tile_everywhere = tile_of_all(node, tile) if program.config.dense_fallback else None
    if tile_everywhere:
        folded.everywhere = _fold(node, phases, tile_everywhere)
    return folded


def _fold(node: DeltaNode, phases: list[FilterPhase], tile: Tile) -> Folded:
    """Derive a tile's layout from a node's weight and bias."""
    groups, width = len(phases[0].matrices), phases[0].matrices[0].shape[1]
    source = node.about.inputs[argument(node, 0).index].shape
    assert source is not None
    group_in = source[1] // groups
    footprint = node.about.footprints[argument(node, 0).index]
    packed = _Packed(node, phases, footprint, tile, group_in)
    tile = replace(tile, splits=min([tile.splits, *(p.stages for p in packed.phases)]))
    device = node.about.args[1].device
    return Folded(
        tile, node.about.args[1], _weight(node, phases, tile, group_in), bias_of(node),
        torch.from_numpy(np.concatenate(packed.tables).astype(np.int32)).to(device),
        torch.frombuffer(bytearray(b"".join(map(bytes, packed.phases))),
                         dtype=torch.uint8).to(device),
        period_of(node), (groups, group_in, width),
        (max(p.taps_y for p in packed.phases), max(p.taps_x for p in packed.phases)),
        _window(footprint) if period_of(node) == (1, 1) else None)


def _weight(node: DeltaNode, phases: list[FilterPhase], tile: Tile, group_in: int) -> Tensor:
    """Return the padded filters of all phases, one behind the other; once for all programs."""
    params = node.about.params
    settings = [tuple(params[name]) for name in ("stride", "padding", "dilation")]
    layout = tile.bk, tile.bn, tile.warpgroups
    return shared((_weight, is_transposed(node), params["groups"], *settings, group_in, *layout,
                   node.about.args[1]),
                  lambda: torch.cat([_pad(m, group_in, tile).flatten()
                                     for phase in phases for m in phase.matrices]))


def _window(footprint: Footprint) -> Window | None:
    rows, cols = windows(footprint)
    return Window(*(n for pair in zip(rows, cols, strict=True) for n in pair)) if (
        rows and cols) else None


class _Packed:
    """Phases and tables, each behind the one before."""

    def __init__(self, node: DeltaNode, phases: list[FilterPhase], footprint: Footprint, tile: Tile,
                 group_in: int) -> None:
        self.phases: list[Phase] = []
        self.tables: list[np.ndarray] = []
        lanes, height, width = node.about.output.mask_shape
        first, at_table, at_weight = 0, 0, 0
        for phase in phases:
            rows, cols = (_taps(table, taps) for table, taps in zip(
                (footprint.rows, footprint.cols), phase.taps, strict=True))
            depth, columns = _padded(phase.matrices[0], group_in, tile)
            self.phases.append(Phase(
                first, rows.shape[1], cols.shape[1], at_table, at_table + rows.size,
                depth // tile.bk, at_weight))
            self.tables += [rows.ravel(), cols.ravel()]
            at_table += rows.size + cols.size
            at_weight += len(phase.matrices) * depth * columns
            (y, x), (period_y, period_x) = phase.place, period_of(node)
            first += lanes * -(-(height - y) // period_y) * -(-(width - x) // period_x)


def _taps(table: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Cut a table to a phase's taps; where it has none, to one that is not there."""
    return table[:, taps] if len(taps) else np.full((len(table), 1), -1, np.int32)


def _padded(matrix: Tensor, group_in: int, tile: Tile) -> tuple[int, int]:
    """Return a filter's depth and columns in whole stages and tiles."""
    depth, columns = max(matrix.shape[0], group_in), matrix.shape[1]
    return depth + -depth % tile.bk, columns + -columns % tile.bn


def _pad(matrix: Tensor, group_in: int, tile: Tile) -> Tensor:
    """Pad a filter with zeros to whole stages and tiles, in the layout of the tile's kernel."""
    depth, columns = _padded(matrix, group_in, tile)
    padded = F.pad(matrix.detach(), (0, columns - matrix.shape[1], 0, depth - matrix.shape[0]))
    tiles = padded.unflatten(1, (-1, tile.bn)).transpose(0, 1)
    if tile.warpgroups:  # [tiles, stages, bn, bk]
        order = channel_order(tile.bn, PACK_BYTES // matrix.element_size())
        tiles = swizzled(tiles[:, :, order].unflatten(1, (-1, tile.bk)).transpose(2, 3))
        tiles = rounded_to_tf32(tiles) if matrix.dtype == torch.float32 else tiles
    return tiles.contiguous()


def plan(node: DeltaNode, folded: Folded, program: Program) -> tuple[list[Scratch], int]:
    """Settle how candidates are found; return the memory for a list, and for unfinished sums."""
    tables, phases = program.tables, folded.period[0] * folded.period[1]
    folded.scans = scans(node, folded.tile, phases, tables)
    if folded.scans:
        tables.bits.update((edge.name, words_of(edge)) for edge in node.about.inputs)
        return [], 1
    scratch = [list_scratch(node, tables, folded.period)]
    if not folded.tile.fused:
        rows, columns = _part_size(node, folded, program.launcher)
        scratch.append(Scratch("cuda.parts", 4 * rows * columns))
    return scratch, phases


def _part_size(node: DeltaNode, folded: Folded, launcher: Launcher) -> tuple[int, int]:
    """Return rows and columns of float32 sums, at most."""
    tile, (groups, _, width) = folded.tile, folded.groups
    across = groups * -(-width // tile.bn)
    blocks = grid_of(node, tile, folded.taps, launcher)
    phases = folded.period[0] * folded.period[1]
    pixels = math.prod(node.about.output.mask_shape)
    return max(pixels + phases * tile.bm, -(-blocks // across) * tile.bm), across * tile.bn


def bind(node: DeltaNode, folded: Folded, buffers: Buffers, context: Context,
         program: Program) -> Bound:
    """Return the step, with the dense way, if asked for."""
    tables = program.tables
    args = _arguments(node, folded, buffers, context)
    launches: list[Launch] = []
    if folded.scans:
        made = _scanned(node, context)
        for name, source in zip(("bits", "more_bits"), buffers.inputs, strict=False):
            setattr(args, name, context.bits_of(source))
    else:
        made, launches = candidates(node, buffers, context, tables, folded.period)
    args.list, args.counts = made.pixels, context.counter(made.counts)
    launches.append(_launch(node, folded, args, buffers, context))
    if not folded.tile.fused:
        launches.append(pixels.finish_parts(node, folded, buffers, context, args, made))
    context.grains[made.counts:made.counts + made.phases] = folded.tile.bm
    step = CudaStep(context.launcher, launches, buffers)
    if program.config.dense_fallback:
        step.dense = _everywhere(node, folded, buffers, context)
    return Bound(step, made.counters)


def _launch(node: DeltaNode, folded: Folded, args: ConvArgs, buffers: Buffers,
            context: Context) -> Launch:
    tile, edge = folded.tile, buffers.output
    return Launch(
        _kernel(node, folded, args), args,
        (grid_of(node, tile, folded.taps, context.launcher), 1), tile.threads,
        tile.shared_bytes(edge.value.element_size(), folded.taps, channels_of(edge),
                          bool(args.residual))
        + (scan_bytes(node, tile.threads) if folded.scans else 0),
        tile.cluster(folded.groups[2]))


def _everywhere(node: DeltaNode, folded: Folded, buffers: Buffers, context: Context) -> Step:
    """Return the dense way."""
    if folded.everywhere is None:
        return LibraryStep(node, folded, buffers, context)
    folded = folded.everywhere
    args = _arguments(node, folded, buffers, context)
    launch = _launch(node, folded, args, buffers, context)
    return CudaStep(context.launcher, everywhere([launch]), buffers)


def _scanned(node: DeltaNode, context: Context) -> Lists:
    """Return where candidates are counted."""
    name = list_name(node)
    if name not in context.scans:
        context.scans[name] = Lists(0, context.count(), 1)
    return context.scans[name]


def _kernel(node: DeltaNode, folded: Folded, args: ConvArgs) -> Kernel:
    """Return the specialisation for a tile, and for what memory alignment allows."""
    tile, dtype = folded.tile, folded.given.dtype
    size = dtype.itemsize
    defines: dict[str, str | int] = {
        "BM": tile.bm, "BN": tile.bn, "STAGES": tile.stages,
        "VEC": widest(size, args.group_in, args.step_in, addresses=(args.input,)),
        "OUT_VEC": _out_vec(args, size) if tile.fused else 1,
        "WINDOWED": int(folded.window is not None),
        **(applied(activation_of(node)) or NOTHING).defines}
    if tile.warpgroups:
        early = tile.early and defines["OUT_VEC"] == PACK_BYTES // size
        defines.update(BLOCKS=tile.resident, RMS=args.rule.rms, EARLY=int(early))
        if tile.ahead:
            return kernel("convolution_ahead_sm90.cu", "convolve_ahead", dtype, **defines)
        return kernel("convolution_sm90.cu", "convolve_sm90", dtype, SCAN=int(folded.scans),
                      SPLITS=tile.splits, **defines)
    return kernel("convolution.cu", "convolve", dtype, TENSOR=int(tile.tensor), BK=tile.bk,
                  FUSED=int(tile.fused), **defines)


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
    args.capacity = math.prod(node.about.output.mask_shape)
    if folded.window:
        args.window = folded.window
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


