import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps


def trained(*slopes: float) -> nn.PReLU:
    module = nn.PReLU(len(slopes))
    module.weight.data = torch.tensor(slopes)
    return module


VALUES = [
    Value("one slope", trained(0.5), [maps([[-4, 4]], [[-2, 0]])], maps([[-2, 4]], [[-1, 0]])),
    Value("a slope a channel", trained(0.5, -1.0), [maps([[-4, 4]], [[-2, 0]])],
          maps([[-2, 4]], [[2, 0]])),
]

two = trained(0.3, 0.1)
SPELLINGS = [Group([(2, 2, 4, 5)], {
    "nn.PReLU": two, "F.prelu": Call(lambda self, x: F.prelu(x, self.w), w=two.weight.data),
    "torch.prelu": Call(lambda self, x: torch.prelu(x, weight=self.w), w=two.weight.data),
    "method": Call(lambda self, x: x.prelu(self.w), w=two.weight.data),
})]

FOOTPRINTS = [Tried(trained(0.3, 0.1), [(1, 2, 3, 4)])]
