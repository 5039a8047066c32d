import torch
from torch import nn

from tests.operators.table import Call, Group, Value, maps

VALUES = [
    Value("a map", nn.Flatten(), [maps([[1, 2]], [[3, 4]])], torch.tensor([[1.0, 2, 3, 4]])),
    Value("the pixels", nn.Flatten(2), [maps([[1, 2], [3, 4]])], torch.tensor([[[1.0, 2, 3, 4]]])),
]

SPELLINGS = [Group([(2, 3, 4, 5)], {
    "nn.Flatten": nn.Flatten(), "torch.flatten": Call(lambda self, x: torch.flatten(x, 1)),
    "by name": Call(lambda self, x: torch.flatten(x, start_dim=1, end_dim=-1)),
    "method": Call(lambda self, x: x.flatten(1)),
})]
