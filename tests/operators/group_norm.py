import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Cases, Group, Value, maps

norm, instance = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
OPERATORS = {
    "group_norm": Cases(
        [Value("two groups", nn.GroupNorm(2, 2, eps=0), [maps([[1, 3]], [[5, 25]])],
               maps([[-1, 1]], [[-1, 1]]), 1e-6),
         Value("one group", nn.GroupNorm(1, 2, eps=0), [maps([[1, 3]], [[3, 1]])],
               maps([[-1, 1]], [[1, -1]]), 1e-6)],
        [Group([(2, 4, 3, 5)], {
            "module": norm,
            "F": Call(lambda self, x: F.group_norm(x, 2, self.n.weight, self.n.bias), n=norm),
            "torch": Call(lambda self, x: torch.group_norm(x, 2, self.n.weight, self.n.bias, 1e-5,
                                                           False), n=norm)})]),
    "instance_norm": Cases(
        [Value("a channel at a time", nn.InstanceNorm2d(2, eps=0), [maps([[1, 3]], [[5, 25]])],
               maps([[-1, 1]], [[-1, 1]]), 1e-6)],
        [Group([(2, 4, 3, 5)], {"module": instance}),
         Group([(2, 4, 3, 5)], {
             "F": Call(lambda self, x: F.instance_norm(
                 x, weight=self.n.weight, bias=self.n.bias), n=instance),
             "in order": Call(lambda self, x: F.instance_norm(
                 x, None, None, self.n.weight, self.n.bias), n=instance)})]),
}
