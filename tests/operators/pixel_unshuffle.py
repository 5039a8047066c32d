import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [
    Value("to four channels", nn.PixelUnshuffle(2), [maps([[1, 2, 5, 6], [3, 4, 7, 8]])],
          maps([[1, 5]], [[2, 6]], [[3, 7]], [[4, 8]])),
    Value("to eight channels", nn.PixelUnshuffle(2),
          [maps([[0, 1], [2, 3]], [[4, 5], [6, 7]])], maps(*([[c]] for c in range(8)))),
]

SPELLINGS = [Group([(2, 2, 6, 9)], {
    "nn.PixelUnshuffle": nn.PixelUnshuffle(3), "F": Call(lambda self, x: F.pixel_unshuffle(x, 3)),
    "torch": Call(lambda self, x: torch.pixel_unshuffle(x, downscale_factor=3)),
    "by views": Call(lambda self, x: x.view(2, 2, 2, 3, 3, 3).permute(0, 1, 3, 5, 2, 4).reshape(
        2, 18, 2, 3)),
})]

FOOTPRINTS = [Tried(nn.PixelUnshuffle(2), [(1, 2, 4, 6)]), Tried(nn.PixelUnshuffle(3), [
    (1, 1, 3, 3)])]
