import operator

import torch

from tests.operators.table import Call, Group, Tried, Value, maps

both = Call(lambda self, x, y: x / y)


def in_place(self, x, y):
    x /= y
    return x


VALUES = [
    Value("two maps", both, [maps([[6, -9]]), maps([[4, 3]])], maps([[1.5, -3]])),
    Value("a gate", both, [maps([[6, 8]], [[9, 3]]), maps([[2]], [[3]])], maps([[3, 4]], [[3, 1]])),
    Value("a number from the left", Call(lambda self, x: 12 / x), [maps([[4, -3]])],
          maps([[3, -4]])),
    Value("rounded down", Call(lambda self, x: torch.div(x, 2, rounding_mode="floor")),
          [maps([[3, -3]])], maps([[1, -2]])),
    Value("rounded to zero", Call(lambda self, x: x.div(2, rounding_mode="trunc")),
          [maps([[3, -3]])], maps([[1, -1]])),
]

SPELLINGS = [
    Group([(2, 3, 4, 5), (2, 3, 4, 5)], {
        "operator": both, "operator in place": Call(in_place),
        "truediv": Call(lambda self, x, y: operator.truediv(x, y)),
        "torch.div": Call(lambda self, x, y: torch.div(x, y)),
        "torch.divide": Call(lambda self, x, y: torch.divide(x, other=y)),
        "torch.true_divide": Call(lambda self, x, y: torch.true_divide(x, y)),
        "method": Call(lambda self, x, y: x.div(y)), "divide": Call(lambda self, x, y: x.divide(y)),
        "in place": Call(lambda self, x, y: x.div_(y)),
        "out=": Call(lambda self, x, y: torch.div(x, y, out=torch.empty_like(x))),
    }),
    Group([(2, 3, 4, 5)], {
        "torch.div": Call(lambda self, x: torch.div(x, 0.3, rounding_mode="floor")),
        "method": Call(lambda self, x: x.div(0.3, rounding_mode="floor")),
        "in place": Call(lambda self, x: x.div_(0.3, rounding_mode="floor")),
    }),
]

FOOTPRINTS = [Tried(both, [(1, 2, 3, 4), (1, 2, 3, 4)]), Tried(both, [(1, 2, 3, 4), (1, 2, 1, 1)])]
