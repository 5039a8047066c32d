"""Swin's attention within windows: what comes before and behind it are 1x1 convolutions.

torchvision's function is split into its three parts: a product for queries, keys and values,
the attention of each window to itself, which runs whole, and a product behind it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.operators.linear import linear
from deltaconvert.operators.matmul import ADVICE
from deltaconvert.operators.permute import CHANNELS_FIRST, CHANNELS_LAST, permute
from deltaconvert.operators.registry import Refusal, Shapes, call, operator, spelled
from deltaconvert.operators.reshape import reshape

APART = -100.0  # what is added where two tokens of a window are no neighbours in the map
LARGEST_SCALE = math.log(100.0)  # of the cosines, as Swin V2 has it
SOURCE = "torchvision.models.swin_transformer"


def _within_windows(shapes: Shapes) -> str:
    return "it weighs the places of each window against each other"


@operator(rule="global", not_local=_within_windows, advice=ADVICE)
def window_attention(qkv: Tensor, bias: Tensor | None, position: Tensor, scale: Tensor | None, *,
                     window: tuple[int, int], shift: tuple[int, int], heads: int) -> Tensor:
    """Let the tokens of each window attend to each other.

    Args:
        qkv: ``[N, 3 C, H, W]``, queries, keys and values without their bias.
        bias: ``[3 C]``; a token that pads the map is nothing but that.
        position: ``[1, heads, T, T]``, added for each pair of a window's T tokens.
        scale: ``[heads, 1, 1]``, the logarithm of what cosines are scaled by; ``None`` for
            products over the root of the channels.
        window, shift: height and width, and by how much windows are shifted up and left.
        heads: of the attention.

    Returns:
        ``[N, C, H, W]``.
    """
    height, width = qkv.shape[2:]
    x = F.pad(qkv, (0, -width % window[1], 0, -height % window[0]))
    if bias is not None:
        x = x + (bias if scale is None else without_keys(bias))[:, None, None]
    shift = tuple(s if w < size else 0  # type: ignore[assignment]
                  for s, w, size in zip(shift, window, x.shape[2:], strict=True))
    q, k, v = _to_windows(x.roll((-shift[0], -shift[1]), (2, 3)), window, heads)
    if scale is None:
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    else:
        cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        weights = cosines * scale.clamp(max=LARGEST_SCALE).exp()
    weights = weights + position + _apart(x, window, shift)
    y = _from_windows(weights.softmax(-1) @ v, x, window).roll(shift, (2, 3))
    return y[:, :, :height, :width]


def without_keys(bias: Tensor) -> Tensor:
    """Return a bias without the keys' part, which cosines leave out."""
    q, k, v = bias.chunk(3)
    return torch.cat([q, torch.zeros_like(k), v])


def _to_windows(x: Tensor, window: tuple[int, int], heads: int) -> Tensor:
    """Return ``[3, N, windows, heads, T, C / heads]`` of ``[N, 3 C, H, W]``."""
    lanes, _, height, width = x.shape
    rows, cols = window
    x = x.reshape(lanes, 3, heads, -1, height // rows, rows, width // cols, cols)
    return x.permute(1, 0, 4, 6, 2, 5, 7, 3).flatten(5, 6).flatten(2, 3)


def _from_windows(y: Tensor, like: Tensor, window: tuple[int, int]) -> Tensor:
    """Return ``[N, C, H, W]`` of ``[N, windows, heads, T, C / heads]``."""
    lanes, _, height, width = like.shape
    rows, cols = window
    y = y.reshape(lanes, height // rows, width // cols, y.shape[2], rows, cols, y.shape[4])
    return y.permute(0, 3, 6, 1, 4, 2, 5).reshape(lanes, -1, height, width)


def _apart(x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Return what keeps apart what a shift brought together, ``[windows, 1, T, T]``."""
    wrapped = [torch.arange(size, device=x.device) >= size - by
               for size, by in zip(x.shape[2:], shift, strict=True)]
    part = 2 * wrapped[0][:, None].int() + wrapped[1].int()
    rows, cols = window
    tokens = part.reshape(part.shape[0] // rows, rows, -1, cols).transpose(1, 2).reshape(
        -1, 1, rows * cols)
    return APART * (tokens[..., None, :] != tokens[..., None]).to(x.dtype)


@spelled(f"{SOURCE}.shifted_window_attention")
def _function(input, qkv_weight, proj_weight, relative_position_bias, window_size, num_heads,
              shift_size, attention_dropout=0.0, dropout=0.0, qkv_bias=None, proj_bias=None,
              logit_scale=None, training=True):
    if training and (attention_dropout or dropout):
        raise Refusal("attention with dropout: its result is random")
    qkv = call(permute, call(linear, input, qkv_weight), dims=CHANNELS_FIRST)
    attended = call(window_attention, qkv, qkv_bias, relative_position_bias, logit_scale,
                    window=tuple(window_size), shift=tuple(shift_size), heads=num_heads)
    return call(linear, call(permute, attended, dims=CHANNELS_LAST), proj_weight, proj_bias)


@spelled(f"{SOURCE}._get_relative_position_bias")
def _position(relative_position_bias_table, relative_position_index, window_size):
    tokens = math.prod(window_size)
    pairs = call(torch.index_select, relative_position_bias_table, 0, relative_position_index)
    by_pair = call(permute, call(reshape, pairs, shape=(tokens, tokens, -1)), dims=(2, 0, 1))
    return call(reshape, by_pair, shape=(1, -1, tokens, tokens))
