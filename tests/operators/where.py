import torch

from tests.operators.table import Call, Cases, Group, Tried, Value, maps


def three(function) -> Call:
    return Call(lambda self, x, y, z: function(x, y, z))


x, y, z = maps([[1, -2, 3]]), maps([[10, 20, 30]]), maps([[2, 2, -1]])
shapes = [(2, 3, 4, 5)] * 3
OPERATORS = {
    "where": Cases(
        [Value("of three maps", three(lambda x, y, z: torch.where(x > 0, y, z)), [x, y, z],
               maps([[10, 2, 30]])),
         Value("or a number", three(lambda x, y, z: torch.where(x > 0, y, 0.0)), [x, y, z],
               maps([[10, 0, 30]]))],
        [Group(shapes, {"torch.where": three(lambda x, y, z: torch.where(x > 0, y, z)),
                        "method": three(lambda x, y, z: y.where(x > 0, z))}, others=["gt"])]),
    "masked_fill": Cases(
        [Value("by hand", three(lambda x, y, z: x.masked_fill(x < 0, 7)), [x, y, z],
               maps([[1, 7, 3]]))],
        [Group(shapes, {
            "torch": three(lambda x, y, z: torch.masked_fill(x, y < 0, 2.0)),
            "method": three(lambda x, y, z: x.masked_fill(y < 0, 2.0)),
            "in place": three(lambda x, y, z: x.masked_fill_(y < 0, value=2.0))}, others=["lt"])]),
    "lerp": Cases(
        [Value("three maps", three(torch.lerp), [x, y, z], maps([[19, 42, -24]])),
         Value("half way", three(lambda x, y, z: x.lerp(y, 0.5)), [x, y, z],
               maps([[5.5, 9, 16.5]]))],
        [Group(shapes, {"torch": three(torch.lerp), "method": three(lambda x, y, z: x.lerp(y, z)),
                        "in place": three(lambda x, y, z: x.lerp_(y, weight=z))})],
        [Tried(three(torch.lerp), [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 1, 1)])]),
    "addcmul": Cases(
        [Value("by hand", three(lambda x, y, z: torch.addcmul(x, y, z, value=2)), [x, y, z],
               maps([[41, 78, -57]]))],
        [Group(shapes, {"torch": three(lambda x, y, z: torch.addcmul(x, y, z, value=0.5)),
                        "method": three(lambda x, y, z: x.addcmul(y, z, value=0.5)),
                        "in place": three(lambda x, y, z: x.addcmul_(y, z, value=0.5))})],
        [Tried(three(torch.addcmul), [(1, 2, 3, 4), (1, 2, 3, 4), (1, 1, 3, 4)])]),
    "addcdiv": Cases(
        [Value("by hand", three(lambda x, y, z: torch.addcdiv(x, y, z, value=2)), [x, y, z],
               maps([[11, 18, -57]]))],
        [Group(shapes, {"torch": three(torch.addcdiv),
                        "method": three(lambda x, y, z: x.addcdiv(y, z)),
                        "in place": three(lambda x, y, z: x.addcdiv_(y, z, value=1))})],
        [Tried(three(torch.addcdiv), [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)])]),
}
