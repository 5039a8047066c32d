"""`STEPS`, the table of what the random networks of the property tests are made of.

A new operator is one function here, decorated with ``@step``: it draws its own settings and
returns a module that takes as many maps as the function has shapes behind ``draw``, or ``None``
where nothing fits such maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Shape = tuple[int, ...]
Draw = Callable[[Any], Any]
Step = Callable[..., "nn.Module | None"]

STEPS: dict[str, Step] = {}
MOST_CHANNELS = 12


def step(function: Step) -> Step:
    """Put a function into the table under its own name."""
    STEPS[function.__name__] = function
    return function


class Call(nn.Module):
    """A function as a module: ``Call(lambda self, x: self.conv(x) + x, conv=...)``.

    What it is given by name becomes a submodule or, where it is a tensor, a parameter.
    """

    def __init__(self, function: Callable[..., Any], **own: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in own.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, Tensor) else value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def one_of(draw: Draw, *choices: Any) -> Any:
    return draw(st.sampled_from(choices))


def number(draw: Draw, low: int, high: int) -> int:
    return draw(st.integers(low, high))


def pair(draw: Draw, low: int, high: int) -> tuple[int, int]:
    return number(draw, low, high), number(draw, low, high)


def divisor(draw: Draw, count: int) -> int:
    return one_of(draw, *(d for d in range(1, count + 1) if count % d == 0))


def norm_layer(channels: int, **settings: Any) -> nn.BatchNorm2d:
    """A BatchNorm with statistics as after training."""
    norm = nn.BatchNorm2d(channels, **settings)
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.3, 2)
    if norm.affine:
        nn.init.uniform_(norm.weight, -1, 2)
        nn.init.normal_(norm.bias, 0, 0.3)
    return norm


def same_size(channels: int, out: int | None = None, kernel: int = 3, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out or channels, kernel, padding=kernel // 2, **settings)


# Convolutions


@step
def conv2d(draw, x):
    groups = divisor(draw, x[1])
    return nn.Conv2d(x[1], groups * number(draw, 1, 2), pair(draw, 1, 4), stride=pair(draw, 1, 3),
                     padding=pair(draw, 0, 3), dilation=pair(draw, 1, 2), groups=groups,
                     bias=draw(st.booleans()))


@step
def conv2d_same(draw, x):
    return nn.Conv2d(x[1], number(draw, 1, 4), pair(draw, 1, 4), padding="same",
                     dilation=pair(draw, 1, 2))


@step
def depthwise(draw, x):
    kernel = one_of(draw, 3, 5)
    return nn.Conv2d(x[1], x[1], kernel, stride=number(draw, 1, 2), padding=kernel // 2,
                     groups=x[1], bias=draw(st.booleans()))


@step
def pointwise(draw, x):
    return nn.Conv2d(x[1], number(draw, 1, 6), 1)


@step
def conv_transpose2d(draw, x):
    groups, stride, dilation = divisor(draw, x[1]), number(draw, 1, 3), number(draw, 1, 2)
    return nn.ConvTranspose2d(x[1], groups * number(draw, 1, 2), pair(draw, 1, 4), stride=stride,
                              padding=pair(draw, 0, 1), groups=groups, dilation=dilation,
                              output_padding=number(draw, 0, max(stride, dilation) - 1),
                              bias=draw(st.booleans()))


@step
def conv_norm_activation(draw, x):
    conv = one_of(draw, same_size(x[1], 4), nn.ConvTranspose2d(x[1], 4, 2, stride=2))
    return nn.Sequential(conv, norm_layer(4), one_of(draw, *activations(draw)))


@step
def conv_called_twice_with_two_norms(draw, x):
    return Call(lambda self, x: self.one(self.conv(x)) + self.two(self.conv(x)),
                conv=same_size(x[1]), one=norm_layer(x[1]), two=norm_layer(x[1]))


@step
def batch_norm(draw, x):
    return norm_layer(x[1], affine=draw(st.booleans()))


@step
def residual(draw, x):
    """The kernel of 2 with a dilation of 2 does not read the pixel that is added."""
    conv = one_of(draw, same_size(x[1]), nn.Conv2d(x[1], x[1], 2, padding=1, dilation=2),
                  same_size(x[1], groups=x[1]))
    activation = one_of(draw, nn.Identity(), nn.ReLU(), nn.SiLU())
    swap = draw(st.booleans())
    return Call(lambda self, x: self.activation(x + self.conv(x) if swap else self.conv(x) + x),
                conv=conv, activation=activation)


@step
def conv_with_two_readers(draw, x):
    return Call(lambda self, x: self.fold(x) * torch.sigmoid(x),
                fold=nn.Sequential(same_size(x[1]), Call(lambda self, c: c + F.relu(c))))


# Pointwise


def activations(draw):
    slope, inplace = draw(st.floats(0.01, 0.5)), draw(st.booleans())
    return [nn.ReLU(inplace), nn.ReLU6(inplace), nn.LeakyReLU(slope, inplace),
            nn.Hardswish(inplace), nn.Sigmoid(), nn.SiLU(inplace), nn.GELU(), nn.GELU("tanh"),
            nn.Hardsigmoid(inplace), nn.Hardtanh(-slope, 1, inplace), nn.Tanh(),
            nn.ELU(slope, inplace), nn.CELU(slope, inplace), nn.SELU(inplace),
            nn.Softplus(1 + slope), nn.Mish(inplace), nn.LogSigmoid(), nn.Softsign(),
            nn.Tanhshrink(), nn.Softshrink(slope), nn.PReLU(init=slope)]


@step
def activation(draw, x):
    return one_of(draw, *activations(draw))


@step
def activation_function(draw, x):
    function = one_of(draw, torch.relu, F.relu6, F.hardswish, torch.sigmoid, F.silu,
                      lambda x: F.leaky_relu(x, 0.3), lambda x: F.leaky_relu_(x, 0.2),
                      lambda x: x.relu_(), lambda x: F.relu(x, inplace=True),
                      lambda x: x.sigmoid(), torch.sigmoid_)
    return Call(lambda self, x: function(x))


@step
def pointwise_function(draw, x):
    """Of numbers where they are well-conditioned: near a pole any network is at odds."""
    function = one_of(draw, torch.abs, torch.exp, torch.sin, torch.square, torch.erf, torch.atan,
                      torch.cos, torch.asinh, torch.neg, lambda x: torch.log1p(x.abs()),
                      lambda x: (x.abs() + 1).sqrt(), lambda x: (x.abs() + 1).rsqrt_(),
                      lambda x: torch.exp(-x.abs(), out=torch.empty_like(x)))
    return Call(lambda self, x: function(x.clamp(-3, 3)))


@step
def threshold_function(draw, x):
    """What jumps is applied to the input's own numbers, not to rounded ones."""
    return Call(lambda self, x: self.jump(x), jump=one_of(
        draw, nn.Threshold(10.0, 11.0), nn.Hardshrink(1e-6)))


