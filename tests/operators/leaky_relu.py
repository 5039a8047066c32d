import torch.nn.functional as F
from torch import nn

from tests.operators.table import Call, Group, Value, maps

VALUES = [
    Value("slope of a quarter", nn.LeakyReLU(0.25), [maps([[-4, 4, 0]])], maps([[-1, 4, 0]])),
    Value("negative slope", nn.LeakyReLU(-1), [maps([[-4, 4]])], maps([[4, 4]])),
]

SPELLINGS = [
    Group([(2, 3, 4, 5)], {
        "nn.LeakyReLU": nn.LeakyReLU(0.1), "in place": nn.LeakyReLU(0.1, inplace=True),
        "F.leaky_relu": Call(lambda self, x: F.leaky_relu(x, 0.1)),
        "by name": Call(lambda self, x: F.leaky_relu(x, negative_slope=0.1)),
        "F.leaky_relu in place": Call(lambda self, x: F.leaky_relu(x, 0.1, inplace=True)),
        "F.leaky_relu_": Call(lambda self, x: F.leaky_relu_(x, 0.1)),
    }),
    Group([(2, 3, 4, 5)], {
        "nn.LeakyReLU's own slope": nn.LeakyReLU(),
        "F.leaky_relu's own slope": Call(lambda self, x: F.leaky_relu(x)),
    }),
]
