"""What is taken to return new memory does so: asked of all that PyTorch has, not of a list."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.passes.views import memory, returns_new

HOMES = {"torch": torch, "nn.functional": F, "linalg": torch.linalg,
         "special": torch.special, "Tensor": Tensor}
SHAPES = ((2, 4, 4, 4), (2, 4, 4), (4, 4), (4,), (2, 2, 2))
# Behind the tensors; what a function does not take, it refuses.
ARGUMENTS = ((), (0,), (1,), (2,), (1, 1), (0, 1), (1, 0, 1), ((1, 1),), ((2, 4, 4, 4),), (1.0,),
             ([2, 2], 1), (torch.float32,), ((0, 1, 2, 3),), ((-2, -1),), (0.0,), (0.5,))
# They start processes, change settings, write files, or wait.
NOT_CALLED = ("set_", "manual_", "seed", "save", "load", "compile", "fork", "use_", "init", "cond",
              "while", "from_file", "get_", "is_", "share_", "vmap", "import_", "map", "unravel")


def calls(function):
    """Yield what a function returns for a tensor, and that tensor."""
    for shape in SHAPES:
        for rest in ARGUMENTS:
            for count in (1, 2, 0):
                x = torch.rand(shape) + 0.1
                given = ([x],) if count == 0 else (x,) * count
                try:
                    made = function(*given, *rest)
                except Exception:
                    continue
                if x._version == 0:  # else a number was taken for ``inplace``
                    yield made, x


def taken_to_be_new(home: str, name: str) -> bool:
    graph = fx.Graph()
    x = graph.placeholder("x")
    call = graph.call_method(name, (x,)) if home == "Tensor" else graph.call_function(
        getattr(HOMES[home], name), (x,))
    return returns_new(nn.Module(), call)


@pytest.mark.parametrize("home", HOMES)
def test_functions_that_are_taken_to_return_new_memory_do(home):
    wrong, asked = [], 0
    for name in sorted(dir(HOMES[home])):
        function = getattr(HOMES[home], name)
        if name.endswith("_") or name.startswith(("_", *NOT_CALLED)) or not callable(function) or (
                inspect.isclass(function)) or not taken_to_be_new(home, name):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shared = [memory(made) & memory(x) for made, x in calls(function)]
        asked += bool(shared)
        wrong += [name] if any(shared) else []
    assert not wrong
    assert asked > 3


LAYERS = [nn.PixelShuffle(1), nn.PixelUnshuffle(1), nn.ChannelShuffle(1), nn.ZeroPad2d(0),
          nn.ReflectionPad2d(0), nn.ReplicationPad2d(0), nn.ConstantPad2d(0, 0.0),
          nn.CircularPad2d(0),
          nn.Upsample(scale_factor=1), nn.Upsample(size=4), nn.UpsamplingNearest2d(scale_factor=1),
          nn.UpsamplingBilinear2d(scale_factor=1), nn.MaxPool2d(1), nn.AvgPool2d(1),
          nn.LPPool2d(1, 1), nn.AdaptiveAvgPool2d(4), nn.AdaptiveAvgPool2d((None, 4)),
          nn.AdaptiveMaxPool2d(4), nn.FractionalMaxPool2d(1, 4), nn.Softmax2d(), nn.Threshold(0, 0),
          nn.Hardtanh(), nn.LocalResponseNorm(1), nn.InstanceNorm2d(4), nn.CrossMapLRN2d(1),
          nn.Unfold(1), nn.Fold(4, 1), nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(1, 4),
          nn.BatchNorm2d(4), nn.Hardshrink(0.0), nn.Softshrink(0.0), nn.GLU(), nn.RReLU()]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_layers_that_are_taken_to_return_new_memory_do(layer):
    x = torch.rand(1, 4, 4, 4) + 0.1
    inner = x.flatten(2) if isinstance(layer, nn.Fold) else x
    assert memory(layer.eval()(inner)).isdisjoint(memory(x))


def test_pytree_knows_what_topk_returns():
    """`memory` looks into it."""
    assert len(memory(torch.rand(4).topk(2))) == len(pytree.tree_leaves(torch.rand(4).topk(2))) == 2
