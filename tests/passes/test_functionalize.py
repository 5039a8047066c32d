"""What is written into a tensor is seen by all that share its memory."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.errors import TraceError
from deltaconvert.passes.functionalize import OUT_OF_PLACE, functionalize
from deltaconvert.passes.trace import trace
from tests.passes.graphs import Model, TwoInputs, assert_same_outputs, frames_like, program_of


def iadd(self, x):
    y = x * 2
    alias = y
    y += x
    return alias + y


def every_operator(self, x):
    x = x * 1
    x -= 1
    x *= 3
    x /= 2
    x **= 2
    return x


def residual_behind_relu_in_place(self, x):
    y = self.conv(x)
    return y + self.relu(y)


def module_twice(self, x):
    return self.relu(self.relu(x) - 0.5)


def chunks(self, x):
    a, b = x.chunk(2, 1)
    a *= b
    b.add_(1)
    return x, a, b


def parent_behind_its_views(self, x):
    a, b = torch.chunk(x, 2, dim=1)
    x.mul_(2)
    return a - b


def slice_of_a_slice(self, x):
    x[:, 1:][:, :2].mul_(3)
    return x


def item(self, x):
    x[:, 0] = 0
    x[:, 1] += 1
    x[..., 3:, 1] = x[..., :2, 1]
    return x


def through_view(self, x):
    x.view(x.shape[0], -1).clamp_(0, 1)
    return x


def through_flatten(self, x):
    y = x.flatten(2)
    y += 1
    return x, y


def through_reshape(self, x):
    y = x.reshape(x.size(0), -1)
    y *= 2
    return x


def through_permute(self, x):
    y = x.permute(0, 2, 3, 1)
    y.mul_(torch.arange(4.0, dtype=x.dtype))
    return x


def a_copy_is_no_view(self, x):
    y = x.transpose(2, 3).contiguous()
    y.add_(1)
    z = x.clone()
    z.zero_()
    return x, y, z


def no_twin(self, x):
    x[:, :1].fill_(2)
    return x.zero_() + 1, x


def written_between_readers(self, x):
    before = x * 2
    x.relu_()
    return before, x * 2


def functions(self, x):
    F.relu(x, inplace=True)
    F.leaky_relu_(x, 0.1)
    torch.relu_(x)
    F.hardswish(x, True)
    F.silu(input=x, inplace=True)
    return x


def select_and_unbind(self, x):
    for channel in (x.unbind(1)[1], x.select(1, 0)):
        channel.mul_(2)
    return x


def deep_chain(self, x):
    a = x[:, :2]
    b = a[:, 1:]
    b += 1
    a *= 2
    x -= 1
    return a, b, x


def write_of_a_relative(self, x):
    x[:, :1] += x[:, 1:2]
    return x


def in_place_of_the_residual(self, x):
    out = self.conv(x)
    out += x
    return self.relu(out), x


def given_the_memory_of_another(self, x):
    y = self.conv(x)
    seen, half = y.view(y.shape[0], -1), x[:, 1:]
    y.data = x
    y.mul_(2)
    half.add_(1)
    seen += 3
    return x, y, seen, half


def given_a_part_of_itself(self, x):
    y = self.conv(x)
    z = y[:, :1]
    y.data = y.data[:, :, ::2].clamp(0, 1)
    y.data *= 2
    z += 1
    return y * 2, z


CASES = {f.__name__: f for f in (
    given_the_memory_of_another, given_a_part_of_itself,
    iadd, every_operator, residual_behind_relu_in_place, module_twice, chunks,
    parent_behind_its_views, slice_of_a_slice, item, through_view, through_flatten, through_reshape,
    through_permute, a_copy_is_no_view, no_twin, written_between_readers, functions,
    select_and_unbind, deep_chain, write_of_a_relative, in_place_of_the_residual)}


def model(function) -> Model:
    return Model(function, relu=nn.ReLU(inplace=True), conv=nn.Conv2d(4, 4, 3, padding=1))


@pytest.mark.parametrize("name", CASES)
def test_the_outputs_are_the_dense_models(name):
    assert_same_outputs(model(CASES[name]), frames_like(2, 4, 5, 6))


@pytest.mark.parametrize("name", CASES)
def test_behind_a_convolution_too(name):
    """There the map that is written into lies channels-last in memory."""
    function = CASES[name]
    assert_same_outputs(model(lambda self, x: function(self, self.conv(x))),
                        frames_like(1, 4, 5, 6))


@pytest.mark.parametrize("name", sorted(set(CASES) - {"a_copy_is_no_view"}))
def test_no_in_place_call_is_left(name):
    traced = trace(model(CASES[name]))
    root = traced.meta["root"]
    assert in_place_calls(traced, root)
    result = functionalize(traced)
    traced.graph.lint()
    assert result.changed
    assert not in_place_calls(traced, root)


def in_place_calls(traced, root) -> list:
    found = []
    for node in traced.graph.nodes:
        inplace = "inplace" in node.kwargs and node.kwargs["inplace"]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        module = root.get_submodule(node.target) if node.op == "call_module" else None
        written = node.op in ("call_function", "call_method") and (
            name.endswith("_") or node.target in OUT_OF_PLACE or node.target is operator.setitem)
        by_position = node.target is F.hardswish and True in node.args
        if inplace or written or by_position or getattr(module, "inplace", False):
            found.append(node)
    return found


def test_the_users_frame_is_not_written_into():
    delta = deltaconvert.convert(Model(lambda self, x: x.relu_()))
    frame = torch.full((1, 1, 3, 3), -1.0)
    delta(frame)
    delta(frame)
    assert (frame == -1).all()


def test_two_inputs_written_into_each_other():
    def forward(self, x, y):
        x += y
        y *= x
        return x, y
    assert_same_outputs(TwoInputs(forward), frames_like(1, 2, 4, 4),
                        frames_like(1, 2, 4, 4, seed=2))


def test_arithmetic_on_shapes_is_not_on_tensors():
    def forward(self, x):
        _, c, h, w = x.shape
        h //= 2
        w += 2
        h *= 2
        return F.interpolate(x[:, :c - 1], size=(h, w))
    assert_same_outputs(Model(forward), frames_like(2, 3, 6, 4))


def test_an_out_argument_is_a_write():
    def forward(self, x):
        y = x * 2
        torch.add(x, 1, out=y)
        return y, y * 2
    assert_same_outputs(Model(forward), frames_like(1, 2, 4, 4))


ALIASES = {
    "dropout": lambda self, y: F.dropout(y, 0.5, self.training),
    "dropout module": lambda self, y: self.dropout(y),
    "dropout of channels": lambda self, y: F.dropout2d(y, training=False),
    "active dropout is a copy": lambda self, y: F.dropout(y, 1.0, True),
    "identity": lambda self, y: self.identity(y),
    "flatten module": lambda self, y: self.flatten(y),
    "unflatten module": lambda self, y: self.unflatten(y),
    "a part behind a module": lambda self, y: self.identity(y)[:, :1],
    "float": lambda self, y: y.double(),
    "another float is a copy": lambda self, y: y.float(),
    "to": lambda self, y: y.to(y.dtype),
    "to another": lambda self, y: y.to(y),
    "to by name": lambda self, y: y.to(device="cpu", dtype=torch.float64),
    "type_as": lambda self, y: y.type_as(y),
    "type": lambda self, y: y.type(torch.float64),
    "positive": lambda self, y: +y,
    "requires_grad_": lambda self, y: y.requires_grad_(False),
    "T": lambda self, y: y[0, 0].T,
    "mT": lambda self, y: y.mT,
    "H": lambda self, y: y[0, 0].H,
    "real": lambda self, y: y.real,
    "unfold": lambda self, y: y.unfold(2, 2, 2),
    "ravel": lambda self, y: y.ravel(),
    "broadcast_to": lambda self, y: torch.broadcast_to(y, y.shape),
    "as_strided": lambda self, y: y.as_strided((2, 2), (1, 2)),
    "vsplit": lambda self, y: torch.vsplit(y, 1)[0],
    "atleast_3d": lambda self, y: torch.atleast_3d(y),
    "complex": lambda self, y: torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2)))),
    "by name": lambda self, y: torch.flatten(input=y),
    "moveaxis": lambda self, y: y.moveaxis(1, 2),
    "split_with_sizes": lambda self, y: y.split_with_sizes([1, 1], 1)[1],
    "conj": lambda self, y: y.conj(),
    "sum_to_size": lambda self, y: y.sum_to_size(1, 2, 4, 6),
    "reshape that copies": lambda self, y: y.mT.reshape(1, -1),
    "contiguous that copies": lambda self, y: y.mT.contiguous(),
    "to that copies, and a view": lambda self, y: y.to(y.dtype, copy=True)[:, :1].view(1, -1),
    "a list is a copy": lambda self, y: y[:, [0, 1]],
}


def aliased(name) -> Model:
    def forward(self, x):
        y = x * 3
        alias = ALIASES[name](self, y)
        alias.add_(1)
        other = y * 2
        y.sub_(5)
        return other, alias * 2, y
    return Model(forward, dropout=nn.Dropout(), identity=nn.Identity(), flatten=nn.Flatten(),
                 unflatten=nn.Unflatten(1, (1, 2)))


@pytest.mark.parametrize("name", ALIASES)
def test_what_returns_its_argument_or_a_part_of_it_shares_its_memory(name):
    assert_same_outputs(aliased(name), frames_like(1, 2, 4, 6))


@pytest.mark.parametrize("name", ["dropout", "unflatten module", "identity", "mT", "unfold"])
def test_what_shares_memory_does_so_in_a_file(name, tmp_path):
    model, frames = aliased(name), frames_like(1, 2, 4, 6)
    delta = deltaconvert.convert(model, frames[0])
    deltaconvert.save(delta, tmp_path / "x.delta")
    loaded = deltaconvert.load(tmp_path / "x.delta")
    for frame in frames:
        torch.testing.assert_close(loaded(frame), model(frame))


def test_a_tensor_that_is_turned_in_place_leaves_its_views_as_they_were():
    def forward(self, x):
        y = x * 3
        part = y[:, :1]
        y.unsqueeze_(0).transpose_(3, 4)
        y += 1
        y[..., 0] = 2
        return part * 1, y * 1
    assert_same_outputs(Model(forward), frames_like(1, 2, 4, 6))


def test_writes_into_what_an_attribute_gives_are_seen():
    def forward(self, x):
        y = x * 3
        turned = y.mT
        turned += 1
        turned[..., 0] = 2
        return y * 1, turned * 1
    assert_same_outputs(Model(forward), frames_like(1, 2, 4, 6))


def test_integers_of_the_same_kind_are_the_same():
    def forward(self, x):
        mask = x > 0
        same = mask.bool()
        same[:, 0] = False
        return x * mask, same
    assert_same_outputs(Model(forward), frames_like(1, 2, 4, 6))


def test_writes_into_several_tensors_at_once_are_refused():
    def forward(self, x):
        values, places = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0], dtype=torch.long)
        torch.max(x, 1, out=(values, places))
        return values
    with pytest.raises(TraceError, match="max writes into several tensors"):
        deltaconvert.convert(Model(forward))


def test_a_write_behind_an_identity_costs_no_copy():
    def forward(self, x):
        x = self.conv(x)
        y = self.dropout(x)
        y += 1
        return self.conv(x)
    model = Model(forward, conv=nn.Conv2d(2, 2, 3), dropout=nn.Dropout())
    delta = assert_same_outputs(model, frames_like(1, 2, 8, 8))
    assert {n.about.rule for n in program_of(delta).nodes} == {"sparsify", "local"}


def lies_turned(self, x):
    return torch.relu((x * 3).permute(0, 2, 3, 1))  # keeps the order of its input in memory


def lies_with_channels_last(self, x):
    return (x * 3).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("source", [lies_turned, lies_with_channels_last])
@pytest.mark.parametrize("seen", ["contiguous", "ravel"])
def test_a_reshape_copies_or_not_as_the_dense_model_lies_in_memory(source, seen):
    def forward(self, x):
        y = source(self, x)
        getattr(y, seen)().add_(1)
        return y * 1
    frames = frames_like(2, 3, 4, 6)
    assert_same_outputs(Model(forward), frames)
    assert_same_outputs(
        Model(forward), [f.contiguous(memory_format=torch.channels_last) for f in frames])


def test_frames_that_lie_otherwise_in_memory_change_what_a_view_is():
    def forward(self, x):
        y = torch.relu(x)
        y.contiguous().add_(1)
        return y * 1
    dense, (first, *_) = Model(forward).eval(), frames_like(2, 3, 4, 6)
    turned = first.contiguous(memory_format=torch.channels_last)
    delta = deltaconvert.convert(dense, first)
    for frame in (first, first + 1, turned, turned + 1, first):
        torch.testing.assert_close(delta(frame), dense(frame))


def test_a_product_that_is_written_into_is_no_view_and_goes_into_a_file(tmp_path):
    def forward(self, x):
        y = torch.einsum("nchw,ndhw->ncd", x, x * 2)
        y *= 3
        return y, x * 1
    model, frames = Model(forward).eval(), frames_like(1, 2, 4, 6)
    deltaconvert.save(deltaconvert.convert(model, frames[0]), tmp_path / "x.delta")
    loaded = deltaconvert.load(tmp_path / "x.delta")
    for frame in frames:
        torch.testing.assert_close(loaded(frame), model(frame))
