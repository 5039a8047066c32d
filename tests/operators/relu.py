import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [
    Value("both signs", nn.ReLU(), [maps([[-1, 0, 3], [2, -5, 1], [0, 0, -1]])],
          maps([[0, 0, 3], [2, 0, 1], [0, 0, 0]])),
    Value("one pixel", nn.ReLU(), [maps([[-4]], [[4]])], maps([[0]], [[4]])),
]

SPELLINGS = [Group([(2, 3, 4, 5)], {
    "nn.ReLU": nn.ReLU(), "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu": Call(lambda self, x: F.relu(x)),
    "F.relu in place": Call(lambda self, x: F.relu(x, inplace=True)),
    "F.relu in place by position": Call(lambda self, x: F.relu(x, True)),
    "F.relu_": Call(lambda self, x: F.relu_(x)), "torch.relu": Call(lambda self, x: torch.relu(x)),
    "torch.relu_": Call(lambda self, x: torch.relu_(x)), "method": Call(lambda self, x: x.relu()),
    "method in place": Call(lambda self, x: x.relu_()),
    "by name": Call(lambda self, x: F.relu(input=x)),
})]

FOOTPRINTS = [Tried(nn.ReLU(), [(1, 1, 3, 4)], generic=False)]
