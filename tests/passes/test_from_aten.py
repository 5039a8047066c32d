"""ATen's operators become the same canonical operators as the source they were exported from."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import export

import deltaconvert
from deltaconvert.passes import from_aten
from tests.passes.graphs import Model, trained_norm

FRAME = torch.randn(1, 4, 9, 12, generator=torch.Generator().manual_seed(0))

MODELS = {
    "conv": nn.Conv2d(4, 6, 3, 2, 1, groups=2),
    "conv_same": nn.Conv2d(4, 3, (2, 4), padding="same", dilation=(1, 2)),
    "conv_valid": nn.Conv2d(4, 3, 3, padding="valid", bias=False),
    "conv_transpose": nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1),
    "norm": nn.Sequential(nn.Conv2d(4, 4, 1), trained_norm(4)),
    "norm_alone": trained_norm(4),
    "relu": nn.ReLU(inplace=True), "relu6": nn.ReLU6(), "relu6_": nn.ReLU6(inplace=True),
    "leaky": nn.LeakyReLU(0.2), "leaky_": nn.LeakyReLU(0.2, inplace=True),
    "silu": nn.SiLU(), "silu_": nn.SiLU(inplace=True), "hardswish": nn.Hardswish(),
    "hardswish_": nn.Hardswish(inplace=True), "sigmoid": nn.Sigmoid(), "softmax": nn.Softmax(1),
    "max_pool": nn.MaxPool2d(3, 2, 1), "max_pool_ceil": nn.MaxPool2d(2, ceil_mode=True),
    "avg_pool": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "adaptive": nn.AdaptiveAvgPool2d((3, 4)), "adaptive_to_one": nn.AdaptiveAvgPool2d(1),
    "adaptive_max": nn.AdaptiveMaxPool2d(2),
    "nearest": nn.Upsample(scale_factor=2), "nearest_size": nn.Upsample(size=(5, 7)),
    "nearest_exact": nn.Upsample(scale_factor=1.5, mode="nearest-exact"),
    "pad": nn.ZeroPad2d((1, 2, 0, 1)), "dropout": nn.Dropout(0.5),
    "head": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    "mean": Model(lambda self, x: x.mean((2, 3), keepdim=True)),
    "add": Model(lambda self, x: torch.add(x, x * 2, alpha=0.5) + 1),
    "sub": Model(lambda self, x: 1 - x), "iadd": Model(lambda self, x: (x * 1).add_(x)),
    "cat": Model(lambda self, x: torch.cat([x, x.relu()], 1)),
    "gate": Model(lambda self, x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "chunk": Model(lambda self, x: x.chunk(2, 1)[1]),
    "split": Model(lambda self, x: x.split([1, 3], 1)[1]),
    "slices": Model(lambda self, x: x[:, 1:3, ::2, -5:-1]),
    "shuffle": Model(lambda self, x: x.view(1, 2, 2, 9, 12).transpose(1, 2).reshape(1, 4, 9, 12)),
    "matrix": Model(lambda self, x: F.linear(x.flatten(2), self.w), w=torch.randn(5, 108)),
    "clone": Model(lambda self, x: x.contiguous().clone().detach() + x.to(torch.float32)),
}


def operators(delta: deltaconvert.DeltaModule) -> list[str]:
    """What runs, once shapes are known: the operators of the lowered graph."""
    program = delta.program(delta.signature([FRAME]), [FRAME])
    return [n.about.operator.name if n.about.operator else str(n.about.rule)
            for n in program.nodes]


@pytest.mark.parametrize("name", MODELS)
def test_a_program_has_the_operators_of_its_source(name):
    model = nn.Sequential(MODELS[name]).eval()
    from_program = deltaconvert.convert(export(model, (FRAME.clone(),)))
    assert operators(from_program) == operators(deltaconvert.convert(model))
    assert "unknown" not in operators(from_program)
    assert_agrees(from_program, model)


@pytest.mark.parametrize("names", [
    ("norm", "relu", "max_pool", "nearest", "pad", "conv"), ("silu_", "conv_same", "avg_pool"),
    ("norm_alone", "hardswish_", "adaptive_max", "cat"), ("relu6_", "leaky_", "chunk", "iadd"),
    ("slices",), ("conv_transpose",), ("shuffle", "head"), ("softmax", "sub", "adaptive"),
    ("matrix",)])
def test_a_program_that_pytorch_took_apart_computes_the_same(names):
    model = nn.Sequential(*(copy.deepcopy(MODELS[name]) for name in names)).eval()
    program = export(model, (FRAME.clone(),)).run_decompositions()
    assert_agrees(deltaconvert.convert(program), model)


def assert_agrees(delta: deltaconvert.DeltaModule, model: nn.Module) -> None:
    moved = FRAME.clone()
    moved[..., 2:4, 3:5] += 1
    for frame in (FRAME, moved):
        with torch.no_grad():
            wanted = model(frame.clone())
        torch.testing.assert_close(delta(frame), wanted)


def test_names_that_an_adapter_renames_exist():
    for name in (*from_aten.RENAMED, *from_aten.ADAPTERS, *from_aten.OF_SEVERAL):
        assert hasattr(torch.ops.aten, name), name


@pytest.mark.parametrize("name", ["from_file", "bernoulli_", "set_", "resize_"])
def test_what_is_not_pure_has_no_meaning(name):
    with pytest.raises(from_aten.NoMeaning):
        from_aten.meaning(name, {"self": None}, True)
