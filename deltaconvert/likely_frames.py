"""Frames as a model may take them, for their shapes alone, before anybody gave one."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

LIKELY_SIZES = ((256, 256), (224, 224))  # the second of those that take no other


def blank_frame(model: nn.Module, size: tuple[int, int]) -> Tensor:
    """Return a blank frame of a size, ``[1, C, *size]``, by the model's first convolution."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(1, first.in_channels if first else 3, *size, dtype=like.dtype,
                       device=like.device)


def takes_one_tensor(model: nn.Module) -> bool:
    """Whether a model's ``forward`` has one argument that is to be given."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except ValueError:  # of TorchScript
        return False
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
               for p in parameters) == 1
