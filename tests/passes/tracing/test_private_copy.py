"""Functions that a model holds see the copy, where they were made with the original."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert.passes.tracing.private_copy import private_copy

KEPT_OUTSIDE: dict[str, Tensor] = {}


class Taps(nn.Module):
    """A network that reads maps which hooks kept."""

    def __init__(self, tap: Callable[[Taps, str], Callable[..., None]]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), nn.ReLU(),
                                 nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1)))
        self.maps: dict[str, Tensor] = {}
        self.net[0].register_forward_hook(tap(self, "first"))
        self.net[2].register_forward_hook(tap(self, "last"))

    def forward(self, x: Tensor) -> Tensor:
        self.net(x)
        first, last = self.maps["first"], self.maps["last"]
        return first + F.interpolate(last, size=first.shape[2:])


def of_closure(model: Taps, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        model.maps[name] = output
    return hook


def of_default(model: Taps, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor, model: Taps = model,
             *, name: str = name) -> None:
        model.maps[name] = output
    return hook


def of_partial(model: Taps, name: str) -> Callable[..., None]:
    def hook(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        model.maps[name] = output
    return partial(hook, name)


def of_closure_within(model: Taps, name: str) -> Callable[..., None]:
    def keep(output: Tensor) -> None:
        model.maps[name] = output

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        keep(output)
    return hook


def of_global(model: Taps, name: str) -> Callable[..., None]:
    model.maps = KEPT_OUTSIDE

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        KEPT_OUTSIDE[name] = output
    return hook


@pytest.mark.parametrize("tap", [of_closure, of_default, of_partial, of_closure_within, of_global])
def test_hooks_keep_maps_of_the_copy(tap: Any) -> None:
    model = Taps(tap).eval()
    frames = [torch.rand(1, 3, 12, 16) for _ in range(3)]
    with torch.no_grad():
        wanted = [model(frame) for frame in frames]  # and leaves maps of a frame in the model
    kept = model.maps["last"]
    delta = deltaconvert.convert(model)
    for frame, want in zip(frames, wanted, strict=True):
        torch.testing.assert_close(delta(frame), want)
    assert model.maps["last"] is kept


def of_list(model: nn.Module) -> Callable[[Tensor], Tensor]:
    layers = [model.first, model.last]

    def forward(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x).relu()
        return x
    return forward


def of_method(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return model.last(self.first(x))
    return types.MethodType(forward, model)


@pytest.mark.parametrize("make", [of_list, of_method])
def test_a_forward_made_within_another_function(make: Any) -> None:
    model = nn.Module()
    model.first, model.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
    model.forward = make(model)
    frame = torch.rand(1, 3, 12, 16)
    delta = deltaconvert.convert(model)
    assert isinstance(delta, deltaconvert.DeltaModule)
    torch.testing.assert_close(delta(frame), model(frame).detach())


def test_functions_that_see_no_model_stay_the_same() -> None:
    calls = 0

    def count(*given: Any) -> None:
        nonlocal calls
        calls += 1
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.register_forward_hook(count)
    private_copy(model)(torch.rand(1, 3, 8, 8))
    assert calls == 1
