import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Tried, Value, maps

VALUES = [
    Value("doubled", nn.Upsample(scale_factor=2), [maps([[1, 2]])],
          maps([[1, 1, 2, 2], [1, 1, 2, 2]])),
    Value("one and a half", nn.Upsample(scale_factor=(1, 1.5)), [maps([[1, 2]])],
          maps([[1, 1, 2]])),
    Value("made smaller", nn.Upsample((1, 2)), [maps([[1, 2, 3, 4]])], maps([[1, 3]])),
    Value("exactly", nn.Upsample((1, 2), mode="nearest-exact"), [maps([[1, 2, 3, 4]])],
          maps([[2, 4]])),
]

SPELLINGS = [
    Group([(2, 3, 4, 5)], {
        "module": nn.Upsample(scale_factor=2.0), "pair": nn.Upsample(scale_factor=(2.0, 2.0)),
        "nn.UpsamplingNearest2d": nn.UpsamplingNearest2d(scale_factor=2.0),
        "F.interpolate": Call(lambda self, x: F.interpolate(x, scale_factor=2.0)),
        "F.upsample": Call(lambda self, x: F.upsample(x, scale_factor=2.0)),
    }),
    Group([(2, 3, 4, 5)], {
        "module": nn.Upsample((7, 9)),
        "F.interpolate": Call(lambda self, x: F.interpolate(x, (7, 9))),
        "of a shape": Call(lambda self, x: F.interpolate(x, size=(x.shape[2] + 3, x.size(3) + 4))),
    }),
]

FOOTPRINTS = [Tried(nn.Upsample(**to, mode=mode), [shape])
              for mode in ("nearest", "nearest-exact")
              for to, shape in [({"scale_factor": 2}, (1, 2, 3, 5)),
                                ({"scale_factor": 1.7}, (1, 1, 9, 11)),
                                ({"scale_factor": 0.6}, (1, 1, 9, 11)),
                                ({"scale_factor": (0.3, 2.3)}, (1, 1, 10, 7)),
                                ({"size": (11, 13)}, (1, 1, 7, 29)),
                                ({"scale_factor": 1.3, "recompute_scale_factor": True},
                                 (1, 1, 9, 11))]]
