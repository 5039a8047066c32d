"""Small networks of the families that video is run on, as their authors write them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1,
         activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolution, norm, activation."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out), activation())


def separable(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """Depthwise, then pointwise."""
    return nn.Sequential(conv(c_in, c_in, 3, stride, groups=c_in), conv(c_in, c_out, 1))


# U-Net: skips at each resolution; up by a transposed convolution, or bilinearly and padded.


class Up(nn.Module):
    def __init__(self, c_in: int, c_out: int, bilinear: bool) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True) if bilinear \
            else nn.ConvTranspose2d(c_in, c_out, 2, stride=2)
        joined = c_out + (c_in if bilinear else c_out)
        self.conv = nn.Sequential(conv(joined, c_out), conv(c_out, c_out))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        rows, cols = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = F.pad(x, [cols // 2, cols - cols // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    def __init__(self, bilinear: bool, width: int = 8) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.first = nn.Sequential(conv(3, width), conv(width, width))
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), conv(a, b), conv(b, b))
            for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(Up(b, a, bilinear) for a, b in
                                zip(widths[-2::-1], widths[:0:-1], strict=False))
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.first(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        x = maps.pop()
        for up in self.up:
            x = up(x, maps.pop())
        return self.last(x)


# YOLO: a focus, stages that split the channels, pooling at three sizes, a pyramid both ways.


class Focus(nn.Module):
    def __init__(self, c_out: int) -> None:
        super().__init__()
        self.conv = conv(12, c_out, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2],
                                    x[..., 1::2, 1::2]], 1))


class CrossStage(nn.Module):
    def __init__(self, c_in: int, c_out: int, shortcut: bool = True) -> None:
        super().__init__()
        half = c_out // 2
        self.split, self.join = (conv(a, c_out, 1, activation=nn.SiLU)
                                 for a in (c_in, c_out + half))
        self.inner = nn.Sequential(conv(half, half, 1, activation=nn.SiLU),
                                   conv(half, half, activation=nn.SiLU))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.split(x).chunk(2, 1)
        return self.join(torch.cat((a, b, b + self.inner(b) if self.shortcut else self.inner(b)),
                                   1))


class PooledPyramid(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = conv(channels, channels // 2, 1, activation=nn.SiLU)
        self.after = conv(2 * channels, channels, 1, activation=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        y = self.pool(x)
        z = self.pool(y)
        return self.after(torch.cat([x, y, z, self.pool(z)], 1))


class Yolo(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        w = [width, 2 * width, 4 * width, 8 * width]
        self.focus = Focus(w[0])
        self.stages = nn.ModuleList(
            nn.Sequential(conv(a, b, 3, 2, activation=nn.SiLU), CrossStage(b, b))
            for a, b in itertools.pairwise(w))
        self.pyramid = PooledPyramid(w[3])
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.top_down = nn.ModuleList([CrossStage(w[3] + w[2], w[2], False),
                                       CrossStage(w[2] + w[1], w[1], False)])
        self.down = conv(w[1], w[1], 3, 2, activation=nn.SiLU)
        self.bottom_up = CrossStage(w[1] + w[2], w[2], False)
        self.heads = nn.ModuleList(nn.Conv2d(c, 9, 1) for c in (w[1], w[2]))

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.focus(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        middle = self.top_down[0](torch.cat([self.up(self.pyramid(maps[2])), maps[1]], 1))
        fine = self.top_down[1](torch.cat([self.up(middle), maps[0]], 1))
        return fine, self.bottom_up(torch.cat([self.down(fine), middle], 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for head, level in zip(self.heads, self.levels(x), strict=True):
            y = head(level).sigmoid()
            xy, wh, rest = y.split((2, 2, 5), 1)
            found.append(torch.cat((xy * 2 - 0.5, (wh * 2) ** 2, rest), 1))
        return found


class AnchorFreeYolo(Yolo):
    """Distances to a box's sides as distributions, from a grid that is kept for the size."""

    BINS, CLASSES = 8, 3

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.heads = nn.ModuleList(nn.Conv2d(head.in_channels, 4 * self.BINS + self.CLASSES, 1)
                                   for head in self.heads)
        self.mean = nn.Conv2d(self.BINS, 1, 1, bias=False)
        self.mean.weight.data[:] = torch.arange(self.BINS).view(1, -1, 1, 1)
        self.stride = torch.tensor([4.0, 8.0])
        self.shape, self.cells, self.sizes = None, torch.empty(0), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % 16 or x.shape[-1] % 16:
            raise ValueError(f"{x.shape} is no multiple of 16")
        levels = list(self.levels(x))
        found = torch.cat([head(level).flatten(2)
                           for head, level in zip(self.heads, levels, strict=True)], 2)
        if self.shape != levels[0].shape:
            self.cells, self.sizes = (t.transpose(0, 1) for t in self._grid(levels))
            self.shape = levels[0].shape
        sides, scores = found.split((4 * self.BINS, self.CLASSES), 1)
        n, _, cells = sides.shape
        sides = sides.view(n, 4, self.BINS, cells).transpose(2, 1).softmax(1)
        before, behind = self.mean(sides).view(n, 4, cells).chunk(2, 1)
        boxes = torch.cat((self.cells - before, self.cells + behind), 1) * self.sizes
        return torch.cat((boxes, scores.sigmoid()), 1)

    def _grid(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        cells, sizes = [], []
        for level, stride in zip(levels, self.stride, strict=True):
            rows, cols = (torch.arange(n).type_as(level) + 0.5 for n in level.shape[2:])
            rows, cols = torch.meshgrid(rows, cols, indexing="ij")
            cells.append(torch.stack((cols, rows), -1).view(-1, 2))
            sizes.append(level.new_full((rows.numel(), 1), stride))
        return torch.cat(cells), torch.cat(sizes)


# Fast-SCNN: two branches, pooled context resized back, depthwise convolutions.


class Context(nn.Module):
    def __init__(self, channels: int, sizes: tuple[int, ...] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), conv(channels, channels // 4, 1))
            for size in sizes)
        self.out = conv(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.size()[2:]
        found = [F.interpolate(level(x), size, mode="bilinear", align_corners=True)
                 for level in self.levels]
        return self.out(torch.cat([x, *found], 1))


class FastSegmentation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shallow = nn.Sequential(conv(3, 8, stride=2), separable(8, 12, 2),
                                     separable(12, 16, 2))
        self.deep = nn.Sequential(separable(16, 24, 2), separable(24, 32, 2), Context(32))
        self.spread = conv(32, 32, groups=32)
        self.deep_out, self.shallow_out = nn.Conv2d(32, 32, 1), nn.Conv2d(16, 32, 1)
        self.classify = nn.Sequential(separable(32, 32), nn.Dropout(0.1), nn.Conv2d(32, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        fine = self.shallow(x)
        coarse = F.interpolate(self.deep(fine), size=fine.shape[2:], mode="bilinear",
                               align_corners=False)
        y = F.relu(self.deep_out(self.spread(coarse)) + self.shallow_out(fine), inplace=True)
        return F.interpolate(self.classify(y), size, mode="bilinear", align_corners=True)


# Super-resolution: residual blocks, pixels out of channels, on top of what bicubic gives.


class SuperResolution(nn.Module):
    def __init__(self, factor: int = 3, width: int = 12) -> None:
        super().__init__()
        self.factor = factor
        self.first = nn.Conv2d(3, width, 3, padding=1, padding_mode="reflect")
        self.blocks = nn.ModuleList(nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width),
            nn.Conv2d(width, width, 3, padding=1)) for _ in range(2))
        self.up = nn.Sequential(nn.Conv2d(width, 3 * factor ** 2, 3, padding=1),
                                nn.PixelShuffle(factor))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for block in self.blocks:
            y = y + block(y) * 0.1
        skip = F.interpolate(x, scale_factor=self.factor, mode="bicubic", align_corners=False)
        return (self.up(y) + skip).clamp(0, 1)


# BiFPN: weighted sums of maps that were resized to each other.


class WeightedSum(nn.Module):
    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(count))
        self.conv = nn.Sequential(nn.SiLU(), separable(channels, channels))

    def forward(self, *maps: Tensor) -> Tensor:
        weights = F.relu(self.weights)
        total = weights.sum(0) + 1e-4
        scaled = [m * weights[i] / total for i, m in enumerate(maps)]
        return self.conv(torch.stack(scaled, dim=-1).sum(dim=-1))


class BiFpn(nn.Module):
    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.first = conv(3, channels, stride=2)
        self.down = nn.ModuleList(separable(channels, channels, 2) for _ in range(2))
        self.two = nn.ModuleList(WeightedSum(2, channels) for _ in range(3))
        self.three = WeightedSum(3, channels)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fine = self.first(x)
        middle = self.down[0](fine)
        coarse = self.down[1](middle)
        mixed = self.two[0](middle, F.interpolate(coarse, scale_factor=2.0, mode="nearest"))
        fine = self.two[1](fine, F.interpolate(mixed, scale_factor=2.0, mode="nearest"))
        middle = self.three(middle, mixed, self.pool(fine))
        return fine, middle, self.two[2](coarse, self.pool(middle))
