import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [
    Value("over channels", nn.GLU(1), [maps([[2, 4]], [[0, 0]])], maps([[1, 2]])),
    Value("over columns, which runs whole", nn.GLU(), [maps([[2, 4, 0, 0]])], maps([[1, 2]])),
]

SPELLINGS = [Group([(2, 4, 3, 5)], {
    "nn.GLU": nn.GLU(1), "F.glu": Call(lambda self, x: F.glu(x, 1)),
    "by name": Call(lambda self, x: F.glu(input=x, dim=1)),
})]

FOOTPRINTS = [Tried(nn.GLU(1), [(1, 4, 3, 2)], generic=False)]
