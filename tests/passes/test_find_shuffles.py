"""Views that shuffle pixels and channels become one pixel shuffle."""

from __future__ import annotations

import pytest
import torch

from tests.passes.graphs import Model, assert_same_outputs, frames_like, specialised


def up(order):
    """Channels to pixels; ``order`` puts a square's channels first or the map's."""
    def function(self, x):
        n, c, h, w = x.shape
        shape = (n, 2, 2, c // 4, h, w) if order == "square first" else (n, c // 4, 2, 2, h, w)
        dims = (0, 3, 4, 1, 5, 2) if order == "square first" else (0, 1, 4, 2, 5, 3)
        return x.view(shape).permute(dims).reshape(n, c // 4, 2 * h, 2 * w)
    return function


def down(order):
    def function(self, x):
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2)
        dims = (0, 3, 5, 1, 2, 4) if order == "square first" else (0, 1, 3, 5, 2, 4)
        return x.permute(dims).reshape(n, 4 * c, h // 2, w // 2)
    return function


CASES = {
    "up": (up("map first"), ["pixel_shuffle"]),
    "up, square first": (up("square first"), ["select", "pixel_shuffle"]),
    "down": (down("map first"), ["pixel_unshuffle"]),
    "down, square first": (down("square first"), ["pixel_unshuffle", "select"]),
}


@pytest.mark.parametrize("what", CASES)
def test_is_found(what):
    function, expected = CASES[what]
    model = Model(lambda self, x: function(self, x) + 1)
    stages = specialised(model, torch.randn(2, 8, 4, 6))
    assert stages["infer"] == [*expected, "add"]
    assert set(stages["results"]["partition"].changed) == {
        f"{n.name}: local" for n in stages["graph"].nodes if n.op == "call_function"}
    assert_same_outputs(Model(function), frames_like(2, 8, 4, 6))


OTHERS = {
    "columns before rows": lambda self, x: x.view(2, 2, 2, 2, 4, 6).permute(
        0, 1, 5, 3, 4, 2).reshape(2, 2, 12, 8),
    "a longer map": lambda self, x: x.reshape(2, 2, 16, 6),
    "more channels, fewer rows": lambda self, x: x.reshape(2, 32, 2, 3),
    "lanes too": lambda self, x: x.reshape(4, 4, 4, 6),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_none_runs_whole(what):
    model = Model(OTHERS[what])
    stages = specialised(model, torch.randn(2, 8, 4, 6))
    assert not {"pixel_shuffle", "pixel_unshuffle", "select"} & set(stages["infer"])
    assert_same_outputs(model, frames_like(2, 8, 4, 6))