@step
def softmax(draw, x):
    return one_of(draw, nn.Softmax(1), nn.Softmax(-3), nn.Softmax(2), nn.Softmax2d(),
                  nn.LogSoftmax(1))


@step
def over_channels(draw, x):
    """Reductions, norms and gates that a pixel makes of its own channels."""
    both = Call(lambda self, x: torch.cat([x.amax(1, True), torch.max(x, 1, keepdim=True)[0],
                                           x.mean(1, keepdim=True)], 1))
    return one_of(draw, both, Call(lambda self, x: x.sum(1, keepdim=True)),
                  Call(lambda self, x: x.logsumexp(1, keepdim=True)),
                  Call(lambda self, x: (x * x + 1).norm(dim=1, keepdim=True)),
                  Call(lambda self, x: x.var(1, unbiased=False, keepdim=True)),
                  Call(lambda self, x: F.normalize(x.abs() + 1, dim=1)),
                  nn.LocalResponseNorm(3, alpha=0.5), nn.GLU(1) if x[1] % 2 == 0 else both)


@step
def arithmetic(draw, x, y):
    """Two maps that broadcast; in place only where the result is as large as the first."""
    if len(x) != 4 or len(y) != 4 or not broadcast(x, y):
        return None
    written = [Call(lambda self, x, y: x.add_(y, alpha=0.5)), Call(lambda self, x, y: x.mul_(y)),
               Call(lambda self, x, y: isub(x, y)), Call(lambda self, x, y: iadd(x, y))]
    return one_of(draw, Call(lambda self, x, y: x + y), Call(lambda self, x, y: x - y),
                  Call(lambda self, x, y: x * y), Call(lambda self, x, y: torch.add(x, y, alpha=2)),
                  Call(lambda self, x, y: torch.rsub(x, y)),
                  *(written if torch.broadcast_shapes(x, y) == x else []))


def iadd(x, y):
    x += y
    return x


def isub(x, y):
    x -= y
    return x


def broadcast(x, y):
    return all(a == b or 1 in (a, b) for a, b in zip(x, y, strict=True)) and x[0] == y[0]


@step
def numbers(draw, x):
    return one_of(draw, Call(lambda self, x: 1 - x), Call(lambda self, x: x * 0.5 + 1),
                  Call(lambda self, x: 2 * x - 0.25))


