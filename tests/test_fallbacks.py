"""The whole story of what does not run locally."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.fallbacks import Fallback, fallbacks
from tests.passes.graphs import Model

FRAME = torch.randn(1, 4, 8, 10, generator=torch.Generator().manual_seed(0))


def told(model: nn.Module, **config) -> list[Fallback]:
    delta = deltaconvert.convert(model, FRAME, **config)
    return fallbacks(next(iter(delta._programs.values())).nodes)


def test_every_rule_is_told_with_its_share_and_advice():
    def forward(self, x):
        x = self.norm(self.conv(x))
        x = x.softmax(3) * self.gate(x.mean((2, 3), keepdim=True))
        return self.odd(x[:, :, None])[:, :, 0], self.line(x.flatten(1))
    model = Model(forward, conv=nn.Conv2d(4, 4, 1, bias=False), norm=nn.GroupNorm(2, 4),
                  gate=nn.Conv2d(4, 4, 1, bias=False), odd=nn.Conv3d(4, 1, 1, bias=False),
                  line=nn.Linear(320, 1, bias=False))
    found = {f.node: f for f in told(model)}
    assert [(f.rule, f.node) for f in found.values()] == [
        ("global", "norm"), ("global", "softmax"), ("global", "mean"), ("unknown", "odd")]
    total = 16 * 80 + 16 + 4 * 80 + 320
    assert [round(f.share * total) for f in found.values()] == [0, 0, 0, 320]
    assert found["norm"].reason == "its statistics are of whole maps"
    assert found["norm"].advice.startswith("none: a threshold here keeps small changes back")
    assert found["odd"].advice == "convolutions of maps N x C x H x W, with frames one by one"
    assert all(f.source.startswith(f"{__file__}:") for f in found.values())


def test_what_only_the_reference_backend_runs_is_told():
    (fallback,) = told(Model(lambda self, x: self.conv(x) > 0, conv=nn.Conv2d(4, 2, 1)))
    assert (fallback.rule, fallback.node, fallback.advice) == ("local", "gt", "another backend")
    assert "torch.bool" in fallback.reason
    assert told(Model(lambda self, x: self.conv(x) > 0, conv=nn.Conv2d(4, 2, 1)),
                backend="reference") == []


def test_a_network_that_is_local_has_nothing_to_tell():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding_mode="reflect", padding=1), nn.GELU(),
                          nn.Upsample(scale_factor=2, mode="bicubic"), nn.PixelUnshuffle(2))
    assert told(model) == []


def test_a_line_says_it_all():
    def forward(self, x):
        return F.grid_sample(x, self.grid, align_corners=False)
    (fallback,) = told(Model(forward, grid=torch.zeros(1, 8, 10, 2)))
    code = "return F.grid_sample(x, self.grid, align_corners=False)"
    assert str(fallback) == (
        f"grid_sample: grid_sample is not an operator that deltaconvert knows [0.0% of the "
        f"multiply-adds] ({fallback.source}); to be local it takes nothing: where it reads depends "
        "on the numbers in the frame")
    assert fallback.source.endswith(code)
    unheard = told(Model(lambda self, x: torch.rot90(x, 1, (2, 3))))
    assert unheard[0].advice.startswith("an operator of its own")


def test_thresholds_of_global_nodes_keep_small_changes_from_marking_everything():
    """GroupNorm, a gate, attention: a small change reaches every pixel, and is held there."""
    def attend(self, x):
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        x = x + (v @ (q.transpose(1, 2) @ k).softmax(1)).view(x.shape)
        return self.after(self.norm(x) * self.gate(x))
    torch.manual_seed(0)
    model = Model(attend, qkv=nn.Conv2d(4, 12, 1), norm=nn.GroupNorm(2, 4),
                  after=nn.Conv2d(4, 4, 3, padding=1), gate=nn.Sequential(
                      nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid()))
    for threshold, everywhere in ((0.0, True), (0.02, False)):
        delta = deltaconvert.convert(model, threshold=threshold)
        delta(FRAME)
        changed = FRAME.clone()
        changed[..., 2, 3] += 0.3
        out = delta(changed)
        assert (delta.stream.last["after"].candidates == 80) == everywhere
        assert (out - model(changed)).abs().max() <= 10 * threshold + 1e-5


def test_a_summary_says_where_a_conversion_saves_nothing():
    def summary(forward, **parts):
        return deltaconvert.convert(Model(forward, **parts), FRAME, backend="reference").summary()
    said = ("speed: 100% of the multiply-adds run whole when anything changes, and such a frame "
            "takes about what it takes the dense model; one equal to the last, next to nothing")
    assert said not in summary(lambda self, x: self.conv(x), conv=nn.Conv2d(4, 4, 3))
    assert said in summary(lambda self, x: self.conv(x[:, None]), conv=nn.Conv3d(1, 4, 3))
