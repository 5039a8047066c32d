"""Filters as matrices: what each phase of a convolution multiplies its rows with.

A convolution has one phase, all of its taps. A transposed convolution of stride ``s`` has
``s * s``: the output rows ``y`` and columns ``x`` with the same ``(y % s, x % s)`` read the
same subset of taps, and no zeros are inserted anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.nodes import DeltaNode, Slot

# Groups narrower than this are multiplied together, as one matrix with blocks on its
# diagonal: a tile of the kernel is no narrower than 32 columns anyway.
NARROWEST_GROUP = 16


@dataclass(frozen=True)
class FilterPhase:
    """The output pixels ``(y % period, x % period) == place``, and their taps.

    Args:
        place: of the phase.
        taps: indices of the taps in height and width.
        matrices: one a group, ``[taps_y * taps_x * channels_in, channels_out]``.
    """

    place: tuple[int, int]
    taps: tuple[np.ndarray, np.ndarray]
    matrices: list[Tensor]


def argument(node: DeltaNode, index: int) -> Any:
    """Return x, weight, bias or residual of a convolution (0 to 3); the last may be left out."""
    return node.about.args[index] if index < len(node.about.args) else None


def is_convolution(node: DeltaNode) -> bool:
    """Whether a node is a convolution as the kernels have it: with constants for a filter."""
    about = node.about
    if about.operator is None or not about.operator.name.startswith("conv"):
        return False
    x, weight, bias, residual = (argument(node, index) for index in range(4))
    if not isinstance(x, Slot) or isinstance(weight, Slot) or isinstance(bias, Slot):
        return False  # the filter changes from frame to frame
    if weight.dtype != about.output.dtype or isinstance(residual, Tensor):
        return False
    return residual is None or about.inputs[residual.index].shape == about.output.shape


def bias_of(node: DeltaNode) -> Tensor | None:
    """Return the bias in float32, or nothing."""
    return numbers_of(argument(node, 2))


def numbers_of(x: Tensor | None) -> Tensor | None:
    """Return numbers of channels in float32, if there are any, in memory of their own.

    A part of another tensor may begin where no vector may.
    """
    return None if x is None else x.detach().to(torch.float32, copy=True).contiguous()


def is_transposed(node: DeltaNode) -> bool:
    """Whether the node is a transposed convolution."""
    return node.about.operator is not None and node.about.operator.name == "conv_transpose2d"


def is_depthwise(node: DeltaNode) -> bool:
    """Whether every channel has one filter of its own."""
    taps = _by_group(node)
    return taps.shape[0] > 1 and taps.shape[3:] == (1, 1)


def depthwise_filter(node: DeltaNode) -> Tensor:
    """Return a depthwise convolution's filter as ``[taps, channels]``, in memory of its own."""
    taps = _by_group(node)[..., 0, 0].permute(1, 2, 0).flatten(0, 1)
    return taps.clone(memory_format=torch.contiguous_format)


def period_of(node: DeltaNode) -> tuple[int, int]:
    """Return how often the taps repeat: the stride of a transposed convolution."""
    stride = node.about.params["stride"] if is_transposed(node) else (1, 1)
    return stride[0], stride[1]


def filter_phases(node: DeltaNode) -> list[FilterPhase]:
    """Derive the matrices from the node's weight."""
    taps, params, period = _merge(_by_group(node)), node.about.params, period_of(node)
    phases = []
    for place in np.ndindex(*period):
        rows, cols = (
            _taps_of(place[d], taps.shape[1 + d], params["padding"][d], params["dilation"][d],
                     period[d]) for d in range(2))
        part = taps[:, rows][:, :, cols]
        phases.append(FilterPhase((place[0], place[1]), (rows, cols), [
            group.reshape(-1, taps.shape[4]).contiguous() for group in part]))
    return phases


def channel_order(width: int, few: int) -> Tensor:
    """Return which output channel each column of a warpgroup's product is.

    A thread holds columns ``2 q``, ``2 q + 1`` of every 8 (``q`` its number in a group of four).
    In this order they are neighbours ``few * q ... few * q + few - 1`` of every ``4 * few``
    channels, where ``few`` of them are 16 bytes.
    """
    columns = torch.arange(width, device="cpu")
    block, j = columns // (4 * few), columns % (4 * few) // 8
    q, pair = columns % 8 // 2, columns % 2
    return 4 * few * block + few * q + 2 * j + pair


def rounded_to_tf32(x: Tensor) -> Tensor:
    """Round float32 to 10 bits of mantissa, halves to even, as ``cvt.rn.tf32`` does."""
    bits = x.contiguous().view(torch.int32)
    nearest = (bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF
    return torch.where(x.isfinite(), nearest.view(torch.float32), x)


def swizzled(rows: Tensor) -> Tensor:
    """Permute the 8 packs of each of ``[..., rows, bk]`` as in shared memory, by the row."""
    packs = rows.unflatten(-1, (8, -1))
    down = torch.arange(rows.shape[-2], device=rows.device)[:, None]
    order = (torch.arange(8, device=rows.device) ^ down % 8)[..., None].expand(packs.shape)
    return packs.gather(-2, order).flatten(-2)


def _by_group(node: DeltaNode) -> Tensor:
    """Return ``[groups, kh, kw, channels_in / groups, channels_out / groups]``."""
    by_group = node.about.args[1].detach().unflatten(0, (node.about.params["groups"], -1))
    order = (0, 3, 4, 1, 2) if is_transposed(node) else (0, 3, 4, 2, 1)
    return by_group.permute(*order)


def _merge(taps: Tensor) -> Tensor:
    """Put narrow groups together, as blocks on the diagonal."""
    groups, height, width, channels_in, channels_out = taps.shape
    together = 1
    while (together * min(channels_in, channels_out) < NARROWEST_GROUP
           and groups % (2 * together) == 0):
        together *= 2
    if together == 1:
        return taps
    parts = taps.unflatten(0, (-1, together))
    merged = taps.new_zeros(groups // together, height, width, together, channels_in, together,
                            channels_out)
    for j in range(together):
        merged[:, :, :, j, :, j] = parts[:, j]
    return merged.flatten(5, 6).flatten(3, 4)


def _taps_of(place: int, size: int, padding: int, dilation: int, period: int) -> np.ndarray:
    """Return the taps ``k`` that reach an input: ``(place + padding - k * dilation) % s == 0``."""
    taps = np.arange(size)
    return taps[(place + padding - taps * dilation) % period == 0]
