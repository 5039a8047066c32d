import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, conv, maps

ramp = torch.tensor([[[[1.0, 2, 3]]]])
VALUES = [
    Value("spread", conv(nn.ConvTranspose2d, ramp), [maps([[1, 0, 10]])],
          maps([[1, 2, 13, 20, 30]])),
    Value("stride 2", conv(nn.ConvTranspose2d, ramp, stride=(1, 2)), [maps([[1, 10]])],
          maps([[1, 2, 13, 20, 30]])),
    Value("output padding, where only the bias is",
          conv(nn.ConvTranspose2d, torch.tensor([[[[1.0]]]]), [7.0], stride=2, output_padding=1),
          [maps([[1]])], maps([[8, 7], [7, 7]])),
    Value("padding cuts", conv(nn.ConvTranspose2d, ramp, padding=(0, 1)), [maps([[1, 10]])],
          maps([[12, 23]])),
    Value("dilation", conv(nn.ConvTranspose2d, ramp, dilation=2), [maps([[1]])],
          maps([[1, 0, 2, 0, 3]])),
    Value("groups", conv(nn.ConvTranspose2d, torch.tensor([2.0, 3]).view(2, 1, 1, 1), groups=2),
          [maps([[1]], [[1]])], maps([[2]], [[3]])),
]

plain = nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2)
SPELLINGS = [Group([(2, 4, 3, 5)], {
    "module": plain,
    "F.conv_transpose2d": Call(lambda self, x: F.conv_transpose2d(
        x, self.m.weight, self.m.bias, (2, 3), (1, 0), (1, 2), 2), m=plain),
    "by name": Call(lambda self, x: F.conv_transpose2d(
        x, self.m.weight, bias=self.m.bias, stride=(2, 3), padding=(1, 0), groups=2,
        output_padding=[1, 2], dilation=1), m=plain),
})]

FOOTPRINTS = [
    Tried(nn.ConvTranspose2d(2, 3, kernel, stride, pad, extra, dilation=dilation), [(1, 2, 3, 5)])
    for kernel, stride, pad, extra, dilation in [
        (3, 1, 0, 0, 1), (3, 2, 1, 1, 1), (2, 2, 0, 0, 1), ((1, 4), (3, 2), 0, (2, 1), 1),
        (2, 3, 1, 2, 3), (3, 2, 0, 0, 2)]
] + [Tried(Call(lambda self, x, y: y + self.up(x), up=nn.ConvTranspose2d(2, 1, 2, 2)),
           [(1, 2, 3, 4), (1, 1, 6, 8)])]
