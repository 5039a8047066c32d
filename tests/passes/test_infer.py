"""Shapes, constants, and arithmetic on shapes that becomes numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.errors import FrameError
from deltaconvert.fallbacks import fallbacks
from tests.passes.graphs import (
    Model,
    assert_same_outputs,
    frames_like,
    program_of,
    specialised,
    trained_norm,
)


def arithmetic(self, x):
    n, c, h, w = x.shape
    flat = x.reshape(n * c, 1, h, w)
    return flat.view(n, -1, h // 2 * 2, w) + h * w / 10


def sizes_as_arguments(self, x):
    return F.interpolate(self.conv(x), size=x.shape[-2:]) + x.size(1) + x.dim() - x.numel() / 100


def slices_by_size(self, x):
    half = x.size(1) // 2
    return x[:, :half] * x[:, half:, : x.shape[2], -x.shape[3]:]


@pytest.mark.parametrize("function", [arithmetic, sizes_as_arguments, slices_by_size])
def test_arithmetic_on_shapes_becomes_numbers(function):
    model = Model(function, conv=nn.Conv2d(4, 4, 3, stride=2))
    stages = specialised(model, torch.randn(2, 4, 6, 5))
    assert {"getattr", "size", "floordiv"} & set(stages["normalize"])
    assert not {"getattr", "getitem", "size", "dim", "floordiv", "mul_1"} & set(stages["infer"])
    assert_same_outputs(model, frames_like(2, 4, 6, 5))


def test_the_same_model_serves_other_sizes():
    model = Model(arithmetic).double()
    delta = deltaconvert.convert(model)
    for shape in [(2, 4, 6, 5), (1, 4, 8, 3), (3, 4, 2, 2)]:
        frame = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(delta(frame), model(frame), rtol=1e-9, atol=1e-9)


def test_what_does_not_depend_on_the_frame_is_computed_once():
    def forward(self, x):
        grid = torch.arange(x.shape[3], dtype=x.dtype).view(1, 1, 1, -1)
        return x * torch.sigmoid(self.w * 2) + grid
    model = Model(forward, w=torch.randn(1, 2, 1, 1))
    delta = assert_same_outputs(model, frames_like(2, 2, 4, 5))
    assert [n.about.operator.name for n in program_of(delta).nodes[1:]] == ["mul", "add"]


def test_what_takes_only_a_shape_from_the_frame_is_constant():
    def forward(self, x):
        scale = self.w.unsqueeze(0).unsqueeze(2).unsqueeze(3).expand_as(x)
        ones = torch.ones_like(x[:, :1]) + x.new_full((1, 1, 4, 5), 2.0)
        return x * (scale * 2) + ones, scale, ones
    delta = assert_same_outputs(Model(forward, w=torch.randn(2)), frames_like(2, 2, 4, 5))
    assert [n.about.operator.name for n in program_of(delta).nodes[1:3]] == ["mul", "add"]


@pytest.mark.parametrize("size", [
    lambda x: x.size(), lambda x: x.shape[-2:], lambda x: [x.size(2), x.size(3)],
    lambda x: (9, 10)])
def test_a_transposed_convolution_may_be_told_its_output_size(size):
    model = Model(lambda self, x: self.up(self.down(x), output_size=size(x)),
                  down=nn.Conv2d(2, 4, 3, (2, 3), 1),
                  up=nn.ConvTranspose2d(4, 2, (3, 5), (2, 3), (1, 2), dilation=(1, 1)))
    delta = assert_same_outputs(model, frames_like(2, 2, 9, 10))
    assert {n.about.rule for n in program_of(delta).nodes} == {"local", "sparsify"}


def test_conversions_to_what_it_is_already_disappear():
    model = Model(lambda self, x: x.to(x.dtype).type_as(x).expand_as(x) + x.float())
    stages = specialised(model, torch.randn(1, 2, 3, 3))
    assert stages["infer"] == ["add"]
    delta = deltaconvert.convert(model)
    half = torch.randn(1, 2, 3, 3).half()
    assert torch.equal(delta(half), model(half))


@pytest.mark.parametrize("others, left", [(0, ["conv2d", "relu"]), (1, ["conv2d", "cat", "relu"])])
def test_parts_without_numbers_are_not_joined(others, left):
    """The encoders of segmentation models have one in the place of a map that they do not make."""
    def forward(self, x):
        none = torch.empty([x.shape[0], 0, x.shape[2], x.shape[3]], dtype=x.dtype)
        return F.relu(torch.cat([none, self.conv(x), *[x] * others], dim=1))
    model = Model(forward, conv=nn.Conv2d(3, 2, 3, padding=1))
    assert specialised(model, torch.randn(1, 3, 6, 7))["infer"] == left
    delta = assert_same_outputs(model, frames_like(1, 3, 6, 7))
    assert not fallbacks(program_of(delta).nodes)


def test_a_frame_that_does_not_fit_names_the_line():
    model = Model(lambda self, x: self.conv(F.relu(x)), conv=nn.Conv2d(3, 2, 5))
    delta = deltaconvert.convert(model)
    with pytest.raises(FrameError,
                       match=r"(?s)conv fails on .*\(1, 4, 8, 8\).*self\.conv\(F\.relu"):
        delta(torch.randn(1, 4, 8, 8))
    with pytest.raises(FrameError, match="conv fails"):
        delta(torch.randn(1, 3, 4, 4))
    with pytest.raises(FrameError, match="conv fails"):
        delta(torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert delta(torch.randn(1, 3, 8, 8)).shape == (1, 2, 4, 4)


torch.fx.wrap("kept_if_large")


def kept_if_large(x):
    return x * (x.abs().sum().item() > 1e9)


def test_an_operator_that_needs_numbers_is_run_on_zeros():
    model = Model(lambda self, x: kept_if_large(x))
    delta = assert_same_outputs(model, frames_like(1, 2, 4, 4))
    (result,) = [r for r in program_of(delta).results if r.name == "infer"]
    assert "real numbers" in result.refused["graph"]


def test_derived_weights_are_double_on_the_way():
    """A variance of 1e-12 in single precision, folded, is as good as the norm itself."""
    norm = trained_norm(2)
    norm.eps = 1e-30  # some versions of PyTorch refuse 0
    norm.running_var.fill_(1e-12)
    model = Model(lambda self, x: self.norm(self.conv(x)), conv=nn.Conv2d(2, 2, 1), norm=norm)
    frame = torch.randn(1, 2, 4, 4)
    exact = model.double()(frame.double())
    out = deltaconvert.convert(model.float())(frame)
    assert (out - exact).abs().max() < 1e-5 * exact.abs().max()


def test_multiply_adds_of_attention_count():
    def forward(self, x):
        q = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q[:, :5], q[:, :5, :2])
    delta = deltaconvert.convert(Model(forward))
    delta(torch.randn(2, 4, 3, 6))
    (node,) = [n for n in program_of(delta).nodes if n.about.rule == "global"]  # all of it
    assert node.dense_multiply_adds == 18 * 5 * (4 + 2)


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_is_refused():
    from torch.ao.nn import quantized
    model = nn.Sequential(quantized.Quantize(0.1, 0, torch.quint8), quantized.Conv2d(3, 2, 1),
                          quantized.DeQuantize())
    with pytest.raises(deltaconvert.UnsupportedError, match="before it was quantised"):
        deltaconvert.convert(model)(torch.rand(1, 3, 4, 4))


def marks_the_best(self, x):
    """Make a mask of a map's shape, whose number of pixels only its numbers tell."""
    scores = self.conv(x)[:, :1]
    mask = torch.zeros_like(scores).flatten(1)
    mask = mask.scatter(1, scores.flatten(1).topk(3, dim=1).indices, 1.0)
    return torch.nonzero(mask).float() + x.mean()


def test_a_shape_that_was_asked_for_is_asked_again_where_numbers_are_needed():
    assert_same_outputs(Model(marks_the_best, conv=nn.Conv2d(3, 2, 3)), frames_like(1, 3, 8, 9))
