"""Filters as panels: what each phase of a convolution multiplies its rows with.

A convolution has one phase, all of its taps. A transposed convolution of stride ``s`` has
``s * s``: the output rows ``y`` and columns ``x`` with the same ``(y % s, x % s)`` read the
same subset of taps, and no zeros are inserted anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu.compiling.vectors import WIDTH
from deltaconvert.backends.cpu.convolutions.few import HALF, MOST_COLUMNS
from deltaconvert.backends.cpu.convolutions.kernel import PANEL
from deltaconvert.backends.cpu.maps.storage import numbers_of
from deltaconvert.nodes import DeltaNode, Slot
from deltaconvert.sharing import shared

# Groups narrower than this are multiplied together, as one matrix with blocks on its
# diagonal: the zeros cost less than a product of four columns does.
NARROWEST_GROUP = 16
# Numbers of a row that are taken at a time: so much of a panel, 64 kB, stays in the second
# cache. Half of it costs 1 to 5 %, double of it 6 % where rows are long.
PIECE = 512
# Of fewer channels, in or out, tiles save nothing.
FEW_CHANNELS = 16
# Taps of no more channels lie side by side in the map, and are taken as one.
_IN_LINES = 16
# Instructions that add up the sums of a row and column.
_SUM = 8
# Winograd's F(2, 3) and F(2, 2): the transform of so many taps along a side, to one place more.
_TRANSFORMS = {3: ((1, 0, 0), (.5, .5, .5), (.5, -.5, .5), (0, 0, 1)), 2: ((1, 0), (1, 1), (0, 1))}


@dataclass(frozen=True)
class Phase:
    """The output pixels ``(y % period, x % period) == place``, and their taps.

    Args:
        place: of the phase.
        taps: indices of the taps in height and width.
        lines: a row's segments are lines of taps, ``[taps_x, channels]`` each; else single taps.
        segments: of a row.
        numbers: of a segment.
        pieces, filters, panels: see `kernel.multiply_rows`.
        columns: where these are few and the filter is as `few.multiply_few` takes it; else 0.
    """

    place: tuple[int, int]
    taps: tuple[np.ndarray, np.ndarray]
    lines: bool
    segments: int
    numbers: int
    pieces: np.ndarray
    filters: np.ndarray
    panels: np.ndarray
    columns: int = 0


@dataclass(frozen=True)
class Tiled:
    """A phase's transformed filter, see `winograd`.

    Args:
        side: places along a side of it.
        channels: of a group, in and out.
        bounds, filters, panels: see `winograd.Layer`.
    """

    side: int
    channels: tuple[int, int]
    bounds: np.ndarray
    filters: np.ndarray
    panels: np.ndarray


@dataclass(frozen=True)
class Filters:
    """A convolution's weights in the layouts of this backend.

    Args:
        phases: for the product; empty for a depthwise convolution.
        tiled: the same for tiles of pixels; empty where the convolution cannot be computed so.
        period: of the phases, in height and width.
        depthwise: ``[taps, channels]``, where every channel has one filter of its own.
        bias: float32 ``[C_out]`` or nothing.
    """

    phases: list[Phase]
    tiled: list[Tiled]
    period: tuple[int, int]
    depthwise: Tensor | None
    bias: Tensor | None


def argument(node: DeltaNode, index: int) -> Any:
    """Return x, weight, bias or residual of a convolution (0 to 3); the last may be left out."""
    return node.about.args[index] if index < len(node.about.args) else None


def weight_refusal(node: DeltaNode) -> str | None:
    """Return why a node's weights cannot be folded."""
    x, weight, bias = (argument(node, index) for index in range(3))
    if not isinstance(x, Slot) or isinstance(weight, Slot) or isinstance(bias, Slot):
        return "the filter changes from frame to frame"
    if weight.dtype != node.about.output.dtype:
        return f"the filter is {weight.dtype}, the map {node.about.output.dtype}"
    return None


