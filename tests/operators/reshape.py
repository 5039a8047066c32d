import torch

from tests.operators.table import Call, Group, Value, maps

VALUES = [
    Value("by rows", Call(lambda self, x: x.reshape(x.shape[0], 2, 3)),
          [maps([[1, 2], [3, 4], [5, 6]])],
          torch.tensor([[[1.0, 2, 3], [4, 5, 6]]])),
    Value("channels last in memory, not in meaning", Call(lambda self, x: x.view(x.size(0), -1)),
          [maps([[1, 2]], [[3, 4]])], torch.tensor([[1.0, 2, 3, 4]])),
]

SPELLINGS = [Group([(2, 3, 4, 5)], {
    "torch.reshape": Call(lambda self, x: torch.reshape(x, (2, 60))),
    "method": Call(lambda self, x: x.reshape((2, 60))),
    "view": Call(lambda self, x: x.view((2, 60))),
    "by name": Call(lambda self, x: x.reshape(shape=(2, 60))),
    "sizes": Call(lambda self, x: x.view(2, 60)),
    "of another map": Call(lambda self, x: x.reshape(x.size(0), 60)),
})]
