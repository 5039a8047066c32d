import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [
    Value("four channels", nn.PixelShuffle(2), [maps([[1, 5]], [[2, 6]], [[3, 7]], [[4, 8]])],
          maps([[1, 2, 5, 6], [3, 4, 7, 8]])),
    Value("eight channels", nn.PixelShuffle(2), [maps(*([[c]] for c in range(8)))],
          maps([[0, 1], [2, 3]], [[4, 5], [6, 7]])),
]

SPELLINGS = [Group([(2, 18, 2, 3)], {
    "nn.PixelShuffle": nn.PixelShuffle(3), "F": Call(lambda self, x: F.pixel_shuffle(x, 3)),
    "torch": Call(lambda self, x: torch.pixel_shuffle(x, upscale_factor=3)),
    "by views": Call(lambda self, x: x.view(2, 2, 3, 3, 2, 3).permute(0, 1, 4, 2, 5, 3).reshape(
        2, 2, 6, 9)),
})]

FOOTPRINTS = [Tried(nn.PixelShuffle(2), [(1, 8, 2, 3)]), Tried(nn.PixelShuffle(3), [(1, 9, 1, 1)])]
