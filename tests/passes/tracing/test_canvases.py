"""What a forward writes maps into is read as it is then, whatever tensor or view it was made as."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.errors import TraceError
from tests.passes.graphs import Model, assert_same_outputs, frames_like


def two_writes(self, x):
    z = torch.zeros(1, 7, 8, 9, dtype=x.dtype)
    z[:, :4] = self.conv(x)
    z[:, 4:] = x
    return z * 2


def through_a_slice(self, x):
    z = torch.ones(1, 7, 8, 9, dtype=torch.float64)
    z[:, :4].copy_(self.conv(x))
    z[:, 4:] += x
    return z


def through_one_of_several(self, x):
    z = torch.ones(1, 4, 8, 9, dtype=torch.float64)
    a, _, c, _ = z.unbind(1)
    a.mul_(self.conv(x)[:, 0])
    c.copy_(a)
    return self.next(z), 1 - z


def through_a_view_of_a_view(self, x):
    z = torch.zeros(2, 4, 8, 9, dtype=torch.float64)
    z[0][1:3][:, 2:] = self.conv(x)[0, :2, 2:]
    return z.view(8, 8, 9), z[1], z.mT.contiguous()


def through_another_shape(self, x):
    z = torch.zeros(288, dtype=torch.float64)
    z.view(1, 4, 8, 9).copy_(self.conv(x))
    return z[::2]


def into_a_part(self, x):
    z = torch.zeros(1, 8, 8, 9, dtype=torch.float64)
    torch.add(self.conv(x), 1, out=z[:, 2:6])
    return z


def of_several(self, x):
    z = [torch.zeros(1, 4, 8, 9, dtype=torch.float64) for _ in range(2)]
    z[0][:, 1:].add_(self.conv(x)[:, 1:])
    return torch.stack(z)


def of_memory_that_nobody_has_written(self, x):
    lanes, channels, *size = x.shape
    z = torch.empty(lanes, channels + 4, *size, dtype=torch.float64)
    z[:, :4] = self.conv(x)
    z[:, 4:] = x
    return z * 2


def of_numpys_memory(self, x):
    memory = np.zeros((1, 4, 8, 9))
    torch.from_numpy(memory)[:, 1:] = self.conv(x)[:, 1:]
    return torch.from_numpy(memory) * 2


@pytest.mark.parametrize("forward", [
    two_writes, through_a_slice, through_one_of_several, through_a_view_of_a_view,
    through_another_shape, into_a_part, of_several, of_memory_that_nobody_has_written,
    of_numpys_memory])
def test_what_was_written_is_read(forward):
    torch.manual_seed(0)
    model = Model(forward, conv=nn.Conv2d(3, 4, 3, padding=1), next=nn.Conv2d(4, 2, 1))
    assert_same_outputs(model, frames_like(1, 3, 8, 9))


def whole_numbers(self, x):
    z = torch.zeros(1, 4, 8, 9)
    bits = z.view(torch.int32)
    z[:, 1:] = self.conv(x)[:, 1:]
    return z, bits * 2


def real_parts(self, x):
    z = torch.zeros(1, 4, 8, 9, dtype=torch.complex64)
    torch.view_as_real(z)[..., 0] = self.conv(x)
    return torch.view_as_real(z)


def conjugates(self, x):
    z = torch.zeros(1, 4, 8, 9, dtype=torch.complex64)
    other = z.conj()
    z[:, 1:] = torch.fft.fft2(self.conv(x))[:, 1:]
    return torch.view_as_real(other.resolve_conj())


@pytest.mark.parametrize("forward", [whole_numbers, real_parts, conjugates])
def test_a_view_as_other_numbers_is_refused(forward):
    model = Model(forward, conv=nn.Conv2d(3, 4, 3, padding=1))
    with pytest.raises(TraceError, match=r"written into as .* at .*test_canvases"):
        deltaconvert.convert(model, torch.rand(1, 3, 8, 9))
