import torch

from tests.operators.table import Call, Group, Value, maps

both = Call(lambda self, x, y: torch.stack([x, y], 1))
VALUES = [
    Value("a new dimension", both, [maps([[1, 2]]), maps([[3, 4]])],
          torch.tensor([[[[[1.0, 2]]], [[[3, 4]]]]])),
    Value("summed again", Call(lambda self, x, y: torch.stack([x, y, x], dim=-1).sum(-1)),
          [maps([[1, 2]]), maps([[3, 4]])], maps([[5, 8]])),
    Value("channels in turn", Call(lambda self, x, y: torch.stack([x, y], 2).flatten(1, 2)),
          [maps([[1]], [[2]]), maps([[3]], [[4]])], maps([[1]], [[3]], [[2]], [[4]])),
]

SPELLINGS = [Group([(2, 3, 4, 5), (2, 3, 4, 5)], {
    "list": both, "by name": Call(lambda self, x, y: torch.stack(tensors=(x, y), dim=1)),
})]
