import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

x = maps([[-9, -1, 0, 2, 9]])
VALUES = [
    Value("both ends", Call(lambda self, x: x.clamp(-2, 1)), [x], maps([[-2, -1, 0, 1, 1]])),
    Value("below", Call(lambda self, x: x.clamp(min=-2)), [x], maps([[-2, -1, 0, 2, 9]])),
    Value("above", Call(lambda self, x: torch.clamp(x, max=1)), [x], maps([[-9, -1, 0, 1, 1]])),
    Value("between maps", Call(lambda self, x, y: torch.clamp(x, y, y + 2)),
          [x, maps([[0, 0, 0, 0, 0]])], maps([[0, 0, 0, 2, 2]])),
    Value("Hardtanh", nn.Hardtanh(), [x], maps([[-1, -1, 0, 1, 1]])),
]

SPELLINGS = [
    Group([(2, 3, 4, 5)], {
        "nn.Hardtanh": nn.Hardtanh(-1, 0.5), "in place": nn.Hardtanh(-1, 0.5, inplace=True),
        "F.hardtanh": Call(lambda self, x: F.hardtanh(x, -1, 0.5)),
        "F.hardtanh_": Call(lambda self, x: F.hardtanh_(x, min_val=-1, max_val=0.5)),
        "torch.clamp": Call(lambda self, x: torch.clamp(x, -1, 0.5)),
        "torch.clip": Call(lambda self, x: torch.clip(x, min=-1, max=0.5)),
        "method": Call(lambda self, x: x.clamp(max=0.5, min=-1)),
        "clip": Call(lambda self, x: x.clip(-1, 0.5)),
        "method in place": Call(lambda self, x: x.clamp_(-1, 0.5)),
        "out=": Call(lambda self, x: torch.clamp(x, -1, 0.5, out=torch.empty_like(x))),
    }),
    Group([(2, 3, 4, 5)], {
        "torch.clamp": Call(lambda self, x: torch.clamp(x, 0.25)),
        "clamp_min": Call(lambda self, x: x.clamp_min(0.25)),
        "torch.clamp_min_": Call(lambda self, x: torch.clamp_min_(x, 0.25)),
    }),
    Group([(2, 3, 4, 5)], {
        "method": Call(lambda self, x: x.clamp(max=0.25)),
        "torch.clamp_max": Call(lambda self, x: torch.clamp_max(x, 0.25)),
        "in place": Call(lambda self, x: x.clamp_max_(0.25)),
    }),
]

FOOTPRINTS = [Tried(nn.Hardtanh(-500, 500), [(1, 2, 3, 4)])]
