import torch

from tests.operators.table import Call, Group, Tried, Value, maps

both = Call(lambda self, x, y: x * y)
VALUES = [
    Value("two maps", both, [maps([[1, 2, 3]]), maps([[10, -2, 0]])], maps([[10, -4, 0]])),
    Value("a gate", both, [maps([[1, 2], [3, 4]], [[1, 1], [1, 1]]), maps([[2]], [[0]])],
          maps([[2, 4], [6, 8]], [[0, 0], [0, 0]])),
    Value("by a number", Call(lambda self, x: 3 * x), [maps([[1, -2]])], maps([[3, -6]])),
    Value("squared", Call(lambda self, x: x * x), [maps([[1, -2]])], maps([[1, 4]])),
]


def in_place(self, x, y):
    x *= y
    return x


SPELLINGS = [
    Group([(2, 3, 4, 5), (2, 3, 1, 1)], {
        "operator": both, "operator in place": Call(in_place),
        "torch.mul": Call(lambda self, x, y: torch.mul(x, y)),
        "torch.multiply": Call(lambda self, x, y: torch.multiply(x, y)),
        "method": Call(lambda self, x, y: x.mul(y)), "in place": Call(lambda self, x, y: x.mul_(y)),
    }),
]

FOOTPRINTS = [Tried(both, [(1, 2, 3, 4), (1, 2, 3, 4)]), Tried(both, [(1, 2, 3, 4), (1, 2, 1, 1)])]
