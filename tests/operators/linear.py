import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Value

fc = nn.Linear(3, 2)
fc.weight.data, fc.bias.data = torch.tensor([[1.0, 2, 3], [0, -1, 0]]), torch.tensor([10.0, 0])
VALUES = [
    Value("a vector", fc, [torch.tensor([[1.0, 2, 3]])], torch.tensor([[24.0, -2]])),
    Value("rows", fc, [torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])],
          torch.tensor([[[11.0, 0], [12, -1]]])),
]

SPELLINGS = [Group([(2, 3)], {
    "nn.Linear": fc, "F.linear": Call(lambda self, x: F.linear(x, self.fc.weight, self.fc.bias),
                                      fc=fc),
    "by name": Call(lambda self, x: F.linear(x, bias=self.fc.bias, weight=self.fc.weight), fc=fc),
})]
