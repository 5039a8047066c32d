import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [
    Value("over channels", nn.Softmax(1), [maps([[0, 0]], [[math.log(3), 0]])],
          maps([[0.25, 0.5]], [[0.75, 0.5]]), 1e-6),
    Value("over columns, which runs whole", nn.Softmax(3), [maps([[0, math.log(3)]])],
          maps([[0.25, 0.75]]), 1e-6),
]

SPELLINGS = [Group([(2, 3, 4, 5)], {
    "nn.Softmax": nn.Softmax(1), "nn.Softmax by name": nn.Softmax(dim=1),
    "F.softmax": Call(lambda self, x: F.softmax(x, 1)),
    "torch.softmax": Call(lambda self, x: torch.softmax(x, dim=1)),
    "method": Call(lambda self, x: x.softmax(1)),
})]

FOOTPRINTS = [Tried(nn.Softmax2d(), [(1, 3, 3, 4)]), Tried(nn.Softmax(-3), [(1, 3, 1, 2)])]