@step
def two_maps(draw, x, y):
    """Products, quotients, extremes and means, of maps and gates."""
    if len(x) != 4 or len(y) != 4 or not broadcast(x, y):
        return None
    whole = [Call(lambda self, x, y: torch.stack([x, y], 2).mean(2)),
             Call(lambda self, x, y: torch.stack([x, y, x]).amax(0)),
             Call(lambda self, x, y: sum([x, y]) / 2)] if x == y else []
    return one_of(draw, *whole, Call(lambda self, x, y: x / (y.abs() + 1)),
                  Call(lambda self, x, y: torch.maximum(x, y)),
                  Call(lambda self, x, y: torch.min(x, y)),
                  Call(lambda self, x, y: torch.where(y > 100, x, x * y)),
                  Call(lambda self, x, y: torch.lerp(x, y, 0.25)),
                  Call(lambda self, x, y: torch.addcmul(x, x, y, value=0.5)),
                  Call(lambda self, x, y: x.clamp(min=y)))


@step
def concatenation(draw, x, y):
    if x[0] != y[0] or x[2:] != y[2:] or len(x) != 4 or len(y) != 4:
        return None
    return one_of(draw, Call(lambda self, x, y: torch.cat([x, y], 1)),
                  Call(lambda self, x, y: torch.cat((x, y, x), dim=-3)),
                  Call(lambda self, x, y: torch.cat([torch.cat([y, F.relu(x)], 1), x * 2], 1)))


@step
def dense_block(draw, x):
    if x[1] > 4:
        return None
    return Call(lambda self, x: self.grown(x), grown=nn.Sequential(
        *(Grow(x[1] + 2 * i) for i in range(number(draw, 1, 3)))))


