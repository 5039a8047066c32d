import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Cases, Group, Tried, Value, maps

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def trained(module: nn.Module) -> nn.Module:
    for number, parameter in enumerate(module.parameters()):
        parameter.data = torch.linspace(1, 2, parameter.numel()).view_as(parameter) - number
    return module


def over_channels(norm: nn.Module) -> Call:
    """As ConvNeXt writes it."""
    return Call(lambda self, x: self.norm(x.permute(LAST)).permute(FIRST), norm=norm)


norm, rms = trained(nn.LayerNorm(3, eps=0.1)), trained(nn.RMSNorm(3, eps=0.1))
rows, rms_rows = trained(nn.LayerNorm([4, 5])), trained(nn.RMSNorm([4, 5]))
whole = {
    "module": rows,
    "F": Call(lambda self, x: F.layer_norm(x, (4, 5), self.n.weight, self.n.bias), n=rows),
    "torch": Call(lambda self, x: torch.layer_norm(x, [4, 5], self.n.weight, self.n.bias, 1e-5),
                  n=rows)}
OPERATORS = {
    "layer_norm2d": Cases(
        [Value("over channels", over_channels(nn.LayerNorm(2, eps=0)),
               [maps([[1, 5]], [[3, 1]])], maps([[-1, 1]], [[1, -1]]), 1e-6),
         Value("with weights", over_channels(trained(nn.LayerNorm(2, eps=0))),
               [maps([[1, 5]], [[3, 1]])], maps([[-1, 1]], [[3, -1]]), 1e-5)],
        [Group([(2, 3, 4, 5)], {
            "modules": over_channels(norm),
            "F": Call(lambda self, x: F.layer_norm(
                x.movedim(1, 3), (3,), self.n.weight, self.n.bias, 0.1).movedim(3, 1), n=norm)})],
        [Tried(over_channels(norm), [(1, 3, 3, 4)])]),
    "rms_norm2d": Cases(
        [Value("over channels", over_channels(nn.RMSNorm(2, eps=0)),
               [maps([[1, 3]], [[-1, 0]])], maps([[1, 2 ** 0.5]], [[-1, 0]]), 1e-6)],
        [Group([(2, 3, 4, 5)], {
            "modules": over_channels(rms),
            "F": Call(lambda self, x: F.rms_norm(x.permute(LAST), (3,), self.n.weight,
                                                 0.1).permute(FIRST), n=rms)})],
        [Tried(over_channels(rms), [(1, 3, 3, 4)])]),
    "layer_norm": Cases(
        [Value("over rows", nn.LayerNorm([1, 2], eps=0), [maps([[1, 3]])], maps([[-1, 1]]), 1e-6)],
        [Group([(2, 3, 4, 5)], whole)]),
    "rms_norm": Cases(
        [Value("over tokens", Call(lambda self, x: self.n(x.flatten(2)), n=nn.RMSNorm(2, eps=0)),
               [maps([[3, -3]])], torch.tensor([[[1.0, -1]]]), 1e-6)],
        [Group([(2, 3, 4, 5)], {
            "module": rms_rows,
            "F": Call(lambda self, x: F.rms_norm(x, (4, 5), self.n.weight), n=rms_rows)})]),
}
