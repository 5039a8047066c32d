import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [
    Value("all sides", nn.ZeroPad2d((1, 0, 0, 1)), [maps([[1, 2]])], maps([[0, 1, 2], [0, 0, 0]])),
    Value("cropped", Call(lambda self, x: F.pad(x, (-1, 0, 1, -1))), [maps([[1, 2], [3, 4]])],
          maps([[0], [2]])),
]

SPELLINGS = [
    Group([(2, 3, 4, 5)], {
        "nn.ZeroPad2d": nn.ZeroPad2d((1, 2, 3, 0)),
        "F.pad": Call(lambda self, x: F.pad(x, (1, 2, 3, 0))),
        "by name": Call(lambda self, x: F.pad(x, pad=[1, 2, 3, 0], mode="constant", value=0)),
        "0.0": Call(lambda self, x: F.pad(x, (1, 2, 3, 0), "constant", 0.0)),
    }),
    Group([(2, 3, 4, 5)], {
        "columns alone": Call(lambda self, x: F.pad(x, (1, 2))), "both": nn.ZeroPad2d((1, 2, 0, 0)),
    }),
]

FOOTPRINTS = [Tried(Call(lambda self, x, sides=sides: F.pad(x, sides)), [(1, 2, 4, 5)])
              for sides in [(1, 2, 0, 3), (-1, 2, 1, -2), (0, 0, -1, -1)]]
