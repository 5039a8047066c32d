import torch

from tests.operators.table import Call, Cases, Group, Tried, Value, maps


def two(function) -> Call:
    return Call(lambda self, x, y: function(x, y))


x, y = maps([[1, -2, 3]]), maps([[0, 5, 3]])
shapes = [(2, 3, 4, 5), (2, 3, 4, 5)]
OPERATORS = {
    "maximum": Cases(
        [Value("two maps", two(torch.maximum), [x, y], maps([[1, 5, 3]])),
         Value("a pixel for all", two(torch.maximum), [x, maps([[2]])], maps([[2, 2, 3]])),
         Value("of a stack", two(lambda x, y: torch.stack([x, y, x - 9]).amax(0)), [x, y],
               maps([[1, 5, 3]]))],
        [Group(shapes, {"torch.maximum": two(torch.maximum), "torch.max": two(torch.max),
                        "maximum": two(lambda x, y: x.maximum(y)),
                        "max": two(lambda x, y: x.max(y)),
                        "stack": two(lambda x, y: torch.stack((x, y), dim=1).amax(1)),
                        "out=": two(lambda x, y: torch.max(x, y, out=torch.empty_like(x)))})],
        [Tried(two(torch.maximum), [(1, 2, 3, 4), (1, 2, 1, 4)])]),
    "minimum": Cases(
        [Value("two maps", two(torch.minimum), [x, y], maps([[0, -2, 3]]))],
        [Group(shapes, {"torch.minimum": two(torch.minimum), "torch.min": two(torch.min),
                        "minimum": two(lambda x, y: x.minimum(y)),
                        "min": two(lambda x, y: x.min(y)),
                        "stack": two(lambda x, y: torch.stack((x, y), dim=4).amin(4))})],
        [Tried(two(torch.minimum), [(1, 2, 3, 4), (1, 1, 3, 4)])]),
}
