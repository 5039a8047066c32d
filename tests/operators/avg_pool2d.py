import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

nine = maps([[3, 6, 9], [0, 3, 0], [6, 6, 6]])
VALUES = [
    Value("the padding counts", nn.AvgPool2d(3, 3, 1), [maps([[9, 18]])], maps([[3]])),
    Value("or does not", nn.AvgPool2d(3, 3, 1, count_include_pad=False), [maps([[9, 18]])],
          maps([[13.5]])),
    Value("cut windows with ceil_mode", nn.AvgPool2d(2, ceil_mode=True), [nine],
          maps([[3, 4.5], [6, 6]])),
    Value("another divisor", nn.AvgPool2d(2, divisor_override=3), [nine], maps([[4]])),
]

SPELLINGS = [
    Group([(2, 3, 7, 5)], {
        "module": nn.AvgPool2d(2), "pairs": nn.AvgPool2d((2, 2), (2, 2)),
        "F": Call(lambda self, x: F.avg_pool2d(x, 2)),
        "by name": Call(lambda self, x: F.avg_pool2d(x, kernel_size=[2], stride=2)),
    }),
    Group([(2, 3, 7, 5)], {
        "module": nn.AvgPool2d(3, 2, 1, True, False, 5),
        "F": Call(lambda self, x: F.avg_pool2d(x, 3, 2, 1, True, False, 5)),
    }),
]

FOOTPRINTS = [Tried(nn.AvgPool2d(kernel, stride, pad, ceil_mode=up, count_include_pad=up), [shape])
              for up in (False, True)
              for kernel, stride, pad, shape in [(3, 2, 1, (1, 2, 7, 8)), (2, 3, 1, (1, 1, 7, 5)),
                                                 ((1, 4), 1, 0, (1, 1, 3, 5))]]
FOOTPRINTS += [Tried(Call(pool), [(1, 2, 5, 5)]) for pool in (
    lambda self, x: F.avg_pool2d(x, x.size()[2:]),
    lambda self, x: F.avg_pool2d(x, x.size(3)),
    lambda self, x: F.avg_pool2d(x, (x.shape[2], 3), 1))]
