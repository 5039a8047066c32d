import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, conv, maps

ones = torch.ones(1, 1, 3, 3)
ramp = torch.tensor([[[[1.0, 2, 3]]]])
VALUES = [
    Value("borders", conv(nn.Conv2d, ones, padding=1), [maps([[1, 0, 0], [0, 0, 0], [0, 0, 2]])],
          maps([[1, 1, 0], [1, 3, 2], [0, 2, 2]])),
    Value("one pixel", conv(nn.Conv2d, ones, [5.0], padding=1), [maps([[3]])], maps([[8]])),
    Value("a cross-correlation", conv(nn.Conv2d, ramp), [maps([[1, 0, 0, 1]])], maps([[1, 3]])),
    Value("stride 2", conv(nn.Conv2d, ramp, stride=2, padding=(0, 1)), [maps([[1, 1, 1, 1, 1]])],
          maps([[5, 6, 3]])),
    Value("dilation 2", conv(nn.Conv2d, ramp, dilation=2), [maps([[1, 10, 1, 10, 1]])],
          maps([[6]])),
    Value("even kernel", conv(nn.Conv2d, torch.tensor([[[[1.0, -1]]]]), padding=(0, 1)),
          [maps([[4, 6]])], maps([[-4, -2, 6]])),
    Value("padding='same' puts the odd pixel behind",
          conv(nn.Conv2d, torch.tensor([[[[1.0, 2]]]]), padding="same"), [maps([[4, 6]])],
          maps([[16, 6]])),
    Value("F.conv2d(padding='same') does as well",
          Call(lambda self, x: F.conv2d(x, self.w, padding="same", dilation=(1, 2)),
               w=torch.tensor([[[[1.0, 2]], [[1.0, 1]]]])), [maps([[4, 6, 5]], [[1, 0, 1]])],
          maps([[12, 16, 6]])),
    Value("depthwise", conv(nn.Conv2d, torch.tensor([[[[2.0]]], [[[3.0]]]]), [0.0, 1.0], groups=2),
          [maps([[1, 2]], [[1, 2]])], maps([[2, 4]], [[4, 7]])),
    Value("groups", conv(nn.Conv2d, torch.tensor([[1.0, 1], [1, -1]]).view(2, 2, 1, 1), groups=2),
          [maps([[1]], [[2]], [[3]], [[4]])], maps([[3]], [[-1]])),
    Value("more outputs than inputs", conv(nn.Conv2d, torch.tensor([1.0, 2]).view(2, 1, 1, 1)),
          [maps([[7]])], maps([[7]], [[14]])),
    Value("a residual and an activation",
          Call(lambda self, x, y: F.relu(self.conv(x) + y),
               conv=conv(nn.Conv2d, ramp, padding=(0, 1))),
          [maps([[1, 1]]), maps([[-9, 1]])], maps([[0, 4]])),
    Value("its own input is added, which the dilated kernel does not read",
          Call(lambda self, x: self.conv(x) + x, conv=conv(
              nn.Conv2d, torch.tensor([[[[1.0, 1]]]]), padding=(0, 1), dilation=2)),
          [maps([[1, 10, 100]])], maps([[11, 111, 110]])),
]


def functions(module: nn.Conv2d) -> dict[str, nn.Module]:
    """A convolution as functions of the same parameters."""
    return {
        "F.conv2d": Call(lambda self, x: F.conv2d(
            x, self.weight, self.bias, module.stride, module.padding, module.dilation,
            module.groups), weight=module.weight.data, bias=module.bias.data),
        "by name": Call(lambda self, x: F.conv2d(
            x, bias=self.bias, weight=self.weight, stride=list(module.stride),
            padding=module.padding, groups=module.groups, dilation=module.dilation),
            weight=module.weight.data, bias=module.bias.data),
        "torch.conv2d": Call(lambda self, x: torch.conv2d(
            x, self.m.weight, self.m.bias, module.stride, module.padding, module.dilation,
            module.groups), m=module),
    }


grouped = nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1), groups=2)
plain = nn.Conv2d(3, 2, 3)
SPELLINGS = [
    Group([(2, 4, 7, 5)], {"module": grouped, **functions(grouped)}),
    Group([(2, 3, 7, 5)], {"module": plain, **functions(plain),
                           "padding='valid'": nn.Conv2d(3, 2, 3, padding="valid"),
                           "defaults": Call(lambda self, x: F.conv2d(x, self.w),
                                            w=plain.weight.data)}),
    Group([(2, 3, 7, 5)], {"padding=1": nn.Conv2d(3, 2, 3, padding=1),
                           "padding='same'": nn.Conv2d(3, 2, 3, padding="same"),
                           "F.conv2d, 'same'": Call(
                               lambda self, x: F.conv2d(x, self.w, padding="same"),
                               w=plain.weight.data)}),
]

FOOTPRINTS = [
    Tried(nn.Conv2d(2, 3, kernel, stride, pad, dilation), [(1, 2, 7, 9)])
    for kernel, stride, pad, dilation in [
        (1, 1, 0, 1), (3, 1, 1, 1), (2, 1, 0, 1), (4, 2, 1, 1), ((3, 5), (2, 1), (0, 2), 1),
        (3, 2, 2, 2), (2, 3, 1, 3), ((1, 3), (3, 1), (0, 1), 1)]
] + [Tried(nn.Conv2d(4, 4, 3, padding=1, groups=4), [(1, 4, 1, 1)]),
     Tried(Call(lambda self, x, y: self.conv(x) + y, conv=nn.Conv2d(2, 3, 2, 2)),
           [(1, 2, 6, 8), (1, 3, 3, 4)])]
