import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [Value("over channels", nn.LogSoftmax(1), [maps([[0]], [[math.log(3)]])],
                maps([[math.log(1 / 4)]], [[math.log(3 / 4)]]), 1e-6)]

SPELLINGS = [Group([(2, 3, 4, 5)], {
    "nn.LogSoftmax": nn.LogSoftmax(1), "F": Call(lambda self, x: F.log_softmax(x, 1)),
    "torch": Call(lambda self, x: torch.log_softmax(x, dim=1)),
    "method": Call(lambda self, x: x.log_softmax(1)),
})]

FOOTPRINTS = [Tried(nn.LogSoftmax(1), [(1, 3, 3, 4)])]
