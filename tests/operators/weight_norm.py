import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.operators.table import Cases, Group, Value, maps


def conv(weight: list, kind: type[nn.Module] = nn.Conv2d) -> nn.Module:
    """A 1x1 convolution without bias."""
    made = kind(len(weight[0]), len(weight), 1, bias=False)
    made.weight.data = torch.tensor(weight)[:, :, None, None]
    return made


def old(function, module: nn.Module, **settings) -> nn.Module:
    """Apply what PyTorch has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(module, **settings)


def longer(module: nn.Module, factor: float) -> nn.Module:
    """Scale the magnitudes of a normalised weight, as training does."""
    magnitude = (module.parametrizations.weight.original0
                 if hasattr(module, "parametrizations") else module.weight_g)
    magnitude.data.mul_(factor)
    return module


def settled(module: nn.Module) -> nn.Module:
    """Let the power iteration find the largest singular value, as training does."""
    for _ in range(100):
        module.train()(torch.zeros(1, module.in_channels, 1, 1))
    return module.eval()


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


def doubled(module: nn.Module) -> nn.Module:
    parametrize.register_parametrization(module, "weight", Doubled())
    return module


torch.manual_seed(0)
plain = nn.Conv2d(2, 3, 3).weight.data
three = [nn.Conv2d(2, 3, 3) for _ in range(4)]
for module in three:
    module.weight.data, module.bias.data = plain.clone(), torch.tensor([1.0, 2, 3])
ones, apart = [[3.0, 4.0]], [[3.0, 0.0], [0.0, 2.0]]
OPERATORS = {
    "weight_norm": Cases(
        [Value("a length of 10", longer(parametrizations.weight_norm(conv(ones)), 2.0),
               [maps([[1]], [[1]])], maps([[14]]), 1e-5),
         Value("by hooks", longer(old(nn.utils.weight_norm, conv(ones)), 2.0),
               [maps([[1]], [[1]])], maps([[14]]), 1e-5),
         Value("another parametrization", doubled(conv(ones)), [maps([[1]], [[1]])],
               maps([[14]]))],
        [Group([(2, 2, 5, 6)], {
            "parametrization": longer(parametrizations.weight_norm(three[0]), 2.0),
            "hooks": longer(old(nn.utils.weight_norm, three[1]), 2.0),
            "all of it": old(nn.utils.weight_norm, three[2], dim=None)}, becomes="conv2d")]),
    "spectral_norm": Cases(
        [Value("a diagonal", settled(parametrizations.spectral_norm(conv(apart))),
               [maps([[3]], [[3]])], maps([[3]], [[2]]), 1e-5),
         Value("by hooks", settled(old(nn.utils.spectral_norm, conv(apart))),
               [maps([[3]], [[3]])], maps([[3]], [[2]]), 1e-5)],
        [Group([(2, 2, 5, 6)], {
            "parametrization": parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)),
            "hooks": old(nn.utils.spectral_norm, nn.Conv2d(2, 3, 3))}, becomes="conv2d"),
         Group([(2, 2, 5, 6)], {
             "transposed": parametrizations.spectral_norm(nn.ConvTranspose2d(2, 3, 3)),
             "hooks": old(nn.utils.spectral_norm, nn.ConvTranspose2d(2, 3, 3))},
             becomes="conv_transpose2d")]),
}
