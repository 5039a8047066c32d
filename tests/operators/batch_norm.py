import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Value, maps


def norm(mean, var, weight=None, bias=None, kind=nn.BatchNorm2d) -> nn.BatchNorm1d | nn.BatchNorm2d:
    module = kind(len(mean), eps=1e-30, affine=weight is not None)
    module.running_mean.copy_(torch.tensor(mean))
    module.running_var.copy_(torch.tensor(var))
    if weight is not None:
        module.weight.data, module.bias.data = torch.tensor(weight), torch.tensor(bias)
    return module


two = norm([1.0, 2.0], [4.0, 1.0], [2.0, -1.0], [5.0, 0.0])
vector = norm([1.0, 2.0], [4.0, 1.0], [2.0, -1.0], [5.0, 0.0], nn.BatchNorm1d)
VALUES = [
    Value("two channels", two, [maps([[1, 3, -1]], [[2, 0, 3]])], maps([[5, 7, 3]], [[0, 2, -1]])),
    Value("no weights", norm([1.0], [4.0]), [maps([[5]])], maps([[2]])),
    Value("a vector, behind a face's embedding", vector, [torch.tensor([[3.0, 5.0]])],
          torch.tensor([[7.0, -3.0]])),
]

SPELLINGS = [Group([(2, 2, 3, 5)], {
    "nn.BatchNorm2d": two,
    "F.batch_norm": Call(lambda self, x: F.batch_norm(
        x, self.n.running_mean, self.n.running_var, self.n.weight, self.n.bias, eps=1e-30), n=two),
    "torch.batch_norm": Call(lambda self, x: torch.batch_norm(
        x, self.n.weight, self.n.bias, self.n.running_mean, self.n.running_var, False, 0.1, 1e-30,
        False), n=two),
}), Group([(2, 2)], {"nn.BatchNorm1d": vector}), Group([(3, 2, 5)], {"nn.BatchNorm1d": vector})]
