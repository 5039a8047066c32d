import torch

from tests.operators.table import Call, Group, Tried, Value, maps

both = Call(lambda self, x, y: torch.cat([x, y], 1))
VALUES = [
    Value("two maps", both, [maps([[1, 2]]), maps([[3, 4]], [[5, 6]])],
          maps([[1, 2]], [[3, 4]], [[5, 6]])),
    Value("the same twice", Call(lambda self, x: torch.cat([x, x], 1)), [maps([[1]])],
          maps([[1]], [[1]])),
    Value("nested", Call(lambda self, x, y: torch.cat([torch.cat([y, x + 1], 1), y], 1)),
          [maps([[1]]), maps([[5]])], maps([[5]], [[2]], [[5]])),
    Value("over columns, which runs whole", Call(lambda self, x, y: torch.cat([x, y], 3)),
          [maps([[1], [2]]), maps([[3], [4]])], maps([[1, 3], [2, 4]])),
]

SPELLINGS = [Group([(2, 3, 4, 5), (2, 1, 4, 5)], {
    "list": both, "tuple": Call(lambda self, x, y: torch.cat((x, y), 1)),
    "by name": Call(lambda self, x, y: torch.cat(tensors=[x, y], dim=1)),
    "torch.concat": Call(lambda self, x, y: torch.concat([x, y], dim=1)),
    "torch.concatenate": Call(lambda self, x, y: torch.concatenate([x, y], axis=1)),
})]

FOOTPRINTS = [
    Tried(both, [(1, 2, 3, 4), (1, 1, 3, 4)]),
    Tried(Call(lambda self, x, y: torch.cat([x, y, x], -3)), [(1, 2, 3, 4), (1, 1, 3, 4)]),
]
