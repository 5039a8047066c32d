import math

import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Value, maps

LOG3 = math.log(3)
VALUES = [
    Value("by hand", nn.SiLU(), [maps([[0, LOG3, -LOG3]])], maps([[0, 0.75 * LOG3, -0.25 * LOG3]]),
          1e-6),
]

SPELLINGS = [Group([(2, 3, 4, 5)], {
    "nn.SiLU": nn.SiLU(), "in place": nn.SiLU(inplace=True),
    "F.silu": Call(lambda self, x: F.silu(x)),
    "F.silu in place": Call(lambda self, x: F.silu(x, inplace=True)),
})]
