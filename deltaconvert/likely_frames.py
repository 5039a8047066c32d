"""Frames as a model may take them, for their shapes alone, before anybody gave one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from deltaconvert.passes.tracing.input_parameters import input_parameters

LIKELY_SIZES = ((256, 256), (224, 224))  # the second of those that take no other
NAMES_OF_SIZES = ("image_size", "img_size")


def likely_frames(model: nn.Module, sizes: Sequence[tuple[int, int]] = ()
                  ) -> Iterator[list[Tensor]]:
    """Yield inputs that a model may take, likely ones first: a blank ``[1, C, H, W]`` for each.

    The channels are those of its first convolution, or, where that is fed something else, those
    of pictures. Without ``sizes``, H and W are what many models take, and then what this one says
    of itself. Several inputs are taken to be alike, as two frames are.
    """
    inputs = _inputs(model)
    if not inputs:
        return
    sizes = sizes or (*LIKELY_SIZES, *sorted(_named_sizes(model) - {*LIKELY_SIZES}))
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    like = next((p for p in itertools.chain(model.parameters(), model.buffers())
                 if p.is_floating_point()), torch.empty(0))
    for size in sizes:
        for channels in dict.fromkeys((first.in_channels if first else 3, 3, 1)):
            yield [like.new_zeros(1, channels, *size)] * inputs


def _named_sizes(model: nn.Module) -> set[tuple[int, int]]:
    """Return the sizes of frames that a model's parts, or their configurations, have by name."""
    found = (getattr(holder, name, None) for part in model.modules()
             for holder in (part, getattr(part, "config", None)) for name in NAMES_OF_SIZES)
    pairs = ((size, size) if isinstance(size, int) else size for size in found)
    return {tuple(pair) for pair in pairs if isinstance(pair, (tuple, list)) and len(pair) == 2
            and all(isinstance(side, int) and 0 < side < 10_000 for side in pair)}


def _inputs(model: nn.Module) -> int:
    """Return how many inputs a model's ``forward`` has."""
    try:
        return len(input_parameters(model.forward))
    except ValueError:  # of TorchScript
        return 0
