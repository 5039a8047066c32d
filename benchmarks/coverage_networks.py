"""Networks of the kinds that people train and no model zoo has: each small, none simplified."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1,
         activation: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    layers = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
              nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, *([activation(inplace=True)] if activation else []))


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015); up by transposed convolution, or bilinear."""

    def __init__(self, bilinear: bool, widths: tuple[int, ...] = (16, 32, 64, 128),
                 classes: int = 3) -> None:
        super().__init__()
        pairs = list(zip((3, *widths), widths, strict=False))
        self.down = nn.ModuleList(nn.Sequential(conv(a, b), conv(b, b)) for a, b in pairs)
        reverse = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
                          nn.Conv2d(a, b, 1)) if bilinear else nn.ConvTranspose2d(a, b, 2, 2)
            for a, b in reverse)
        self.merge = nn.ModuleList(nn.Sequential(conv(2 * b, b), conv(b, b)) for _, b in reverse)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.head(x)


class WeightedSum(nn.Module):
    """The fast normalised fusion of EfficientDet (Tan et al., 2020)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.conv = nn.Sequential(conv(width, width, groups=width, activation=None),
                                  conv(width, width, 1, activation=None))

    def forward(self, maps: list[Tensor]) -> Tensor:
        weights = F.relu(self.weights)
        total = sum(w * m for w, m in zip(weights.unbind(), maps, strict=True))
        return self.conv(F.silu(total / (weights.sum() + 1e-4)))


class BiFPN(nn.Module):
    """A backbone and two bidirectional pyramids with weighted sums, as in EfficientDet."""

    def __init__(self, width: int = 32, levels: int = 4, repeats: int = 2) -> None:
        super().__init__()
        self.stem = conv(3, 16, stride=2, activation=nn.SiLU)
        self.stages = nn.ModuleList(conv(16 * 2**i, 32 * 2**i, stride=2, activation=nn.SiLU)
                                    for i in range(levels))
        self.lateral = nn.ModuleList(conv(32 * 2**i, width, 1, activation=None)
                                     for i in range(levels))
        self.down = nn.ModuleList(nn.ModuleList(WeightedSum(2, width) for _ in range(levels - 1))
                                  for _ in range(repeats))
        self.up = nn.ModuleList(
            nn.ModuleList(WeightedSum(3 if i < levels - 2 else 2, width)
                          for i in range(levels - 1)) for _ in range(repeats))
        self.head = nn.Sequential(conv(width, width, activation=nn.SiLU), nn.Conv2d(width, 9, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        for down, up in zip(self.down, self.up, strict=True):
            maps = self._fuse(maps, down, up)
        return [self.head(m) for m in maps]

    def _fuse(self, maps: list[Tensor], down: nn.ModuleList, up: nn.ModuleList) -> list[Tensor]:
        middle = [maps[-1]]
        for level, fuse in zip(reversed(maps[:-1]), down, strict=True):
            middle.insert(0, fuse([level, F.interpolate(middle[0], scale_factor=2)]))
        out = [middle[0]]
        for i, fuse in enumerate(up, start=1):
            lower = F.max_pool2d(out[-1], 3, 2, 1)
            inputs = [maps[i], middle[i], lower] if i < len(up) else [maps[i], lower]
            out.append(fuse(inputs))
        return out


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (conv(width, width, k, activation=nn.SiLU) for k in (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class CSP(nn.Module):
    """A cross-stage partial block (Wang et al., 2019) as YOLOv5's C3 and YOLOv8's C2f."""

    def __init__(self, c_in: int, c_out: int, depth: int) -> None:
        super().__init__()
        self.split = conv(c_in, c_out, 1, activation=nn.SiLU)
        self.blocks = nn.ModuleList(Bottleneck(c_out // 2) for _ in range(depth))
        self.join = conv((2 + depth) * c_out // 2, c_out, 1, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.join(torch.cat(parts, 1))


class Yolo(nn.Module):
    """A one-stage detector: CSP backbone, pyramid pooling, paths up and down, three heads."""

    def __init__(self, width: int = 16, outputs: int = 24) -> None:
        super().__init__()
        w = [width * 2**i for i in range(5)]
        self.stem = conv(3, w[0], 3, 2, activation=nn.SiLU)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(a, b, 3, 2, activation=nn.SiLU), CSP(b, b, depth))
            for a, b, depth in zip(w, w[1:], (1, 2, 2, 1), strict=False))
        self.reduce = conv(w[4], w[4] // 2, 1, activation=nn.SiLU)
        self.pyramid = conv(2 * w[4], w[4], 1, activation=nn.SiLU)
        self.up1, self.up2 = CSP(w[4] + w[3], w[3], 1), CSP(w[3] + w[2], w[2], 1)
        self.step1, self.step2 = (conv(c, c, 3, 2, activation=nn.SiLU) for c in w[2:4])
        self.down1, self.down2 = CSP(w[2] + w[3], w[3], 1), CSP(w[3] + w[4], w[4], 1)
        self.heads = nn.ModuleList(nn.Conv2d(c, outputs, 1) for c in w[2:])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        pooled = [self.reduce(x)]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        p5 = self.pyramid(torch.cat(pooled, 1))
        p4 = self.up1(torch.cat([F.interpolate(p5, scale_factor=2), maps[2]], 1))
        p3 = self.up2(torch.cat([F.interpolate(p4, scale_factor=2), maps[1]], 1))
        n4 = self.down1(torch.cat([self.step1(p3), p4], 1))
        n5 = self.down2(torch.cat([self.step2(n4), p5], 1))
        return tuple(head(m) for head, m in zip(self.heads, (p3, n4, n5), strict=True))


class InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and c_in == c_out
        self.body = nn.Sequential(conv(c_in, 6 * c_in, 1), conv(6 * c_in, 6 * c_in, 3, stride,
                                                                6 * c_in),
                                  conv(6 * c_in, c_out, 1, activation=None))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.residual else y


class FastScnn(nn.Module):
    """Fast-SCNN (Poudel et al., 2019): two branches, pyramid pooling, fusion by addition."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2), conv(16, 16, 3, 2, 16), conv(16, 24, 1),
                                  conv(24, 24, 3, 2, 24), conv(24, 32, 1))
        self.deep = nn.Sequential(InvertedResidual(32, 32, 2), InvertedResidual(32, 32, 1),
                                  InvertedResidual(32, 48, 2), InvertedResidual(48, 64, 1))
        self.pools = nn.ModuleList(conv(64, 16, 1) for _ in range(4))
        self.join = conv(128, 64, 1)
        self.low = nn.Sequential(conv(64, 64, 3, 1, 64), nn.Conv2d(64, 64, 1))
        self.high = nn.Conv2d(32, 64, 1)
        self.head = nn.Sequential(conv(64, 64, 3, 1, 64), conv(64, 64, 1), nn.Dropout(0.1),
                                  nn.Conv2d(64, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        high = self.stem(x)
        deep = self.deep(high)
        pooled = [F.interpolate(block(F.adaptive_avg_pool2d(deep, bins)), deep.shape[2:],
                                mode="bilinear", align_corners=True)
                  for bins, block in zip((1, 2, 3, 6), self.pools, strict=True)]
        deep = self.join(torch.cat([deep, *pooled], 1))
        low = self.low(F.interpolate(deep, scale_factor=4, mode="bilinear", align_corners=True))
        return F.interpolate(self.head(F.relu(low + self.high(high))), size, mode="bilinear",
                             align_corners=True)


class SuperResolution(nn.Module):
    """ESPCN (Shi et al., 2016) with residual blocks as in EDSR (Lim et al., 2017)."""

    def __init__(self, width: int = 32, blocks: int = 4, factor: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True),
                          nn.Conv2d(width, width, 3, padding=1)) for _ in range(blocks))
        self.tail = nn.Sequential(nn.Conv2d(width, 3 * factor**2, 3, padding=1),
                                  nn.PixelShuffle(factor))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        first = y = self.head(x)
        for block in self.blocks:
            y = y + 0.1 * block(y)
        return self.tail(first + y) + F.interpolate(x, scale_factor=self.factor, mode="bicubic")


NETWORKS = {
    "unet_transposed": lambda: UNet(bilinear=False),
    "unet_bilinear": lambda: UNet(bilinear=True),
    "bifpn": BiFPN,
    "yolo_csp": Yolo,
    "fast_scnn": FastScnn,
    "super_resolution": SuperResolution,
}