def is_transposed(node: DeltaNode) -> bool:
    """Whether the node is a transposed convolution."""
    return node.about.operator is not None and node.about.operator.name == "conv_transpose2d"


def is_depthwise(node: DeltaNode) -> bool:
    """Whether every channel has one filter of its own."""
    return _group_channels(node) == (1, 1) and node.about.params["groups"] > 1


def row_size(node: DeltaNode) -> tuple[int, int]:
    """Return the taps of a row, and the numbers that have to be copied for it, at most."""
    height, width = node.about.args[1].shape[2:]
    groups, (channels, channels_out) = node.about.params["groups"], _group_channels(node)
    together = _together(groups, channels, channels_out)
    copied = height * width * together * channels
    lines = _takes_lines(groups // together, width, together * channels)
    return height * width, copied if lines else 0


def _group_channels(node: DeltaNode) -> tuple[int, int]:
    """Return a group's channels in and out."""
    weight, groups = node.about.args[1], node.about.params["groups"]
    of_group = weight.shape[0] // groups, weight.shape[1]
    return of_group if is_transposed(node) else of_group[::-1]


def fold(node: DeltaNode) -> Filters:
    """Derive the matrices from a convolution's weight and bias, once for all that are equal."""
    params = node.about.params
    settings = [tuple(params[name]) for name in ("stride", "padding", "dilation")]
    return shared((fold, is_transposed(node), params["groups"], *settings, node.about.args[1],
                   argument(node, 2)), lambda: _fold(node))


def _fold(node: DeltaNode) -> Filters:
    params, weight = node.about.params, node.about.args[1].detach()
    transposed = is_transposed(node)
    taps = _by_group(weight, params["groups"], transposed)
    period = tuple(params["stride"]) if transposed else (1, 1)
    depthwise = None
    if is_depthwise(node):
        depthwise = _own(taps[..., 0, 0].permute(1, 2, 0).flatten(0, 1))
    cuts = [] if depthwise is not None else _cut(_merge(taps), params, period, transposed)
    tiled = [_tile(part) for _, _, part in cuts] if tiled_channels(node) else []
    few = _few_columns([part for _, _, part in cuts])
    return Filters(
        [_few(*cut, few) if few else _phase(*cut) for cut in cuts],
        [t for t in tiled if t] if all(tiled) else [], period, depthwise,
        _bias(node))


def fold_matrix(node: DeltaNode) -> Filters:
    """Derive the matrix of a linear layer, the 1x1 filter of a map that is one pixel."""
    weight, first = node.about.args[1], np.zeros(1, np.int64)
    return shared((fold_matrix, weight, argument(node, 2)), lambda: Filters(
        [_phase((0, 0), (first, first), weight.detach().t()[None, None, None])], [], (1, 1), None,
        _bias(node)))


def _bias(node: DeltaNode) -> Tensor | None:
    bias = argument(node, 2)
    return None if bias is None else _own(bias)


def _own(numbers: Tensor) -> Tensor:
    """Return float32 in memory of its own: the model's weights may be written to."""
    return numbers.detach().to(torch.float32, copy=True,
                               memory_format=torch.contiguous_format)


def tiled_channels(node: DeltaNode) -> tuple[int, int] | None:
    """Return a group's channels in and out, as multiplied, where tiles are a way to compute."""
    weight, params = node.about.args[1], node.about.params
    settings = *weight.shape[2:], *params["stride"]
    expected = (4, 4, 2, 2) if is_transposed(node) else (3, 3, 1, 1)
    if is_depthwise(node) or settings != expected:
        return None
    if is_transposed(node) and tuple(params["dilation"]) != (1, 1):
        return None
    if weight.dtype != torch.float32:
        return None  # the transformed numbers would need bits that bfloat16 has not
    channels_in, channels_out = _group_channels(node)
    together = _together(params["groups"], channels_in, channels_out)
    channels = together * channels_in, together * channels_out
    return channels if min(channels) >= FEW_CHANNELS else None


def _tile(taps: Tensor) -> Tiled | None:
    """Transform ``[groups, taps, taps, channels_in, channels_out]``, rounding once."""
    side = taps.new_tensor(_TRANSFORMS[taps.shape[1]], dtype=torch.float64)
    places = torch.einsum("ya,gabio,xb->gyxio", side, taps.double(), side).float()
    if not bool(places.isfinite().all()):
        return None  # no tile's result would be
    channels = taps.shape[3]
    parts = max(round(channels / PIECE), 1)
    bounds = np.array([channels * i // parts for i in range(parts + 1)], np.int64)
    filters, panels = _panels(places.flatten(1, 2))
    return Tiled(len(side), (channels, taps.shape[4]), bounds, filters, panels)


def _by_group(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """Return ``[groups, kh, kw, channels_in / groups, channels_out / groups]``."""
    by_group = weight.unflatten(0, (groups, -1))
    return by_group.permute(0, 3, 4, 1, 2) if transposed else by_group.permute(0, 3, 4, 2, 1)


def _merge(taps: Tensor) -> Tensor:
    """Put narrow groups together, as blocks on the diagonal."""
    groups, _, _, channels_in, channels_out = taps.shape
    together = _together(groups, channels_in, channels_out)
    if together == 1:
        return taps
    parts = taps.unflatten(0, (-1, together))
    merged = taps.new_zeros(*parts.shape[:1], *taps.shape[1:3], together, channels_in, together,
                            channels_out)
    for j in range(together):
        merged[:, :, :, j, :, j] = parts[:, j]
    return merged.flatten(5, 6).flatten(3, 4)


def _together(groups: int, channels_in: int, channels_out: int) -> int:
    """Return how many groups make one matrix."""
    together = 1
    while (together * min(channels_in, channels_out) < NARROWEST_GROUP
           and groups % (2 * together) == 0):
        together *= 2
    return together


def _cut(taps: Tensor, params: dict[str, Any], period: tuple[int, int], transposed: bool
         ) -> list[tuple[tuple[int, int], tuple[np.ndarray, np.ndarray], Tensor]]:
    """Return each phase's place, its taps in the order of the input's pixels, and their weights."""
    cuts = []
    for y in range(period[0]):
        for x in range(period[1]):
            rows, cols = (
                _taps_of(place, size, params["padding"][d], params["dilation"][d], period[d])
                [::-1 if transposed else 1].copy()
                for d, (place, size) in enumerate(((y, taps.shape[1]), (x, taps.shape[2]))))
            cuts.append(((y, x), (rows, cols), taps[:, rows][:, :, cols]))
    return cuts


def _takes_lines(groups: int, width: int, channels: int) -> bool:
    return groups == 1 and width > 1 and channels <= _IN_LINES


def _phase(place: tuple[int, int], indices: tuple[np.ndarray, np.ndarray],
           taps: Tensor) -> Phase:
    groups, segments, numbers, columns, lines = _rows_of(taps)
    filters, panels = _panels(taps.reshape(groups, segments, numbers, columns))
    return Phase(place, indices, lines, segments, numbers,
                 _pieces(segments, numbers, _step(taps)), filters, panels)


def _rows_of(taps: Tensor) -> tuple[int, int, int, int, bool]:
    """Return groups, segments of a row, numbers of each, columns, and if they are lines of taps."""
    groups, height, width, channels, columns = taps.shape
    lines = _takes_lines(groups, width, channels)
    segments, numbers = (height, width * channels) if lines else (height * width, channels)
    return groups, segments, numbers, columns, lines


def _few_columns(phases: list[Tensor]) -> int:
    """Return what columns phases are multiplied by as `few` does; 0 where these are many."""
    shapes = [_rows_of(taps)[:4] for taps in phases]
    if not shapes or shapes[0][0] > 1:
        return 0
    columns = shapes[0][3]
    if columns <= MOST_COLUMNS and all(_pays(*shape) for shape in shapes):
        return max(columns, 2)
    return HALF if columns <= HALF < WIDTH else 0


def _pays(groups: int, segments: int, numbers: int, columns: int) -> bool:
    """Whether vectors of a row's numbers are fewer than its numbers, with what sums take."""
    return segments * (numbers - columns * -(-numbers // WIDTH)) > _SUM * columns


def _few(place: tuple[int, int], indices: tuple[np.ndarray, np.ndarray], taps: Tensor,
         columns: int) -> Phase:
    """Lay a filter of few columns out by its rows' numbers, or of half a vector of them."""
    _, segments, numbers, own, lines = _rows_of(taps)
    vectors = -(-numbers // WIDTH)
    room = numbers if columns == HALF else vectors * WIDTH
    padded = taps.new_zeros(segments, room, columns)
    padded[:, :numbers, :own] = taps.reshape(segments, numbers, own)
    if columns < HALF:
        padded = padded.unflatten(1, (vectors, WIDTH)).transpose(2, 3)
    packed = padded.flatten()
    return Phase(place, indices, lines, segments, numbers,
                 np.zeros((1, 5), np.int64), numbers_of(packed), np.zeros((1, 1, 4), np.int64),
                 columns)


def _step(weights: Tensor) -> int:
    """Return how many numbers of a row are multiplied at a time."""
    return 2 if weights.dtype == torch.bfloat16 else 1


def _pieces(segments: int, numbers: int, step: int = 1) -> np.ndarray:
    """Cut rows into pieces of about `PIECE` numbers: some segments each, or a part of one."""
    packed = -(-numbers // step) * step
    if segments * numbers == 0:  # a phase that no tap reaches: zeros
        cut = [(0, 0, 0, 0, 0)]
    elif numbers > PIECE:
        parts = round(numbers / PIECE)
        bounds = [*(numbers * i // parts // step * step for i in range(parts)), numbers]
        cut = [(s, 1, a, b - a, s * packed + a) for s in range(segments)
               for a, b in pairwise(bounds)]
    else:
        taken = PIECE // numbers
        cut = [(s, min(taken, segments - s), 0, numbers, s * packed)
               for s in range(0, segments, taken)]
    return np.array(cut, np.int64)


def _panels(matrices: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pack ``[groups, segments, numbers, N]`` into panels of two vectors, the last maybe of one.

    In bfloat16 two neighbouring numbers lie side by side, the last of an odd segment with 0.
    """
    groups, segments, numbers, columns = matrices.shape
    step = _step(matrices)
    whole, rest = divmod(columns, PANEL)
    vectors = [2] * whole + ([1 if rest <= WIDTH else 2] if rest else [])
    steps = -(-numbers // step)
    padded = matrices.new_zeros(groups, segments, steps * step, sum(vectors) * WIDTH)
    padded[:, :, :numbers, :columns] = matrices
    padded = padded.unflatten(2, (steps, step)).transpose(3, 4).flatten(1, 2)
    parts, table = [], []
    start = 0
    for group in range(groups):
        column = 0
        for count in vectors:
            parts.append(padded[group, :, column:column + count * WIDTH].flatten())
            table.append((start, group * columns + column, count, group * numbers))
            start += len(parts[-1])
            column += count * WIDTH
    packed = torch.cat(parts) if parts else matrices.new_zeros(0)
    return numbers_of(packed), np.array(table, np.int64).reshape(groups, -1, 4)


def _taps_of(place: int, size: int, padding: int, dilation: int, period: int) -> np.ndarray:
    """Return the taps ``k`` that reach an input: ``(place + padding - k * dilation) % s == 0``."""
    taps = np.arange(size)
    return taps[(place + padding - taps * dilation) % period == 0]
