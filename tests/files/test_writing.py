"""How modules and functions are written, and which cannot be."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import deltaconvert
from deltaconvert import UnsupportedError
from deltaconvert.files import load, save
from tests.files.saving import assert_comes_back, clip, trained

LEAVES = {
    "gelu": lambda: nn.GELU("tanh"),
    "prelu": lambda: nn.PReLU(4, 0.3),
    "elu": lambda: nn.ELU(0.7, inplace=True),
    "hardsigmoid": nn.Hardsigmoid,
    "softplus": lambda: nn.Softplus(2.0, 5.0),
    "group_norm": lambda: nn.GroupNorm(2, 4),
    "layer_norm": lambda: nn.LayerNorm([4, 12, 12], eps=1e-3),
    "instance_norm": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "instance_norm_plain": lambda: nn.InstanceNorm2d(4),
    "batch_norm_without_statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "local_response_norm": lambda: nn.LocalResponseNorm(2),
    "reflect": lambda: nn.ReflectionPad2d((1, 2, 0, 1)),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "pixel_shuffle": lambda: nn.PixelShuffle(2),
    "max_pool_indices": lambda: nn.MaxPool2d(2, return_indices=True),
}


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("leaf", LEAVES)
def test_modules_of_torch_become_their_function(leaf, threshold, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), LEAVES[leaf]())
    loaded = assert_comes_back(trained(model), tmp_path / "m.delta", clip(2, 3, 12, 12),
                               threshold=threshold)
    assert not any(node.op == "call_module" for node in loaded.graph.nodes)


def test_norms_take_frames_without_lanes_as_their_modules_do(tmp_path):
    model = nn.Sequential(nn.InstanceNorm2d(3))
    save(deltaconvert.convert(model, backend="reference"), tmp_path / "m.delta")
    frame = torch.randn(3, 8, 8)
    torch.testing.assert_close(load(tmp_path / "m.delta")(frame), model(frame))
    model = nn.Sequential(nn.InstanceNorm1d(3))
    save(deltaconvert.convert(model, backend="reference"), tmp_path / "m.delta")
    with pytest.raises(deltaconvert.FrameError, match="takes 3 dimensions"):
        load(tmp_path / "m.delta")(torch.randn(3, 8))


@fx.wrap
def their_own(x: Tensor) -> Tensor:
    return x.sin()


class _Grids(nn.Module):
    """Places of pixels, as detectors make them, and a tensor made like another."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(
            [torch.arange(x.shape[2]), torch.arange(x.shape[3])], indexing="ij")
        return x * torch.stack([rows, columns, rows]).float() + x.new_tensor([2.0])


def test_grids_are_written(tmp_path):
    delta = deltaconvert.convert(_Grids(), backend="reference")
    save(delta, tmp_path / "m.delta")
    loaded = load(tmp_path / "m.delta")
    for size in (4, 6):
        x = torch.randn(1, 3, size, 5)
        assert torch.equal(loaded(x), _Grids()(x))


class _Unwritable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.mirrored = nn.Conv1d(3, 4, 3, padding=1, padding_mode="reflect")
        self.hooked = nn.GELU()
        self.hooked.register_forward_hook(lambda module, args, out: out + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = their_own(self.hooked(self.mirrored(x.flatten(2))))
        x = x + torch.rand_like(x)
        tokens = x.flatten(2).permute(2, 0, 1)
        return self.attention(tokens, tokens, tokens)[0]


def test_all_that_cannot_be_written_is_listed_at_once(tmp_path):
    delta = deltaconvert.convert(_Unwritable(), backend="reference")
    with pytest.raises(UnsupportedError) as refused:
        save(delta, tmp_path / "m.delta")
    text = str(refused.value)
    assert text.startswith("5 parts of this model cannot be written to a file")
    assert "mirrored (Conv1d): it is not one function but 2 (pad, conv1d)" in text
    assert "hooked (GELU): it has forward hooks" in text
    assert ".their_own is not among the functions that a file may name" in text
    assert "rand_like is not among the functions" in text
    assert "attention (MultiheadAttention): what it computes cannot be traced" in text
    assert "test_writing.py" in text
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnsupportedError, match=r"^1 part of this model cannot be written"):
        save(deltaconvert.convert(_Random(), backend="reference"), tmp_path / "m.delta")


class _Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@dataclass
class Custom:
    map: Tensor


pytree.register_pytree_node(Custom, lambda c: ([c.map], None), lambda parts, _: Custom(*parts))


class _ReturnsCustom(nn.Module):
    def forward(self, x: Tensor) -> Custom:
        return Custom(x + 1)


class _ExtraState(nn.Conv2d):
    def get_extra_state(self) -> Any:
        return {"more": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


class _Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(4, 4).to_sparse()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


@pytest.mark.parametrize("make, message", [
    (_ReturnsCustom, r"returns a .*Custom, which needs the model's source"),
    (lambda: nn.Sequential(_ExtraState(3, 4, 3)), "changes its state dict with code of its own"),
    (lambda: nn.Conv2d(3, 4, 3, device="meta"), "'weight' is on the meta device"),
    (lambda: nn.Sequential(OrderedDict({"a(b": nn.Conv2d(3, 4, 1)})), "has a name that is too"),
    (_Sparse, "'table' is sparse or quantised"),
    (lambda: nn.Conv2d(3, 4, 3, dtype=torch.complex64), "of torch.complex64, which"),
])
def test_what_save_refuses(make, message, tmp_path):
    delta = deltaconvert.convert(make(), backend="reference")
    with pytest.raises(UnsupportedError, match=message):
        save(delta, tmp_path / "m.delta")
    assert list(tmp_path.iterdir()) == []
