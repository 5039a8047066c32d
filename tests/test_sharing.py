"""What follows from weights alone: once for all programs, right when weights change, and freed."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deltaconvert
from deltaconvert import sharing
from deltaconvert.passes.fold_batch_norm import folded_weight
from deltaconvert.program import _weigh
from deltaconvert.sharing import equal_one, shared

SIZES = ((12, 12), (12, 16), (16, 12))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 5, padding=2, groups=32),
        nn.Conv2d(32, 32, 1, groups=32), nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False),
        nn.Conv2d(16, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 40)).eval()


def frame(height, width):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))


def programs(delta):
    for size in SIZES:
        delta(frame(*size))
    return list(delta._programs.values())


def filters(program):
    """Return arrays and tensors in a program's weights and in the arguments of its nodes."""
    found = {}

    def look(value):
        if isinstance(value, (Tensor, np.ndarray)):
            found[id(value)] = value
        elif isinstance(value, (list, tuple, dict)):
            for part in value.values() if isinstance(value, dict) else value:
                look(part)
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            look(vars(value))

    look([program.weights, [node.about.args for node in program.nodes]])
    return found


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_programs_for_several_sizes_share_all_that_is_made_of_weights(backend, dtype):
    first, *others = programs(deltaconvert.convert(net(), backend=backend, dtype=dtype))
    assert len(filters(first)) > 12
    for other in others:
        tables = {}
        _weigh([node.about.footprints for node in other.nodes], tables)
        assert set(other.memory) - set(tables) <= set(first.memory)
        assert sum(tables.values()) < 0.1 * other.nbytes


