"""Models whose files can be told apart, and what a file must give back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import deltaconvert
from deltaconvert.files import load, save


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model random weights and statistics that no default would have, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() < 2:
            tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.2)
    return model.eval()


def clip(*shape: int, frames: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Frames of which a corner of a few pixels moves."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=generator)]
    for time in range(1, frames):
        frame = made[-1].clone()
        frame[..., time:time + 3, time:time + 4] = torch.randn(
            *shape[:-2], 3, 4, generator=generator)
        made.append(frame)
    return [frame.to(dtype) for frame in made]


def assert_comes_back(model: nn.Module, path: Path, frames: list[Tensor], **settings: Any
                      ) -> deltaconvert.DeltaModule:
    """Save and load; outputs, state dict, settings and a second file must be the same."""
    delta = deltaconvert.convert(model, **{"backend": "reference", **settings})
    save(delta, path)
    loaded = load(path)
    assert loaded.config == delta.config
    assert loaded.input_names == delta.input_names
    before, after = delta.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name
    for time, frame in enumerate(frames):
        expected, found = (pytree.tree_leaves(module(frame)) for module in (delta, loaded))
        for one, other in zip(expected, found, strict=True):
            same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
            assert same, f"frame {time}: {one} is not {other}"
    save(loaded, path.with_suffix(".again"))
    assert path.with_suffix(".again").read_bytes() == path.read_bytes()
    return loaded
