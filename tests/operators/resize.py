import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps


def resized(*args, **named) -> Call:
    return Call(lambda self, x: F.interpolate(x, *args, **named))


line = maps([[0, 4]])
VALUES = [
    Value("twice as wide", resized((1, 4), mode="bilinear"), [line], maps([[0, 1, 3, 4]])),
    Value("corners aligned", resized((1, 5), mode="bilinear", align_corners=True), [line],
          maps([[0, 1, 2, 3, 4]])),
    Value("both ways", resized(scale_factor=2, mode="bilinear", align_corners=True),
          [maps([[0, 3], [6, 9]])],
          maps([[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]]), 1e-5),
    Value("half as wide", resized((1, 2), mode="bilinear"), [maps([[0, 4, 8, 20]])],
          maps([[2, 14]])),
    Value("half as wide, antialiased", resized((1, 2), mode="bilinear", antialias=True),
          [maps([[7, 0, 0, 14]])], maps([[3, 6]]), 1e-5),
    Value("bicubic at the middle", resized((1, 1), mode="bicubic"), [maps([[0, 8, 16, 0]])],
          maps([[14.25]])),
]

SPELLINGS = [
    Group([(2, 3, 4, 5)], {
        "nn.Upsample": nn.Upsample(scale_factor=2, mode="bilinear"),
        "pairs": nn.Upsample(scale_factor=(2, 2), mode="bilinear", align_corners=False),
        "F": resized(scale_factor=2, mode="bilinear"),
        "F.upsample": Call(lambda self, x: F.upsample(x, scale_factor=2.0, mode="bilinear"))}),
    Group([(2, 3, 4, 5)], {
        "nn.Upsample": nn.Upsample((7, 6), mode="bilinear", align_corners=True),
        "nn.UpsamplingBilinear2d": nn.UpsamplingBilinear2d((7, 6)),
        "F": resized([7, 6], mode="bilinear", align_corners=True),
        "F.upsample_bilinear": Call(lambda self, x: F.upsample_bilinear(x, size=(7, 6)))}),
    Group([(2, 3, 4, 5)], {
        "F": resized(6, mode="bicubic", antialias=True),
        "by name": resized(size=(6, 6), mode="bicubic", antialias=True, align_corners=False)}),
    Group([(2, 3, 4, 5)], {
        "of another map's size": Call(lambda self, x: F.interpolate(
            x, size=(x.shape[2] * 2, x.shape[3] + 1), mode="bilinear")),
        "by numbers": resized((8, 6), mode="bilinear")}),
]

FOOTPRINTS = [
    Tried(resized(mode=mode, align_corners=corners, **size), [(1, 2, 4, 5)])
    for mode in ("bilinear", "bicubic") for corners in (False, True)
    for size in ({"size": (7, 3)}, {"scale_factor": (2, 4)}, {"scale_factor": (0.6, 1.7)},
                 {"size": (1, 1)}, {"scale_factor": 1.3, "recompute_scale_factor": True})
] + [Tried(resized(mode=mode, antialias=True, size=size), [(1, 2, 6, 7)], generic=False)
     for mode in ("bilinear", "bicubic") for size in ((3, 4), (2, 9), (6, 3), (9, 7))]
