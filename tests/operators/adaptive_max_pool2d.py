import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [
    Value("regions overlap", nn.AdaptiveMaxPool2d((1, 2)), [maps([[1, 3, -5]])], maps([[3, 3]])),
    Value("to one pixel, all negative", nn.AdaptiveMaxPool2d(1), [maps([[-1, -3], [-5, -7]])],
          maps([[-1]])),
]

SPELLINGS = [
    Group([(2, 3, 7, 5)], {
        "module": nn.AdaptiveMaxPool2d((3, 3)),
        "F": Call(lambda self, x: F.adaptive_max_pool2d(x, 3)),
        "by name": Call(lambda self, x: F.adaptive_max_pool2d(x, output_size=(3, 3))),
        "the size of a map": Call(
            lambda self, x: F.adaptive_max_pool2d(x, x[:, :, ::3, ::2].shape[2:])),
    }),
]

FOOTPRINTS = [Tried(nn.AdaptiveMaxPool2d(size), [shape]) for size, shape in [
    (3, (1, 2, 7, 8)), ((2, None), (1, 1, 5, 3)), ((5, 4), (1, 1, 3, 7))]]