class Grow(nn.Module):
    """A layer of a DenseNet: what came in, and two more channels."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.conv = norm_layer(channels), same_size(channels, 2)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


# Pooling and resizing


@step
def max_pool2d(draw, x):
    kernel = number(draw, 1, 4)
    return nn.MaxPool2d(kernel, stride=number(draw, 1, 3), padding=number(draw, 0, kernel // 2),
                        dilation=number(draw, 1, 2), ceil_mode=draw(st.booleans()))


@step
def avg_pool2d(draw, x):
    kernel = pair(draw, 1, 4)
    return nn.AvgPool2d(kernel, stride=number(draw, 1, 3),
                        padding=number(draw, 0, min(kernel) // 2), ceil_mode=draw(st.booleans()),
                        count_include_pad=draw(st.booleans()),
                        divisor_override=one_of(draw, None, 3))


@step
def adaptive_pool2d(draw, x):
    size = one_of(draw, 1, number(draw, 1, 5), pair(draw, 1, 4), (None, 2))
    return one_of(draw, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)(size)


@step
def global_pool(draw, x):
    return one_of(draw, Call(lambda self, x: x.mean((2, 3), keepdim=True)),
                  Call(lambda self, x: torch.mean(x, dim=[-1], keepdim=True)),
                  Call(lambda self, x: x.mean(1, keepdim=True)))


@step
def resize_nearest(draw, x):
    mode = one_of(draw, "nearest", "nearest-exact")
    size = one_of(draw, {"scale_factor": 2}, {"scale_factor": 1.5}, {"scale_factor": (0.7, 1.3)},
                  {"size": pair(draw, 1, 12)})
    return one_of(draw, nn.Upsample(**size, mode=mode),
                  Call(lambda self, x: F.interpolate(x, **size, mode=mode)))


@step
def resize(draw, x):
    """By factors whose coordinates are exact or far from it, and with the edges that both have."""
    mode, corners = one_of(draw, "bilinear", "bicubic"), draw(st.booleans())
    size = one_of(draw, {"scale_factor": 2}, {"scale_factor": 1.5}, {"scale_factor": (0.7, 1.3)},
                  {"size": pair(draw, 1, 12)})
    antialias = draw(st.booleans()) and size.get("size", (2, 2))[1] > 1 and x[3] > 1
    return Call(lambda self, x: F.interpolate(x, **size, mode=mode, align_corners=corners,
                                              antialias=antialias))


@step
def pixel_shuffle(draw, x):
    factor = number(draw, 2, 3)
    return one_of(draw, nn.PixelUnshuffle(factor), nn.PixelShuffle(factor),
                  nn.Sequential(nn.Conv2d(x[1], 2 * factor ** 2, 1), nn.PixelShuffle(factor)))


@step
def pad_zero(draw, x):
    sides = tuple(number(draw, -1, 2) for _ in range(4))
    return Call(lambda self, x: F.pad(x, sides))


@step
def pad(draw, x):
    mode = one_of(draw, "reflect", "replicate", "circular")
    sides = tuple(number(draw, 0, 3) for _ in range(4))
    value = draw(st.floats(-2, 2))
    channels = (number(draw, 0, 1), 1)
    return one_of(draw, Call(lambda self, x: F.pad(x, sides, mode)),
                  Call(lambda self, x: F.pad(x, sides, value=value)),
                  Call(lambda self, x: F.pad(x, (*sides, *channels), value=value)),
                  nn.Conv2d(x[1], 3, 3, padding=sides[:2], padding_mode=mode,
                            stride=number(draw, 1, 2)))


# Views


@step
def pick_channels(draw, x):
    if x[1] < 2:
        return None
    return one_of(draw, Call(lambda self, x: x.chunk(2, 1)[1]), Call(lambda self, x: x[:, ::2]),
                  Call(lambda self, x: x[:, 1:]), Call(lambda self, x: x.narrow(1, 0, 2)),
                  Call(lambda self, x: torch.split(x, [1, x.shape[1] - 1], dim=1)[1]),
                  Call(lambda self, x: x.flip(1)))


@step
def pick_pixels(draw, x):
    if min(x[2:]) < 3:
        return None
    return one_of(draw, Call(lambda self, x: x[..., 1:, :-1]), Call(lambda self, x: x.flip(3)),
                  Call(lambda self, x: x[:, :, ::2, 1::2]), Call(lambda self, x: x.roll(1, 2)),
                  Call(lambda self, x: x.roll((1, -2), (2, 3))),
                  Call(lambda self, x: torch.stack(x.unbind(1), 1)),
                  Call(lambda self, x: x.unbind(3)[1].unsqueeze(3).expand(-1, -1, -1, 3)))


@step
def shuffle_squares(draw, x):
    """Pixels to channels and back, written as views."""
    if x[2] % 2 or x[3] % 2:
        return None
    n, c, h, w = x

    def down(self, x):
        return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(
            n, 4 * c, h // 2, w // 2)
    return one_of(draw, Call(down), Call(
        lambda self, x: torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)))


@step
def channels_last(draw, x):
    """What ConvNeXt and Swin write: norms, matrix products and gates on N x H x W x C."""
    c = x[1]

    def mixed(self, x):
        y = x.permute(0, 2, 3, 1)
        y = y + self.scale * self.mlp(self.norm(y))
        a, b = y.chunk(2, -1) if c % 2 == 0 else (y, y)
        y = torch.cat([y.flip(2), a * b.sigmoid()], -1) - y.mean(-1, keepdim=True)
        return y.permute(0, 3, 1, 2)

    def response(self, x):
        y = x.movedim(1, -1)
        size = y.norm(p=2, dim=(1, 2), keepdim=True)
        return (y + y * size / (size.mean(-1, keepdim=True) + 1)).movedim(-1, 1)

    def windows(self, x):
        y = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        y = torch.cat([y[:, 0::2, 0::2], y[:, 1::2, 0::2], y[:, 0::2, 1::2], y[:, 1::2, 1::2]], -1)
        return self.reduce(y.roll((1, 1), (1, 2))).permute(0, 3, 1, 2)
    norm = one_of(draw, nn.LayerNorm(c, eps=0.1), nn.RMSNorm(c, eps=0.1), nn.Softmax(-1))
    return one_of(
        draw, Call(mixed, norm=norm, scale=torch.rand(c), mlp=nn.Sequential(
            nn.Linear(c, 5), nn.GELU(), nn.Linear(5, c))),
        Call(response), Call(windows, reduce=nn.Linear(4 * c, 3)))


@step
def computed_weights(draw, x):
    conv = same_size(x[1], 3)
    conv.weight.data.normal_(0, 0.3)
    return one_of(draw, parametrizations.weight_norm, parametrizations.spectral_norm)(conv)


@step
def shuffle(draw, x):
    groups = divisor(draw, x[1])

    def by_views(self, x):
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
    return one_of(draw, Call(by_views), nn.ChannelShuffle(groups))


@step
def write_into_a_slice(draw, x):
    if x[1] < 2:
        return None

    def overwrite(self, x):
        x[:, :1] = x[:, 1:2] * 2
        return x

    def through_a_chunk(self, x):
        a, b = x.split([1, x.shape[1] - 1], 1)
        a.mul_(0.5)
        b += 0.25
        return x

    def through_a_view(self, x):
        self.relu(x.flatten(2))
        return x
    return one_of(draw, Call(overwrite), Call(through_a_chunk),
                  Call(through_a_view, relu=nn.ReLU(inplace=True)))


# Gates, heads, and what nobody knows


@step
def gate(draw, x):
    def squeeze(self, x):
        return x * self.gate(x)

    def by_linear(self, x):
        scale = torch.sigmoid(self.fc(self.pool(x).flatten(1)))
        return x * scale.view(x.size(0), -1, 1, 1)
    c = x[1]
    return one_of(draw, Call(squeeze, gate=nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 2, 1), nn.ReLU(), nn.Conv2d(2, c, 1), nn.Sigmoid())),
        Call(by_linear, pool=nn.AdaptiveAvgPool2d(1), fc=nn.Linear(c, c)))


@step
def classifier(draw, x):
    numbers = x[1] * x[2] * x[3]
    if numbers > 500:
        return None
    return nn.Sequential(nn.Flatten(), nn.Linear(numbers, 5), nn.ReLU(), nn.Linear(5, 3))


@step
def whole_map_norm(draw, x):
    return one_of(draw, nn.GroupNorm(divisor(draw, x[1]), x[1], eps=0.1),
                  nn.InstanceNorm2d(x[1], eps=0.1), nn.LayerNorm(list(x[1:]), eps=0.1),
                  nn.InstanceNorm2d(x[1], track_running_stats=True))


@step
def attention(draw, x):
    def over_places(self, x):
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        weights = (q.transpose(1, 2) @ k).softmax(-1)
        return x + (v @ weights.transpose(1, 2)).view(n, c, h, w)

    def scaled(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).view(x.shape)
    return one_of(draw, Call(over_places, qkv=nn.Conv2d(x[1], 3 * x[1], 1)), Call(scaled))


@step
def windows(draw, x):
    """Swin's own functions, which tracing leaves as they are."""
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    window, heads = pair(draw, 1, 4), one_of(draw, 1, divisor(draw, x[1]))
    shift = [number(draw, 0, side - 1) for side in window]
    kinds = [swin.ShiftedWindowAttention]
    if x[1] // heads >= 4:  # V2 divides by the norm of a head: of one channel that is a sign
        kinds.append(swin.ShiftedWindowAttentionV2)
    kind = one_of(draw, *kinds)
    return Call(lambda self, x: self.attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                attention=kind(x[1], list(window), shift, heads,
                               qkv_bias=draw(st.booleans())))


