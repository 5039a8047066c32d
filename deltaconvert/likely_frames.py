"""Frames as a model may take them, for their shapes alone, before anybody gave one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from deltaconvert.passes.input_parameters import input_parameters

LIKELY_SIZES = ((256, 256), (224, 224))  # the second of those that take no other


def likely_frames(model: nn.Module, sizes: Sequence[tuple[int, int]] = LIKELY_SIZES
                  ) -> Iterator[Tensor]:
    """Yield blank frames, ``[1, C, H, W]``, that a model of one input may take, likely ones first.

    The channels are those of its first convolution, or, where that is fed something else, those
    of pictures. None for a model of several inputs.
    """
    if not _takes_one_tensor(model):
        return
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for size in sizes:
        for channels in dict.fromkeys((first.in_channels if first else 3, 3, 1)):
            yield like.new_zeros(1, channels, *size)


def _takes_one_tensor(model: nn.Module) -> bool:
    """Whether a model's ``forward`` has one input."""
    try:
        return len(input_parameters(model.forward)) == 1
    except ValueError:  # of TorchScript
        return False
