import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Value, maps

VALUES = [
    Value("cut at 6", nn.ReLU6(), [maps([[-1, 5, 6], [7, 0, 100]])], maps([[0, 5, 6], [6, 0, 6]])),
]

SPELLINGS = [Group([(2, 3, 4, 5)], {
    "nn.ReLU6": nn.ReLU6(), "in place": nn.ReLU6(inplace=True),
    "F.relu6": Call(lambda self, x: F.relu6(x)),
    "F.relu6 in place": Call(lambda self, x: F.relu6(x, inplace=True)),
})]