@step
def merged_patches(draw, x):
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    return Call(lambda self, x: self.merging(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                merging=one_of(draw, swin.PatchMerging, swin.PatchMergingV2)(x[1]))


@step
def einsum(draw, x):
    matrix = torch.randn(number(draw, 1, MOST_CHANNELS), x[1])
    return one_of(
        draw, Call(lambda self, x: torch.einsum("nchw,oc->nohw", x, self.m), m=matrix),
        Call(lambda self, x: torch.einsum("oc, nchw -> nohw", self.m, x), m=matrix),
        Call(lambda self, x: torch.einsum("nchw,nchw->nchw", x, x.sigmoid())),
        Call(lambda self, x: torch.einsum("nchw,nchv->nhwv", x, x).softmax(-1).sum(3)[:, None]))


@step
def unknown(draw, x):
    def unpooled(self, x):
        y, where = self.pool(x)
        return y.sum(1, keepdim=True) + self.unpool(y, where, output_size=x.shape).mean()
    return one_of(draw, nn.BatchNorm2d(x[1], track_running_stats=False),
                  Call(lambda self, x: self.deep(x[:, None])[:, 0],
                       deep=nn.Conv3d(1, 1, 3, padding=1)),
                  Call(lambda self, x: self.line(x.flatten(2)).view(x.shape),
                       line=nn.Conv1d(x[1], x[1], 3, padding=1)),
                  Call(unpooled, pool=nn.MaxPool2d(2, return_indices=True),
                       unpool=nn.MaxUnpool2d(2)),
                  Call(lambda self, x: x.cumsum(3)),
                  Call(lambda self, x: torch.max_pool2d(x, 1).amax((2, 3), keepdim=True)))


@step
def mixes_lanes(draw, x):
    return one_of(draw, Call(lambda self, x: x - x.mean(0, keepdim=True)),
                  Call(lambda self, x: x + x.flip(0)), Call(lambda self, x: x.softmax(0)),
                  nn.BatchNorm2d(x[1], track_running_stats=False),
                  Call(lambda self, x: x.transpose(0, 1).contiguous().relu().transpose(0, 1)))


@step
def module_used_twice(draw, x):
    return Call(lambda self, x: self.block(self.block(x)), block=nn.Sequential(
        same_size(x[1]), one_of(draw, *activations(draw))))
