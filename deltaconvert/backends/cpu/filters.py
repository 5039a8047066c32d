"""Filters as matrices: what each phase of a convolution multiplies its rows with.

A convolution has one phase, all of its taps. A transposed convolution of stride ``s`` has
``s * s``: the output rows ``y`` and columns ``x`` with the same ``(y % s, x % s)`` read the
same subset of taps, and no zeros are inserted anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.nodes import DeltaNode, Slot

# Groups narrower than this are multiplied together, as one matrix with blocks on its
# diagonal: the zeros cost less than a GEMM of four columns does.
NARROWEST_GROUP = 16


@dataclass(frozen=True)
class Phase:
    """The output pixels ``(y % period, x % period) == place``, and their taps.

    Args:
        place: of the phase.
        taps: indices of the taps in height and width.
        matrices: one a group, ``[taps_y * taps_x * channels_in, channels_out]``.
    """

    place: tuple[int, int]
    taps: tuple[np.ndarray, np.ndarray]
    matrices: list[Tensor]


@dataclass(frozen=True)
class Filters:
    """A convolution's weights in the layouts of this backend.

    Args:
        phases: for the GEMM; empty for a depthwise convolution.
        period: of the phases, in height and width.
        depthwise: ``[taps, channels]``, where every channel has one filter of its own.
        dense: for the library's own convolution.
        bias: float32 ``[C_out]`` or nothing.
    """

    phases: list[Phase]
    period: tuple[int, int]
    depthwise: Tensor | None
    dense: Tensor
    bias: Tensor | None


def argument(node: DeltaNode, index: int) -> Any:
    """Return x, weight, bias or residual of a convolution (0 to 3); the last may be left out."""
    return node.about.args[index] if index < len(node.about.args) else None


def weight_refusal(node: DeltaNode) -> str | None:
    """Return why a node's weights cannot be folded."""
    x, weight, bias = (argument(node, index) for index in range(3))
    if not isinstance(x, Slot) or isinstance(weight, Slot) or isinstance(bias, Slot):
        return "the filter changes from frame to frame"
    if weight.dtype != torch.float32:
        return f"the cpu backend computes in float32, the filter is {weight.dtype}"
    return None


def is_transposed(node: DeltaNode) -> bool:
    """Whether the node is a transposed convolution."""
    return node.about.operator is not None and node.about.operator.name == "conv_transpose2d"


def is_depthwise(node: DeltaNode) -> bool:
    """Whether every channel has one filter of its own."""
    return _group_channels(node) == (1, 1) and node.about.params["groups"] > 1


def row_width(node: DeltaNode) -> int:
    """Numbers in a gathered row, at most."""
    return math.prod(node.about.args[1].shape[2:]) * _group_channels(node)[0] * _together(
        node.about.params["groups"], *_group_channels(node))


def _group_channels(node: DeltaNode) -> tuple[int, int]:
    """Return a group's channels in and out."""
    weight, groups = node.about.args[1], node.about.params["groups"]
    of_group = weight.shape[0] // groups, weight.shape[1]
    return of_group if is_transposed(node) else of_group[::-1]


def fold(node: DeltaNode) -> Filters:
    """Derive the matrices from the node's weight and bias."""
    weight, bias = node.about.args[1], argument(node, 2)
    params = node.about.params
    weight = weight.detach()
    transposed = is_transposed(node)
    taps = _by_group(weight, params["groups"], transposed)
    period = tuple(params["stride"]) if transposed else (1, 1)
    depthwise = None
    if is_depthwise(node):
        depthwise = taps[..., 0, 0].permute(1, 2, 0).flatten(0, 1).contiguous()
    return Filters(
        [] if depthwise is not None else _phases(_merge(taps), params, period), period, depthwise,
        weight.contiguous(memory_format=torch.channels_last),
        None if bias is None else bias.detach().float().contiguous())


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


def _phases(taps: Tensor, params: dict[str, Any], period: tuple[int, int]) -> list[Phase]:
    phases = []
    for y in range(period[0]):
        for x in range(period[1]):
            rows, cols = (
                _taps_of(place, size, params["padding"][d], params["dilation"][d], period[d])
                for d, (place, size) in enumerate(((y, taps.shape[1]), (x, taps.shape[2]))))
            part = taps[:, rows][:, :, cols]
            phases.append(Phase((y, x), (rows, cols), [
                group.reshape(-1, taps.shape[4]).contiguous() for group in part]))
    return phases


def _taps_of(place: int, size: int, padding: int, dilation: int, period: int) -> np.ndarray:
    """Return the taps ``k`` that reach an input: ``(place + padding - k * dilation) % s == 0``."""
    taps = np.arange(size)
    return taps[(place + padding - taps * dilation) % period == 0]
