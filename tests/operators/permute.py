import torch

from tests.operators.table import Call, Group, Value, maps

VALUES = [
    Value("channels last", Call(lambda self, x: x.permute(0, 2, 3, 1)),
          [maps([[1, 2]], [[3, 4]])], torch.tensor([[[[1.0, 3], [2, 4]]]])),
    Value("there and back", Call(lambda self, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
          [maps([[1, 2]], [[3, 4]])], maps([[1, 2]], [[3, 4]])),
    Value("rows and columns", Call(lambda self, x: torch.permute(x, (0, 1, 3, 2))),
          [maps([[1, 2], [3, 4]])], maps([[1, 3], [2, 4]])),
]

SPELLINGS = [Group([(2, 3, 4, 5)], {
    "method": Call(lambda self, x: x.permute(0, 2, 3, 1)),
    "a tuple": Call(lambda self, x: x.permute((0, 2, 3, 1))),
    "torch": Call(lambda self, x: torch.permute(x, dims=(0, 2, 3, 1))),
    "movedim": Call(lambda self, x: x.movedim(1, -1)),
    "transposed twice": Call(lambda self, x: x.transpose(1, 2).transpose(2, 3)),
})]
