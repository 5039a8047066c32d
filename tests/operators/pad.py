import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

line, square = maps([[1, 2, 3]]), maps([[1, 2], [3, 4]])


def padded(*args, **named) -> Call:
    return Call(lambda self, x: F.pad(x, *args, **named))


VALUES = [
    Value("reflect", padded((2, 1, 0, 0), mode="reflect"), [line], maps([[3, 2, 1, 2, 3, 2]])),
    Value("replicate", padded((1, 2, 1, 0), mode="replicate"), [square],
          maps([[1, 1, 2, 2, 2], [1, 1, 2, 2, 2], [3, 3, 4, 4, 4]])),
    Value("circular", padded((1, 0, 1, 1), mode="circular"), [square],
          maps([[4, 3, 4], [2, 1, 2], [4, 3, 4], [2, 1, 2]])),
    Value("a number", padded((1, 0, 0, 1), value=-7), [line],
          maps([[-7, 1, 2, 3], [-7, -7, -7, -7]])),
    Value("a number, cropped", padded((-1, 1), value=5), [line], maps([[2, 3, 5]])),
    Value("channels too", padded((1, 0, 0, 0, 1, 0), value=2), [line],
          maps([[2, 2, 2, 2]], [[2, 1, 2, 3]])),
    Value("channels shifted", padded((0, 0, 0, 0, 1, -1), value=2), [maps([[1]], [[3]])],
          maps([[2]], [[1]])),
    Value("channels by zeros", padded((0, 0, 0, 0, 0, 1)), [line], maps([[1, 2, 3]], [[0, 0, 0]])),
    Value("in a convolution", Call(lambda self, x: self.conv(x), conv=nn.Conv2d(
        1, 1, (1, 3), padding=(0, 1), padding_mode="reflect", bias=False)), [line * 0],
        maps([[0, 0, 0]])),
]

SPELLINGS = [
    Group([(2, 3, 4, 5)], {
        "nn.ReflectionPad2d": nn.ReflectionPad2d((1, 2, 0, 3)),
        "F.pad": padded((1, 2, 0, 3), "reflect"), "by name": padded([1, 2, 0, 3], mode="reflect")}),
    Group([(2, 3, 4, 5)], {"nn.ReplicationPad2d": nn.ReplicationPad2d(2),
                           "F.pad": padded((2, 2, 2, 2), "replicate")}),
    Group([(2, 3, 4, 5)], {"nn.CircularPad2d": nn.CircularPad2d((1, 2, 3, 0)),
                           "F.pad": padded((1, 2, 3, 0), "circular")}),
    Group([(2, 3, 4, 5)], {"nn.ConstantPad2d": nn.ConstantPad2d((1, 2, 0, 0), 0.5),
                           "F.pad": padded((1, 2), "constant", 0.5)}),
    *(Group([(2, 3, 5, 4)], {
        "nn.Conv2d": nn.Conv2d(3, 2, 3, padding=(1, 2), padding_mode=mode),
    }, others=["conv2d"]) for mode in ("reflect", "replicate", "circular")),
    Group([(2, 3, 5, 4)], {
        "'same'": nn.Conv2d(3, 2, (3, 4), padding="same", padding_mode="reflect"),
    }, others=["conv2d"]),
]

FOOTPRINTS = [Tried(padded(sides, mode=mode), [(1, 2, 3, 4)])
              for mode in ("reflect", "replicate", "circular")
              for sides in ((1, 2, 2, 0), (3, 1, 0, 1))]
FOOTPRINTS += [Tried(padded((1, -1, 2, 0, 1, 0), value=3), [(1, 2, 3, 4)])]
