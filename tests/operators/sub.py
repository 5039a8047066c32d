import torch

from tests.operators.table import Call, Group, Tried, Value, maps

both = Call(lambda self, x, y: x - y)
VALUES = [
    Value("two maps", both, [maps([[1, 2, 3]]), maps([[10, -2, 0]])], maps([[-9, 4, 3]])),
    Value("from a pixel", both, [maps([[10]]), maps([[1, 2], [3, 4]])], maps([[9, 8], [7, 6]])),
    Value("from a number", Call(lambda self, x: 1 - x), [maps([[1, 2, -3]])], maps([[0, -1, 4]])),
    Value("scaled", Call(lambda self, x, y: torch.sub(x, y, alpha=2)),
          [maps([[1, 2]]), maps([[1, 1]])], maps([[-1, 0]])),
    Value("reversed", Call(lambda self, x, y: torch.rsub(x, y)), [maps([[1, 2]]), maps([[5, 5]])],
          maps([[4, 3]])),
]


def in_place(self, x, y):
    x -= y
    return x


SPELLINGS = [
    Group([(2, 3, 4, 5), (2, 3, 4, 5)], {
        "operator": both, "operator in place": Call(in_place),
        "torch.sub": Call(lambda self, x, y: torch.sub(x, y)),
        "torch.subtract": Call(lambda self, x, y: torch.subtract(x, y)),
        "method": Call(lambda self, x, y: x.sub(y)), "in place": Call(lambda self, x, y: x.sub_(y)),
        "reversed": Call(lambda self, x, y: torch.rsub(y, x)),
    }),
    Group([(2, 3, 4, 5)], {
        "left": Call(lambda self, x: 1 - x), "torch.rsub": Call(lambda self, x: torch.rsub(x, 1)),
    }),
]

FOOTPRINTS = [Tried(both, [(1, 2, 3, 4), (1, 2, 3, 4)]), Tried(both, [(1, 1, 1, 1), (1, 2, 3, 4)])]
