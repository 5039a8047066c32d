import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [Value("over two channels", nn.LocalResponseNorm(2, alpha=2, beta=1, k=1),
                [maps([[1]], [[2]])], maps([[1 / 2]], [[2 / 6]]), 1e-6)]

SPELLINGS = [Group([(2, 6, 3, 4)], {
    "module": nn.LocalResponseNorm(5, 0.1, 0.5, 2.0),
    "F": Call(lambda self, x: F.local_response_norm(x, 5, 0.1, 0.5, 2.0)),
    "by name": Call(lambda self, x: F.local_response_norm(x, size=5, k=2.0, alpha=0.1, beta=0.5)),
})]

FOOTPRINTS = [Tried(nn.LocalResponseNorm(3, alpha=1.0), [(1, 4, 3, 4)])]
