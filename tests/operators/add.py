import torch

from tests.operators.table import Call, Group, Tried, Value, maps

both = Call(lambda self, x, y: x + y)
VALUES = [
    Value("two maps", both, [maps([[1, 2, 3]]), maps([[10, -2, 0]])], maps([[11, 0, 3]])),
    Value("one pixel for all", both, [maps([[1, 2], [3, 4]]), maps([[10]])],
          maps([[11, 12], [13, 14]])),
    Value("one channel for all", both, [maps([[1]], [[2]]), maps([[5]])], maps([[6]], [[7]])),
    Value("a row and a column", both, [maps([[1, 2]]), maps([[10], [20]])],
          maps([[11, 12], [21, 22]])),
    Value("scaled", Call(lambda self, x, y: torch.add(x, y, alpha=-3)),
          [maps([[1, 2]]), maps([[1, 1]])], maps([[-2, -1]])),
    Value("the same twice", Call(lambda self, x: x + x), [maps([[1, 2], [3, 4]])],
          maps([[2, 4], [6, 8]])),
    Value("a number from the left", Call(lambda self, x: 1 + x), [maps([[1, 2]])], maps([[2, 3]])),
]


def in_place(self, x, y):
    x += y
    return x


SPELLINGS = [
    Group([(2, 3, 4, 5), (2, 3, 4, 5)], {
        "operator": both, "operator in place": Call(in_place),
        "torch.add": Call(lambda self, x, y: torch.add(x, y)),
        "by name": Call(lambda self, x, y: torch.add(input=x, other=y)),
        "method": Call(lambda self, x, y: x.add(y)), "in place": Call(lambda self, x, y: x.add_(y)),
    }),
    Group([(2, 3, 4, 5), (2, 3, 4, 5)], {
        "torch.add": Call(lambda self, x, y: torch.add(x, y, alpha=2)),
        "method": Call(lambda self, x, y: x.add(y, alpha=2)),
        "in place": Call(lambda self, x, y: x.add_(y, alpha=2)),
    }),
    Group([(2, 3, 4, 5)], {
        "right": Call(lambda self, x: x + 1), "left": Call(lambda self, x: 1 + x),
        "torch.add": Call(lambda self, x: torch.add(x, 1)),
        "in place": Call(lambda self, x: x.add_(1)),
    }),
]

FOOTPRINTS = [
    Tried(both, [(1, 2, 3, 4), (1, 2, 3, 4)]), Tried(both, [(1, 2, 3, 4), (1, 1, 1, 1)]),
    Tried(both, [(1, 2, 1, 4), (1, 2, 3, 1)]), Tried(Call(lambda self, x: x + x), [(1, 2, 3, 3)]),
]
