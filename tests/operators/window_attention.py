from math import log

import torch
from torch import Tensor, nn
from torchvision.models import swin_transformer as swin

from tests.operators.table import Call, Group, Value, maps

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def attention(window: tuple[int, int], shift: tuple[int, int] = (0, 0), bias: float = 0.0,
              position: Tensor | None = None) -> Call:
    """Of one channel: queries and keys are 0, so a window's values count as ``position`` says."""
    tokens = window[0] * window[1]
    position = torch.zeros(1, 1, tokens, tokens) if position is None else position
    return Call(lambda self, x: swin.shifted_window_attention(
        x.permute(LAST), self.qkv, self.proj, self.position, list(window), 1, list(shift),
        qkv_bias=self.bias, training=False).permute(FIRST),
        qkv=torch.tensor([[0.0], [0.0], [1.0]]), proj=torch.ones(1, 1), position=position,
        bias=torch.tensor([0.0, 0.0, bias]))


first_alone = torch.full((1, 1, 2, 2), -1000.0)  # of a window's two tokens, all see the first
first_alone[..., 0] = 0.0
thrice = torch.zeros(1, 1, 2, 2)  # the second weighs three times as much
thrice[..., 1] = log(3)

VALUES = [
    Value("the mean of a window", attention((2, 2)), [maps([[1, 3, 5, 9], [2, 2, 5, 1]])],
          maps([[2, 2, 5, 5], [2, 2, 5, 5]]), 1e-5),
    Value("by position", attention((1, 2), position=first_alone), [maps([[1, 3, 5, 9]])],
          maps([[1, 1, 5, 5]]), 1e-5),
    Value("weighed by position", attention((1, 2), position=thrice), [maps([[4, 8, 0, 12]])],
          maps([[7, 7, 9, 9]]), 1e-5),
    Value("shifted, and apart where the map's ends meet", attention((1, 2), (0, 1)),
          [maps([[1, 2, 4, 9]])], maps([[1, 3, 3, 9]]), 1e-5),
    Value("shifted both ways", attention((2, 2), (1, 1)),
          [maps([[1, 2, 4, 6], [3, 0, 4, 1], [5, 8, 0, 3], [9, 2, 6, 7]])],
          maps([[1, 3, 3, 6], [4, 3, 3, 2], [4, 3, 3, 2], [9, 4, 4, 7]]), 1e-5),
    Value("no shift where one window is the map", attention((1, 2), (0, 1)), [maps([[1, 3]])],
          maps([[2, 2]]), 1e-5),
    Value("what pads the map is the bias", attention((1, 2), bias=5.0), [maps([[1, 3, 4]])],
          maps([[7, 7, 7]]), 1e-5),
]


def trained(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    return module


def module(kind: type[nn.Module], **settings) -> Call:
    return Call(lambda self, x: self.attention(x.permute(LAST)).permute(FIRST),
                attention=trained(kind(4, [3, 2], [1, 1], 2, **settings)))


SPELLINGS = [
    Group([(2, 4, 7, 5)], {
        "Swin": module(swin.ShiftedWindowAttention),
        "without biases": module(swin.ShiftedWindowAttention, qkv_bias=False, proj_bias=False),
        "Swin V2": module(swin.ShiftedWindowAttentionV2),
    }, others=["conv2d", "conv2d"]),
    Group([(2, 4, 6, 4)], {"Swin, no padding": module(swin.ShiftedWindowAttention)},
          others=["conv2d", "conv2d"]),
]
