import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [
    Value("padded with minus infinity", nn.MaxPool2d(3, 1, 1), [maps([[-1, -2, -3]])],
          maps([[-1, -1, -2]])),
    Value("the last column only with ceil_mode", nn.MaxPool2d(2, ceil_mode=True),
          [maps([[1, 2, 3], [4, 0, 0], [7, 8, 9]])], maps([[4, 3], [8, 9]])),
    Value("and without", nn.MaxPool2d(2), [maps([[1, 2, 3], [4, 0, 0], [7, 8, 9]])], maps([[4]])),
    Value("dilated", nn.MaxPool2d((1, 2), 1, dilation=2), [maps([[1, 5, 2, 0]])], maps([[2, 5]])),
    Value("one pixel", nn.MaxPool2d(1), [maps([[-1]])], maps([[-1]])),
]

SPELLINGS = [
    Group([(2, 3, 7, 5)], {
        "module": nn.MaxPool2d(2), "pairs": nn.MaxPool2d((2, 2), (2, 2)),
        "F": Call(lambda self, x: F.max_pool2d(x, 2)),
        "torch": Call(lambda self, x: torch.max_pool2d(x, 2)),
        "by name": Call(lambda self, x: F.max_pool2d(x, kernel_size=2, stride=[2, 2])),
    }),
    Group([(2, 3, 7, 5)], {
        "module": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        "F": Call(lambda self, x: F.max_pool2d(x, 3, 2, 1, 1, True)),
    }),
]

FOOTPRINTS = [Tried(nn.MaxPool2d(*settings, ceil_mode=up), [shape])
              for up in (False, True)
              for settings, shape in [((3, 2, 1), (1, 2, 7, 8)), ((2, 3, 1), (1, 1, 7, 5)),
                                      ((2, 2, 0, 2), (1, 1, 6, 7)), (((1, 4), 1), (1, 1, 3, 5))]]
