import torch

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [
    Value("of a channel", Call(lambda self, x: x.mean((2, 3))),
          [maps([[1, 2], [3, 6]], [[0, 0], [0, 4]])],
          torch.tensor([[3.0, 1]])),
    Value("over channels", Call(lambda self, x: x.mean(1, keepdim=True)),
          [maps([[1, 2]], [[3, 6]])], maps([[2, 4]])),
    Value("of two maps", Call(lambda self, x: torch.stack([x, x * 3], 2).mean(2)),
          [maps([[1, 2]], [[3, 6]])], maps([[2, 4]], [[6, 12]])),
    Value("over rows", Call(lambda self, x: x.mean(2, keepdim=True)), [maps([[1, 2], [3, 6]])],
          maps([[2, 4]])),
]

SPELLINGS = [
    Group([(2, 3, 4, 5)], {
        "method": Call(lambda self, x: x.mean((2, 3))),
        "torch.mean": Call(lambda self, x: torch.mean(x, dim=(2, 3))),
        "a list": Call(lambda self, x: x.mean([2, 3], keepdim=False)),
        "axis": Call(lambda self, x: x.mean(axis=(2, 3), keepdims=False)),
    }),
    Group([(2, 3, 4, 5)], {
        "a number": Call(lambda self, x: x.mean(1, keepdim=True)),
        "a list of one": Call(lambda self, x: x.mean([1], True)),
    }),
]

FOOTPRINTS = [Tried(Call(lambda self, x: x.mean(1, keepdim=True)), [(1, 3, 3, 4)])]
