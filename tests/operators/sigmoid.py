import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Value, maps

VALUES = [
    Value("by hand", nn.Sigmoid(), [maps([[0, math.log(3), -math.log(3)]])],
          maps([[0.5, 0.75, 0.25]]), 1e-7),
]

SPELLINGS = [Group([(2, 3, 4, 5)], {
    "nn.Sigmoid": nn.Sigmoid(), "torch.sigmoid": Call(lambda self, x: torch.sigmoid(x)),
    "F.sigmoid": Call(lambda self, x: F.sigmoid(x)), "method": Call(lambda self, x: x.sigmoid()),
    "method in place": Call(lambda self, x: x.sigmoid_()),
    "torch.sigmoid_": Call(lambda self, x: torch.sigmoid_(x)),
    "expit": Call(lambda self, x: torch.special.expit(x)),
})]
