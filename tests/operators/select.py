import torch
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps


def shuffled(self, x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def first_of_two(self, x):
    a, _ = x.chunk(2, 1)
    return a


four = maps([[1, 2]], [[3, 4]], [[5, 6]], [[7, 8]])
VALUES = [
    Value("second half", Call(lambda self, x: x.chunk(2, 1)[1]), [four], maps([[5, 6]], [[7, 8]])),
    Value("every other channel", Call(lambda self, x: x[:, ::2]), [four], maps([[1, 2]], [[5, 6]])),
    Value("shuffled", Call(shuffled), [four], maps([[1, 2]], [[5, 6]], [[3, 4]], [[7, 8]])),
    Value("cropped", Call(lambda self, x: x[..., 1:]), [four], maps([[2]], [[4]], [[6]], [[8]])),
    Value("flipped", Call(lambda self, x: x.flip(3)), [four],
          maps([[2, 1]], [[4, 3]], [[6, 5]], [[8, 7]])),
    Value("rolled", Call(lambda self, x: x.roll(1, 1)), [four],
          maps([[7, 8]], [[1, 2]], [[3, 4]], [[5, 6]])),
]

SPELLINGS = [
    Group([(2, 4, 3, 5)], {
        "by views": Call(shuffled), "nn.ChannelShuffle": nn.ChannelShuffle(2),
        "torch.channel_shuffle": Call(lambda self, x: torch.channel_shuffle(x, 2)),
        "unflatten": Call(lambda self, x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)),
    }),
    Group([(2, 4, 3, 5)], {
        "slice": Call(lambda self, x: x[:, :2]), "chunk": Call(lambda self, x: x.chunk(2, 1)[0]),
        "torch.chunk": Call(lambda self, x: torch.chunk(x, 2, dim=1)[0]),
        "split": Call(lambda self, x: torch.split(x, 2, 1)[0]),
        "split by sizes": Call(lambda self, x: x.split([2, 2], dim=1)[0]),
        "narrow": Call(lambda self, x: x.narrow(1, 0, 2)),
        "unpacked": Call(first_of_two),
    }),
]


FOOTPRINTS = [Tried(Call(function), [(1, 4, 5, 6)]) for function in (
    shuffled, lambda self, x: x[:, 1:, ::2, 1:-1], lambda self, x: x.flip(2),
    lambda self, x: x.roll(2, 3))]
