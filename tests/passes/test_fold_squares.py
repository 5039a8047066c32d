"""A convolution of pixels that were put into channels is one of the map, with a wider filter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.reference import ReferenceBackend
from tests.passes.graphs import Model, assert_same_outputs, frames_like, program_of, specialised


def focus(x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]],
                     1)


def unordered(x: Tensor) -> Tensor:
    return torch.cat([x[:, 1:, 1::2, ::2], x[..., ::2, ::2], x[:, :1, 1::2, ::2],
                      x[..., 1::2, 1::2], x[..., ::2, 1::2]], 1)


FOLDED = {
    "focus": lambda self, x: F.relu(self.conv(focus(x))),
    "in another order": lambda self, x: self.conv(unordered(x)),
    "pixel unshuffle": lambda self, x: self.conv(F.pixel_unshuffle(x, 2)),
    "written as views": lambda self, x: self.conv(
        x.view(x.shape[0], 3, 6, 2, 8, 2).permute(0, 3, 5, 1, 2, 4).reshape(-1, 12, 6, 8)),
    "shuffled behind": lambda self, x: self.conv(F.pixel_unshuffle(x, 2).flip(1)),
    "strided": lambda self, x: self.strided(focus(x)),
    "patches": lambda self, x: self.narrow(F.pixel_unshuffle(x[:, :1], 4)),
    "the parts have other readers": lambda self, x: (
        self.conv(focus(x)), F.relu(x[..., ::2, ::2])),
}
LEFT = {
    "another reader": lambda self, x: (lambda f: self.conv(f) + f.mean(1, keepdim=True))(focus(x)),
    "a place is missing": lambda self, x: self.conv(torch.cat(
        [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., ::2, ::2]], 1)),
    "of two maps": lambda self, x: self.conv(torch.cat(
        [x[..., ::2, ::2], x[..., 1::2, ::2], (x * 2)[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)),
    "halves in the place of squares": lambda self, x: self.conv(torch.cat(
        [x[..., :6, ::2], x[..., 6:, ::2], x[..., :6, 1::2], x[..., 6:, 1::2]], 1)),
    "with gaps": lambda self, x: self.dilated(focus(x)),
    "in groups": lambda self, x: self.grouped(focus(x)),
    "the filter depends on the frame": lambda self, x: F.conv2d(
        focus(x), self.conv.weight * x.amax()),
    "too wide": lambda self, x: self.narrow(F.pixel_unshuffle(x[:, :1], 4)),
}


def model(function) -> Model:
    torch.manual_seed(0)
    return Model(function, conv=nn.Conv2d(12, 5, 3, padding=1), narrow=nn.Conv2d(16, 3, 1),
                 strided=nn.Conv2d(12, 5, (3, 5), (2, 1), (1, 2), bias=False),
                 dilated=nn.Conv2d(12, 5, 3, padding=2, dilation=2),
                 grouped=nn.Conv2d(12, 6, 3, groups=2))


@pytest.mark.parametrize("what", FOLDED)
def test_folds(what, monkeypatch):
    stages = specialised(model(FOLDED[what]), torch.randn(1, 3, 12, 16), squares=16)
    assert len(stages["results"]["fold_squares"].changed) == 1
    assert not {"cat", "pixel_unshuffle"} & set(stages["fold_squares"])
    monkeypatch.setattr(ReferenceBackend, "squares", 16)
    assert_same_outputs(model(FOLDED[what]), frames_like(2, 3, 12, 16))


@pytest.mark.parametrize("what", LEFT)
def test_leaves_the_others(what, monkeypatch):
    stages = specialised(model(LEFT[what]), torch.randn(1, 3, 12, 16), squares=12)
    assert not stages["results"]["fold_squares"].changed
    monkeypatch.setattr(ReferenceBackend, "squares", 12)
    assert_same_outputs(model(LEFT[what]), frames_like(2, 3, 12, 16))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_same_on_the_cpu_backend(dtype):
    """In bfloat16 the filter is rounded once, and pixels are picked as they are stored."""
    dense = model(FOLDED["focus"])
    delta, plain = (deltaconvert.convert(dense, dtype=dtype, backend=name)
                    for name in ("cpu", "reference"))
    for frame in frames_like(2, 3, 12, 16):
        found, expected = delta(frame.float()), plain(frame.float())
        tolerance = 1e-5 if dtype is None else 2**-7
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert [n.about.function_name for n in program_of(delta).nodes] == ["sparsify", "conv2d"]


def test_new_weights_are_spread_again():
    dense = model(FOLDED["focus"])
    delta = deltaconvert.convert(dense)
    frame = torch.randn(1, 3, 12, 16)
    delta(frame)
    weights = {name: 2 * value for name, value in dense.state_dict().items()}
    delta.load_state_dict(weights)
    dense.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(delta(frame), dense(frame), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cat", "cat*"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_settings_may_name_what_another_backend_keeps(name, backend):
    """They hold back nothing there either; a name that no backend has is refused still."""
    dense, frame = model(FOLDED["focus"]), torch.randn(1, 3, 12, 16)
    delta = deltaconvert.convert(dense, backend=backend, nodes={name: 0.5})
    with torch.no_grad():
        torch.testing.assert_close(delta(frame), dense(frame), rtol=1e-5, atol=1e-5)
    assert not any(node.about.threshold for node in program_of(delta).nodes)
    with pytest.raises(deltaconvert.ConfigError, match="matches no node"):
        deltaconvert.convert(dense, backend=backend, nodes={"dog": 0.5})(frame)