@pytest.mark.parametrize("write", [
    lambda p: p.mul_(1.5), lambda p: p.data.mul_(1.5), lambda p: p.detach().numpy().__imul__(1.5)],
    ids=["in place", "data", "numpy"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_new_size_is_of_the_weights_as_they_are_now(backend, write):
    delta = deltaconvert.convert(net(), backend=backend)
    delta(frame(*SIZES[0]))
    with torch.no_grad():
        for p in delta.parameters():
            write(p)
    dense = net()
    dense.load_state_dict(delta.state_dict())
    torch.testing.assert_close(delta(frame(*SIZES[1])), dense(frame(*SIZES[1])),
                               rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [
    lambda delta, other: delta.load_state_dict(other.state_dict()),
    lambda delta, other: [p.copy_(q) for p, q in zip(
        (*delta.parameters(), *delta.buffers()), (*other.parameters(), *other.buffers()),
        strict=True)]], ids=["loaded", "in place"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_changed_weights_count_at_every_size(backend, change):
    delta, other = deltaconvert.convert(net(), backend=backend), net()
    programs(delta)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(-1.25)
        change(delta, other)
    delta.reset()
    for size in SIZES:
        torch.testing.assert_close(delta(frame(*size)), other(frame(*size)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_copy_with_equal_weights_shares_until_they_differ(backend):
    """And what is written into the first model's weights is nothing to the other."""
    one = deltaconvert.convert(net(), backend=backend)
    other = copy.deepcopy(one)
    first, second = programs(one)[0], programs(other)[0]
    equal = sum(n for name, n in second.memory.items() if name in first.memory)
    derived = 4 * 32 * (3 * 9 + 1)  # a filter and its norm; in layouts, all of them
    assert equal == derived if backend == "reference" else equal > 0.5 * second.nbytes
    dense = net()
    with torch.no_grad():
        for p in one.parameters():
            p.zero_()
    changed = frame(*SIZES[-1]).flip(3)
    torch.testing.assert_close(other(changed), dense(changed), rtol=1e-4, atol=1e-5)


def test_what_nobody_needs_is_gone():
    gc.collect()
    before = len(sharing._made), len(sharing._known)
    delta = deltaconvert.convert(net(), backend="cpu")
    made = [weakref.ref(n) for program in programs(delta) for n in filters(program).values()]
    stream = delta.new_stream()
    stream(frame(*SIZES[0]))
    assert len(sharing._made) > before[0]
    del delta, stream
    gc.collect()
    assert not [ref() for ref in made if ref() is not None]
    assert (len(sharing._made), len(sharing._known)) == before


def test_programs_are_weighed_together(monkeypatch):
    delta = deltaconvert.convert(net(), backend="cpu")
    for extra in range(9):
        delta(frame(12, 12 + extra))
    one = max(program.nbytes for program in delta._programs.values())
    monkeypatch.setattr("deltaconvert.module.PROGRAM_BYTES", 2 * one)
    for extra in range(9, 12):
        delta(frame(12, 12 + extra))
    assert len(delta._programs) == 12


@pytest.mark.parametrize("other", [
    torch.arange(6.).view(3, 2), torch.arange(6), torch.arange(6.).double(),
    torch.arange(6.).bfloat16(), torch.arange(6.).view(torch.int32), -torch.arange(6.)],
    ids=["shape", "integers", "double", "bfloat16", "bits", "negative"])
def test_tensors_are_told_apart_by_type_shape_and_numbers(other):
    one = torch.arange(6.)
    kept = equal_one(one)
    assert kept is one
    assert equal_one(torch.arange(6.)) is one
    assert equal_one(other) is other


@pytest.mark.parametrize("tensor", [
    torch.empty(0, 3), torch.tensor(2.), torch.ones(2, 3).t(), torch.ones(1).expand(4),
    torch.ones(3, dtype=torch.bool), torch.arange(8.)[::2], nn.Parameter(torch.ones(2))])
def test_tensors_of_any_kind_are_read(tensor):
    assert shared((test_tensors_of_any_kind_are_read, tensor), lambda: (kept := {1, 2}) and kept)
    one = {3}
    assert shared(("kept", tensor), lambda: one) is one
    assert shared(("kept", tensor.clone()), lambda: {4}) is one


@pytest.mark.parametrize("tensor", [
    torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64),
    torch.eye(2).to_sparse()])
def test_what_cannot_be_read_is_made_anew(tensor):
    one = {3}
    assert shared(("unread", tensor), lambda: one) is one
    two = {4}
    assert shared(("unread", tensor), lambda: two) is two


@pytest.mark.parametrize("most", [1, 100, sharing.MOST_TOGETHER])
def test_numbers_that_are_read_together_are_read_once_and_are_the_same(most, monkeypatch):
    monkeypatch.setattr(sharing, "MOST_TOGETHER", most)
    tensors = [torch.randn(3, 5), torch.randn(4, 2).t(), nn.Parameter(torch.ones(7)),
               torch.arange(6), torch.arange(9)[::2], torch.zeros(0, 2), torch.eye(2).to_sparse(),
               torch.ones(2, dtype=torch.complex64).imag.neg(), torch.ones(1).expand(4)]
    made = [shared(("together", t), lambda: {1}) for t in tensors]
    read, digest = [], sharing._digest
    monkeypatch.setattr(sharing, "_digest", lambda held: read.append(held) or digest(held))
    with sharing.read_together(tensors):
        assert len(read) == len(tensors) - 1  # but for what is sparse
        found = [shared(("together", t), lambda: {1}) for t in tensors]
        assert len(read) == len(tensors) - 1
    assert [a is b for a, b in zip(made, found, strict=True)] == [
        not t.is_sparse for t in tensors]
    tensors[0].data.mul_(2)  # which leaves no trace
    assert shared(("together", tensors[0]), lambda: {1}) is not made[0]


def test_derived_weights_depend_on_their_settings():
    weight, var = torch.ones(2, 1, 1, 1), torch.ones(2)
    one = folded_weight(weight, None, var, 0.5, None)
    assert folded_weight(weight.clone(), None, var, 0.5, None) is one
    assert folded_weight(weight, None, var, 1.0, None) is not one
    assert folded_weight.__name__ == "folded_weight"
