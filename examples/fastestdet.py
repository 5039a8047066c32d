"""FastestDet, a one-stage COCO detector of 0.24 M parameters, written plainly.

A ShuffleNetV2 backbone, one pyramid level at 1/16 resolution and chains of 5x5
depthwise convolutions. The submodule names are those of the state dict that the
authors published (xuehao.ma, 2022, BSD-3-Clause), so it loads as it is::

    model = FastestDet().eval()
    model.load_state_dict(torch.load("fastestdet.pth", weights_only=True))
    boxes = decode(model(frames_bgr))

Nothing in this file knows about deltaconvert.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 80
NMS_IOU = 0.45


def pointwise(c_in: int, c_out: int, *, relu: bool = True) -> list[nn.Module]:
    """1x1 convolution and BatchNorm, with a ReLU unless told otherwise."""
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]
    return [*layers, nn.ReLU(inplace=True)] if relu else layers


def depthwise(channels: int, kernel: int, stride: int = 1, *, relu: bool = True) -> list[nn.Module]:
    """Depthwise convolution that keeps the size at stride 1, BatchNorm, ReLU."""
    conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(channels)]
    return [*layers, nn.ReLU(inplace=True)] if relu else layers


class DownBlock(nn.Module):
    """ShuffleNetV2 block of stride 2: both branches see all channels, H and W halve."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        half = c_out // 2
        self.branch_main = nn.Sequential(
            *pointwise(c_in, half), *depthwise(half, 3, 2, relu=False), *pointwise(half, half)
        )
        self.branch_proj = nn.Sequential(*depthwise(c_in, 3, 2, relu=False), *pointwise(c_in, half))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)


class KeepBlock(nn.Module):
    """ShuffleNetV2 block of stride 1: the even channels pass, the odd ones are convolved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch_main = nn.Sequential(
            *pointwise(half, half), *depthwise(half, 3, relu=False), *pointwise(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x[:, 0::2], self.branch_main(x[:, 1::2])), 1)


def stage(c_in: int, c_out: int, blocks: int) -> nn.Sequential:
    """One resolution of the backbone: a `DownBlock`, then `KeepBlock`s."""
    return nn.Sequential(DownBlock(c_in, c_out), *(KeepBlock(c_out) for _ in range(blocks - 1)))


class Backbone(nn.Module):
    """ShuffleNetV2: `[N, 3, H, W]` to 48, 96 and 192 channels at 1/8, 1/16 and 1/32."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2 = stage(24, 48, 4)
        self.stage3 = stage(48, 96, 8)
        self.stage4 = stage(96, 192, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p1 = self.stage2(self.maxpool(self.first_conv(x)))
        p2 = self.stage3(p1)
        return p1, p2, self.stage4(p2)


class Conv1x1(nn.Module):
    """1x1 convolution, BatchNorm, ReLU, under the name the weights use."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*pointwise(c_in, c_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x)


class SPP(nn.Module):
    """One, two and three 5x5 depthwise units side by side, merged onto a shortcut."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.Conv1x1 = Conv1x1(c_in, c_out)
        self.S1 = nn.Sequential(*depthwise(c_out, 5))
        self.S2 = nn.Sequential(*depthwise(c_out, 5), *depthwise(c_out, 5))
        self.S3 = nn.Sequential(*depthwise(c_out, 5), *depthwise(c_out, 5), *depthwise(c_out, 5))
        self.output = nn.Sequential(*pointwise(3 * c_out, c_out, relu=False))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        merged = self.output(torch.cat((self.S1(x), self.S2(x), self.S3(x)), 1))
        return self.relu(x + merged)


class Head(nn.Module):
    """One prediction: 5x5 depthwise unit, 1x1 convolution, BatchNorm."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(*depthwise(c_in, 5), *pointwise(c_in, c_out, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5x5(x)


class DetectHead(nn.Module):
    """Objectness, box and class of every cell, stacked to `[N, 85, H', W']`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1x1 = Conv1x1(channels, channels)
        self.obj_layers = Head(channels, 1)
        self.reg_layers = Head(channels, 4)
        self.cls_layers = Head(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1x1(x)
        objectness = torch.sigmoid(self.obj_layers(x))
        classes = F.softmax(self.cls_layers(x), dim=1)
        return torch.cat((objectness, self.reg_layers(x), classes), 1)


class FastestDet(nn.Module):
    """The detector: `[N, 3, H, W]`, BGR, 0..1, to `[N, 85, H/16, W/16]`.

    H and W are multiples of 32. The channels of the output are the objectness (0..1),
    four numbers of the box (see `decode`) and 80 class probabilities that sum to 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.avg_pool = nn.AvgPool2d(3, 2, 1)
        self.SPP = SPP(48 + 96 + 192, 96)
        self.detect_head = DetectHead(96)

    def forward(self, x: Tensor) -> Tensor:
        p1, p2, p3 = self.backbone(x)
        pyramid = torch.cat((self.avg_pool(p1), p2, self.upsample(p3)), 1)
        return self.detect_head(self.SPP(pyramid))


def cell_boxes(regression: Tensor) -> Tensor:
    """Boxes of every cell, `[N, 4, H', W']` to `[N, H' * W', 4]`.

    The centre of cell (gx, gy) is ((tanh(r0) + gx) / W', (tanh(r1) + gy) / H'), the size
    (sigmoid(r2), sigmoid(r3)); returned as x1, y1, x2, y2 relative to the picture.
    """
    height, width = regression.shape[-2:]
    gy = torch.arange(height, device=regression.device)[:, None]
    gx = torch.arange(width, device=regression.device)
    r0, r1, r2, r3 = regression.unbind(1)
    x, y = (r0.tanh() + gx) / width, (r1.tanh() + gy) / height
    w, h = r2.sigmoid() / 2, r3.sigmoid() / 2
    return torch.stack((x - w, y - h, x + w, y + h), -1).flatten(1, 2)


def pairwise_iou(boxes: Tensor) -> Tensor:
    """Intersection over union of every two of `[K, 4]` boxes: `[K, K]`."""
    top_left = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return overlap / (area[:, None] + area[None, :] - overlap)


def suppress(boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
    """Greedy non-maximum suppression within each class: kept indices, best score first."""
    order = scores.argsort(descending=True, stable=True)
    rivals = (pairwise_iou(boxes) > NMS_IOU) & (classes[:, None] == classes)
    kept: list[int] = []
    for index in order.tolist():
        if not rivals[index, kept].any():
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


def decode(output: Tensor, score: float = 0.4) -> list[Tensor]:
    """Turn the network's output into boxes.

    Args:
        output: `[N, 85, H', W']` as `FastestDet` returns it.
        score: boxes at or under it are left out. A box's score is
            objectness^0.6 * (best class probability)^0.4.

    Returns:
        One float tensor `[K, 6]` a picture, best score first: x1, y1, x2, y2 relative to
        the picture (they may reach past its edge), score, class index (0 is a person).
        Of two boxes of one class whose IoU is over 0.45 the better one stays.
    """
    boxes = cell_boxes(output[:, 1:5])
    best, classes = output[:, 5:].flatten(2).max(1)
    scores = output[:, 0].flatten(1) ** 0.6 * best**0.4
    found = []
    for b, s, c in zip(boxes, scores, classes, strict=True):
        over = s > score
        b, s, c = b[over], s[over], c[over]
        rows = torch.cat((b, s[:, None], c[:, None].to(b.dtype)), 1)
        found.append(rows[suppress(b, s, c)])
    return found
