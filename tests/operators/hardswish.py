import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Value, maps

VALUES = [
    Value("by hand", nn.Hardswish(), [maps([[-4, -3, 0], [3, 6, 9]])],
          maps([[0, 0, 0], [3, 6, 9]])),
    Value("between", nn.Hardswish(), [maps([[-1, 1]])], maps([[-2 / 6, 4 / 6]]), 1e-7),
]

SPELLINGS = [Group([(2, 3, 4, 5)], {
    "nn.Hardswish": nn.Hardswish(), "in place": nn.Hardswish(inplace=True),
    "F.hardswish": Call(lambda self, x: F.hardswish(x)),
    "F.hardswish in place": Call(lambda self, x: F.hardswish(x, inplace=True)),
})]
