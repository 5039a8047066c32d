"""From Python code to a graph."""

from __future__ import annotations

import builtins
import copy
import dataclasses
import linecache
import types
from collections import OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.errors import TraceError
from deltaconvert.passes.trace import trace
from deltaconvert.passes.tracing.tracer import Tracer
from tests.passes.graphs import (
    Model,
    TwoInputs,
    assert_same_outputs,
    frames_like,
    program_of,
)

Pair = namedtuple("Pair", "first second")
OUTPUTS = {
    "tensor": lambda self, x: x + 1,
    "list": lambda self, x: [x + 1, x * 2],
    "tuple": lambda self, x: (x + 1,),
    "dict": lambda self, x: {"a": x + 1, "b": [x * 2, (x - 1,)]},
    "ordered": lambda self, x: OrderedDict(out=x + 1, aux=x * 2),
    "named tuple": lambda self, x: Pair(x + 1, {"deep": x}),
    "none inside": lambda self, x: (x + 1, None, 3),
    "a split": lambda self, x: x.split(1, 1),
    "the input": lambda self, x: x,
    "the input twice": lambda self, x: (x, x + 1, x),
    "a constant": lambda self, x: (x * 2, torch.ones(2)),
    "a size": lambda self, x: (x * 2, x.shape[2]),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_have_the_models_structure(kind):
    delta = assert_same_outputs(Model(OUTPUTS[kind]), frames_like(2, 3, 5, 6))
    assert type(delta(frames_like(2, 3, 5, 6)[0])) is type(OUTPUTS[kind](None,
                                                                         torch.ones(2, 3, 5, 6)))


def branches_on_numbers(self, x):
    x = F.relu(x)
    if x.sum() > 0:
        return x
    return -x


def catches_what_it_asks(self, x):
    try:
        if x.mean() > 0:
            x = -x
    except Exception:
        pass
    return x


def iterates_over_a_tensor(self, x):
    return sum(lane for lane in x)


def calls_numpy(self, x):
    return x + x.numpy().sum()


@pytest.mark.parametrize("function, line", [
    (branches_on_numbers, "if x.sum() > 0:"),
    (catches_what_it_asks, "if x.mean() > 0:"),
    (iterates_over_a_tensor, "return sum(lane for lane in x)"),
])
def test_what_cannot_be_traced_names_the_users_line(function, line):
    with pytest.raises(TraceError) as caught:
        trace(Model(function))
    number = next(n for n in range(1, 200) if linecache.getline(__file__, n).strip() == line)
    assert f"{__file__}:{number}: {line}" in str(caught.value)


def test_the_message_offers_the_submodules_that_can_be_converted():
    model = Model(branches_on_numbers, backbone=nn.Conv2d(1, 1, 1), neck=nn.Conv2d(1, 1, 1))
    with pytest.raises(TraceError, match=r"modules='auto'.*model\.backbone \(of backbone"):
        trace(model)
    deltaconvert.convert(model.backbone)


def test_parameters_with_a_default_keep_it():
    class Masked(nn.Module):
        def forward(self, x, mask=None, scale=2.0, *, shift=1):
            x = x * scale + shift
            return x if mask is None else x * mask
    assert_same_outputs(Masked(), frames_like(1, 2, 5, 5))


def test_a_copy_in_eval_mode_is_traced():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5)).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    traced = trace(model)
    traced(torch.randn(2, 2, 3, 3))
    assert all(m.training for m in model.modules())
    assert not any(m.training for m in traced.meta["root"].modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert traced.meta["root"][0].weight is not model[0].weight


def test_nodes_know_their_line_and_their_module():
    def forward(self, x):
        return F.relu(self.block(x))
    traced = trace(Model(forward, block=nn.Sequential(nn.Conv2d(1, 1, 1))))
    relu, conv = (next(n for n in traced.graph.nodes if n.name == name)
                  for name in ("relu", "block_0"))
    assert relu.meta["source"].startswith(__file__)
    assert relu.meta["source"].endswith("return F.relu(self.block(x))")
    assert conv.meta["path"] == "block.0"


def test_nodes_know_a_line_without_its_text_and_outside_of_a_forward():
    names = {}
    exec("def forward(self, x):\n    return x.relu()\n", names)
    relu = next(n for n in trace(Model(names["forward"])).graph.nodes if n.name == "relu")
    assert relu.meta["source"] == "<string>:2"

    def compute(self, x):
        return x.relu() + 1
    traced = trace(Model(compute))
    assert {n.name: n.meta["source"].rpartition(": ")[2] for n in traced.graph.nodes} == {
        "x": "", "relu": "return x.relu() + 1", "add": "return x.relu() + 1", "output": ""}


def test_a_module_called_twice_is_two_nodes():
    model = Model(lambda self, x: self.conv(self.conv(x)), conv=nn.Conv2d(2, 2, 3, padding=1))
    delta = assert_same_outputs(model, frames_like(1, 2, 6, 6))
    assert [n.about.path for n in delta.stream.program.nodes][1:] == ["conv", "conv"]


def test_several_inputs_and_one_that_nobody_reads():
    model = TwoInputs(lambda self, x, y: x * 2 + y.mean((2, 3), keepdim=True))
    assert_same_outputs(model, frames_like(2, 3, 5, 5), frames_like(2, 3, 4, 4, seed=1))
    assert_same_outputs(TwoInputs(lambda self, x, y: y * 2), frames_like(2, 3, 5, 5),
                        frames_like(2, 3, 4, 4, seed=1))


@pytest.mark.parametrize("call", [
    lambda delta, x, y: delta(x, y), lambda delta, x, y: delta(x, y=y),
    lambda delta, x, y: delta(y=y, x=x)])
def test_inputs_may_be_given_by_name(call):
    delta = deltaconvert.convert(TwoInputs(lambda self, x, y: x - y))
    x, y = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3)
    assert torch.equal(call(delta, x, y), x - y)


def test_an_input_named_like_a_builtin_may_be_given_by_name():
    class Named(nn.Module):
        def forward(self, input):
            return input * 2
    x = torch.randn(1, 1, 3, 3)
    assert torch.equal(deltaconvert.convert(Named())(input=x), x * 2)


@pytest.mark.parametrize("layer", [
    nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 2),
    nn.PReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)], ids=lambda m: type(m).__name__)
def test_a_single_layer_is_a_model(layer):
    layer.eval()
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1)
    delta = deltaconvert.convert(layer, backend="reference")
    assert list(delta.state_dict()) == list(layer.state_dict())
    frame = torch.randn(1, 3, 6, 8)
    torch.testing.assert_close(delta(frame), layer(frame))
    assert [n.about.rule for n in delta.stream.program.nodes] == ["sparsify", "local"]


def test_any_number_of_inputs_is_refused_with_a_reason():
    class Many(nn.Module):
        def forward(self, *images):
            return images[0]
    with pytest.raises(TraceError, match=r"^Many cannot be traced: forward\(self, \*images\)"):
        trace(Many())


def test_wrapped_functions_leave_nothing_behind():
    """`torch.fx.wrap` is global; what the graph calls must not be added to its table."""
    from torch.fx._symbolic_trace import _wrapped_fns_to_patch
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    before = dict(_wrapped_fns_to_patch)
    traced = trace(swin.ShiftedWindowAttention(4, [2, 2], [0, 0], 1))
    assert swin.shifted_window_attention in [n.target for n in traced.graph.nodes]
    traced.recompile()
    assert dict(_wrapped_fns_to_patch).keys() == before.keys()


def test_hooks_of_the_model_itself_run():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)
            self.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1, *inputs[1:]))
            self.register_forward_hook(lambda module, inputs, output: output * 5)

        def forward(self, x, scale=2.0, *, mask):
            return self.conv(x) * scale + mask[:, :1, 1:-1, 1:-1]
    model, frame = Scaled().eval(), torch.randn(1, 3, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(deltaconvert.convert(model)(frame, frame),
                                   model(frame, mask=frame))


@dataclasses.dataclass
class Parts:
    first: torch.Tensor
    second: torch.Tensor


def test_a_dataclass_is_returned_if_pytorch_knows_it():
    model = Model(lambda self, x: Parts(x + 1, x * 2))
    with pytest.raises(TraceError, match=r"returns a Parts.*torch\.export\.register_dataclass"):
        deltaconvert.convert(model)
    torch.export.register_dataclass(Parts)
    out = deltaconvert.convert(model)(torch.ones(1, 1, 2, 2))
    assert isinstance(out, Parts)
    assert torch.equal(out.second, torch.full((1, 1, 2, 2), 2.0))


def test_a_forward_that_switches_autocast_on_is_refused():
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.conv(x)

    def switched_off(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.conv(x)
    conv = nn.Conv2d(3, 2, 3)
    with pytest.raises(TraceError, match=r"switches autocast on.*dtype='bfloat16'"):
        deltaconvert.convert(Model(forward, conv=conv))
    assert_same_outputs(Model(switched_off, conv=conv), frames_like(1, 3, 5, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # around it: no business of the model's
        deltaconvert.convert(conv)


def test_a_forward_that_trains_a_layer_is_refused():
    def forward(self, x):
        self.norm.train()
        found = self.norm(self.conv(x))
        self.norm.eval()
        return found
    model = Model(forward, conv=nn.Conv2d(3, 2, 3), norm=nn.BatchNorm2d(2))
    with pytest.raises(TraceError, match=r"calls norm in train mode at .*test_trace\.py:\d+"):
        deltaconvert.convert(model)


def given_by_set(self, x):
    y, z = torch.relu(x), self.conv(x)
    z.set_(y)
    z += 1
    return y


def given_a_weight(self, x):
    z = self.conv(x)
    z.data = self.conv.weight
    z += 1
    return self.conv(x)


@pytest.mark.parametrize("forward", [given_by_set, given_a_weight])
def test_a_tensor_that_is_given_the_memory_of_another_is_refused(forward):
    with pytest.raises(TraceError, match=r"memory of another at .*copy_"):
        deltaconvert.convert(Model(forward, conv=nn.Conv2d(3, 3, 1)))


def test_a_tensor_that_is_given_another_size_is_refused():
    def forward(self, x):
        volume = x.new().resize_(x.size(0), 2, 3, x.size(2), x.size(3)).zero_()
        volume[:, 0] = self.conv(x)
        return volume
    with pytest.raises(TraceError, match=r"another size by \.resize_\(\) at .*new_zeros"):
        deltaconvert.convert(Model(forward, conv=nn.Conv2d(3, 3, 1)))


@pytest.mark.parametrize("name, change", [
    ("norm.training", lambda self: self.norm.train()),
    ("norm.training", lambda self: self.train()),
    ("norm.eps", lambda self: setattr(self.norm, "eps", 1.0)),
    ("conv.stride", lambda self: setattr(self.conv, "stride", (2, 2))),
])
def test_a_forward_that_leaves_its_layers_set_otherwise_is_refused(name, change):
    def forward(self, x):
        found = self.norm(self.conv(x))
        change(self)
        return found
    model = Model(forward, conv=nn.Conv2d(3, 2, 3), norm=nn.BatchNorm2d(2))
    with pytest.raises(TraceError, match=f"keeps {name} from frame to frame"):
        deltaconvert.convert(model)


def strides(self, x):
    self.conv.stride = (2, 2)
    small = self.conv(x)
    self.conv.stride = (1, 1)
    return small, self.conv(x)


def written_or_not(self, x):
    y = self.conv(x)
    self.relu.inplace = False
    z = self.relu(y)
    self.relu.inplace = True
    return y + z, self.relu(y) + y


def dropouts(self, x):
    self.drop.p = 0.1
    y = self.drop(self.conv(x))
    self.drop.p, self.count = self.count / 10, self.count + 1
    return self.drop(y)


@pytest.mark.parametrize("forward", [strides, written_or_not, dropouts])
def test_a_layer_that_is_set_otherwise_between_its_calls_is_taken_as_set(forward):
    model = Model(forward, conv=nn.Conv2d(3, 2, 3), relu=nn.ReLU(), drop=nn.Dropout(), count=0)
    assert_same_outputs(model, frames_like(1, 3, 8, 9))


def test_a_dropout_that_is_left_in_train_mode_is_refused():
    def forward(self, x):
        y = self.drop(self.conv(x))
        self.drop.train()
        return y
    with pytest.raises(TraceError, match=r"keeps drop\.training from frame to frame"):
        deltaconvert.convert(Model(forward, conv=nn.Conv2d(3, 2, 3), drop=nn.Dropout()))


@pytest.mark.parametrize("left", [(1, 1), (2, 2)])
def test_a_layer_that_is_set_before_each_call_is_taken_as_set(left):
    def forward(self, x):
        self.norm.eval()
        self.conv.stride, self.up.size = (2, 2), x.shape[2:]
        found = self.up(self.norm(self.conv(x)))
        self.conv.stride = left
        self.norm.train()
        return found
    model = Model(forward, conv=nn.Conv2d(3, 2, 3), norm=nn.BatchNorm2d(2), up=nn.Upsample(4))
    delta = assert_same_outputs(model, frames_like(1, 3, 8, 9))
    frame = torch.ones(1, 3, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(delta(frame), model.double()(frame))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize("by_graph", [False, True])
def test_observers_of_quantisation_are_refused_and_switched_off_are_none(by_graph):
    quantization = pytest.importorskip("torch.ao.quantization")
    by_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    frames = [frame.float() for frame in frames_like(1, 3, 8, 9)]
    prepared = by_fx.prepare_qat_fx(
        model, quantization.get_default_qat_qconfig_mapping("fbgemm"), (frames[0],)
    ) if by_graph else quantization.prepare_qat(model)
    prepared(frames[0])
    with pytest.raises(TraceError, match=r"observes each frame, .*disable_observer"):
        deltaconvert.convert(prepared)
    prepared.apply(quantization.disable_observer).eval()
    assert deltaconvert.validate(prepared, deltaconvert.convert(prepared), frames).passed


def takes_gradients(self, x):
    x.requires_grad_()
    self.conv(x).square().sum().backward()
    return x.grad


def takes_gradients_by_a_function(self, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(self.conv(x).square().sum(), x)[0]


@pytest.mark.parametrize("forward", [takes_gradients, takes_gradients_by_a_function])
def test_gradients_are_refused(forward):
    with pytest.raises(TraceError, match=r"computes gradients at .*test_trace\.py:\d+"):
        deltaconvert.convert(Model(forward, conv=nn.Conv2d(3, 3, 1)))


class Normalised(nn.Module):
    """Computes with buffers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.register_buffer("mean", torch.rand(3))
        self.register_buffer("levels", torch.tensor(1))

    def forward(self, x):
        for _ in range(int(self.levels)) if self.by_numbers else range(1):
            x = self.conv(x - (self.mean * 255).view(1, 3, 1, 1))
        return x

    by_numbers = False


@pytest.mark.parametrize("change", [
    lambda m: m.double(), lambda m: m.bfloat16(),
    lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()})])
def test_what_is_computed_of_buffers_follows_them(change):
    model = Normalised().eval()
    delta = deltaconvert.convert(model)
    change(model), change(delta)
    frame = torch.randn(1, 3, 6, 7).to(model.conv.weight.dtype)
    with torch.no_grad():
        torch.testing.assert_close(delta(frame), model(frame))


def test_code_that_goes_by_the_numbers_in_a_buffer_is_traced_as_it_goes():
    model = Normalised().eval()
    model.by_numbers = True
    frame = torch.randn(1, 3, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(deltaconvert.convert(model)(frame), model(frame))


@pytest.mark.parametrize("given", [(), (torch.zeros(1, 3, 6, 7),)], ids=["", "for frames"])
@pytest.mark.parametrize("change", [
    lambda m: m.half(), lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()})])
def test_code_that_goes_by_the_numbers_in_a_buffer_goes_by_new_ones(given, change):
    def forward(self, x):
        return self.conv(x) * (self.levels * 2) if self.levels > 1 else self.conv(x)
    model = Model(forward, conv=nn.Conv2d(3, 3, 3)).eval()
    model.register_buffer("levels", torch.tensor(1.0))
    delta = deltaconvert.convert(model, given)
    change(model), change(delta)
    frame = torch.randn(1, 3, 6, 7).to(model.conv.weight.dtype)
    with torch.no_grad():
        torch.testing.assert_close(delta(frame), model(frame))


@pytest.mark.parametrize("read, times", [
    (lambda self, x: x, 1), (lambda self, x: x + self.norm.running_mean[0], 2)])
def test_what_fails_is_traced_again_only_if_buffers_are_read(monkeypatch, read, times):
    def forward(self, x):
        x = read(self, x)
        return x if x.sum() > 0 else -x

    traced, own = [], Tracer.trace
    monkeypatch.setattr(Tracer, "trace", lambda self, model: traced.append(1) or own(self, model))
    model = Model(forward, norm=nn.BatchNorm2d(3))
    with pytest.raises(TraceError, match="control flow"):
        trace(model)
    assert len(traced) == times


def test_a_model_for_some_shapes_follows_another_dtype_and_a_file_keeps_its_own(tmp_path):
    def forward(self, x):
        if x.shape[-1] > 4:
            x = self.conv(x)
        return self.conv(x + torch.arange(x.shape[-1], dtype=x.dtype))
    model, frame = Model(forward, conv=nn.Conv2d(3, 3, 3, padding=1)), torch.randn(1, 3, 6, 7)
    delta = deltaconvert.convert(model, frame)
    before = delta(frame)
    deltaconvert.save(delta, tmp_path / "some.delta")
    stored = deltaconvert.load(tmp_path / "some.delta")
    for change in (lambda m: m.half(), lambda m: m.double(), lambda m: m.to(torch.bfloat16)):
        with pytest.raises(deltaconvert.UnsupportedError, match=r"in torch\.float32.*Convert the "
                                                                r"model as it is in"):
            change(stored)
    assert torch.equal(copy.deepcopy(stored).float().to("cpu")(frame), before)
    double = copy.deepcopy(delta).double()(frame.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, model.double()(frame.double()))


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 2, 3, padding=1), nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x))


def absolute_weights(self, x, *_):
    return F.conv2d(x, self.weight.abs(), self.bias, padding=1)


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight.abs(), bias)


def with_another_forward(model):
    model.forward = types.MethodType(lambda self, x: self.conv(x) * 3, model)


def with_another_forward_in_a_layer(model):
    model.act.forward = torch.abs


def with_another_method_in_a_layer(model):
    model.conv._conv_forward = types.MethodType(absolute_weights, model.conv)


def with_a_subclass_of_a_layer(model):
    model.conv = OwnConvolution(3, 2, 3, padding=1)


@pytest.mark.parametrize("modules", [None, ["0"]])
@pytest.mark.parametrize("change", [
    with_another_forward, with_another_forward_in_a_layer, with_another_method_in_a_layer,
    with_a_subclass_of_a_layer])
def test_a_method_put_into_a_module_is_what_is_converted(change, modules):
    inner = Layers()
    change(inner)
    model = nn.Sequential(inner).double().eval()
    delta = deltaconvert.convert(model if modules else model[0], modules=modules)
    for frame in frames_like(1, 3, 6, 7):
        with torch.no_grad():
            torch.testing.assert_close(delta(frame), model(frame))


def test_a_class_of_pytorch_with_another_forward(monkeypatch):
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.abs())
    assert_same_outputs(Layers(), frames_like(1, 3, 6, 7))


class Watched(Layers):
    """Reads in its forward what a hook on a layer kept of this frame."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.conv.register_forward_hook(self.keep)
        self.act.register_forward_pre_hook(self.keep_input, with_kwargs=True)

    def keep(self, module, inputs, output):
        self.kept["conv"] = output

    def keep_input(self, module, inputs, named):
        self.kept["act"] = inputs[0]

    def forward(self, x):
        return super().forward(x), self.kept["conv"] * 2, self.kept["act"] + 1


def test_what_hooks_keep_of_a_frame_is_this_frames():
    model = Watched()
    model(torch.randn(1, 3, 6, 7))  # leaves something of another
    model.kept.clear()
    assert_same_outputs(model, frames_like(1, 3, 6, 7))


class WatchedByShape(Watched):
    """The first, shapeless attempt to run this hook fails."""

    def keep(self, module, inputs, output):
        self.kept["conv"] = output[..., :-1] if output.shape[-1] % 2 else output


def test_what_a_hook_keeps_that_goes_by_shapes_is_this_frames():
    model = WatchedByShape()
    with torch.no_grad():
        model(torch.randn(1, 3, 6, 7))  # leaves something of another
    assert_same_outputs(model, frames_like(1, 3, 6, 7))


def doubles(layer, given, made):
    made.mul_(2)


def doubles_before(layer, given):
    given[0].mul_(2)


@pytest.mark.parametrize("add", [lambda layer: layer.register_forward_hook(doubles),
                                 lambda layer: layer.register_forward_pre_hook(doubles_before)])
def test_a_hook_that_writes_into_what_it_is_given_is_refused(add):
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 3))
    add(model[1])
    with pytest.raises(TraceError, match=r"hook on 1 writes into .*test_trace\.py:\d+"):
        deltaconvert.convert(model)


def test_a_hook_may_write_into_a_copy():
    model, kept = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), []
    model[0].register_forward_hook(lambda layer, given, made: kept.append(made.clone().mul_(2)))
    assert_same_outputs(model, frames_like(1, 3, 6, 7))


def test_a_hook_that_logs_numbers_is_no_reason_to_refuse():
    model, logged = Layers(), []
    model.conv.register_forward_hook(lambda module, inputs, output: logged.append(
        float(output.mean())))
    assert_same_outputs(model, frames_like(1, 3, 6, 7))


@pytest.mark.parametrize("function, method", [
    (lambda self, x: x / x.amax().item(), "item"),
    (lambda self, x: (x * 2, x.mean((2, 3)).tolist()), "tolist"),
    (lambda self, x: (x * 2).numpy(), "numpy"),
])
def test_numbers_taken_out_of_a_frame_are_refused(function, method):
    """A graph would keep those of the first."""
    with pytest.raises(TraceError, match=rf"takes numbers.*\.{method}\(\) at .*test_trace.py:\d+"):
        deltaconvert.convert(Model(function))


def test_numbers_of_the_model_itself_are_no_frames():
    model = Model(lambda self, x: x * self.scale.item() + x.shape[-1], scale=torch.tensor(3.0))
    assert_same_outputs(model, frames_like(1, 3, 6, 7))


def test_layers_without_weights_may_be_made_in_the_forward():
    model = Model(lambda self, x: nn.Upsample(scale_factor=2)(nn.Softmax(dim=1)(self.conv(x))),
                  conv=nn.Conv2d(3, 2, 3))
    delta = assert_same_outputs(model, frames_like(1, 3, 6, 7))
    assert "unknown" not in [node.about.rule for node in program_of(delta).nodes]


def asks_what_it_is_given(self, x):
    if not isinstance(x, torch.Tensor):
        x = torch.stack(x)
    return self.conv(x * 2 if isinstance(x, torch.Tensor) else x)


def asks_what_a_call_returned(self, x):
    parts = x.split(1, dim=x.shape[1] and 1)
    if isinstance(parts, (list, tuple)):
        x = sum(parts[1:], parts[0])
    return x if isinstance(x, torch.Tensor) else -x


def asks_what_a_layer_returned(self, x):
    x = self.conv(x)
    return x * 2 if isinstance(x, torch.Tensor) else x[0]


def asks_what_a_function_returned(self, x):
    x = F.relu(self.conv(x))
    return x + 1 if isinstance(x, torch.Tensor) else x * 0


def asks_pytorch(self, x):
    x = self.conv(x).mean(1) + 1
    return x + 1 if torch.is_tensor(x) else x * 0


def asks_by_type(self, x):
    x = F.relu(self.conv(x))
    return x + 1 if type(x) is torch.Tensor and type(x).__name__ == "Tensor" else x * 0


def asks_the_type_of_others(self, x):
    named = type("Named", (), {"factor": 2})
    known = isinstance(named, type) and issubclass(type, type) and type([]) is list
    return self.conv(x) * named.factor if known and type(self.conv) is nn.Conv2d else x


def asks_the_type_of_what_only_a_call_tells(self, x):
    x = self.conv(x).topk(2, 1)
    return x * 0 if type(x) is torch.Tensor else x[0]


def asks_what_parts_are(self, x):
    first, second = self.conv(x).chunk(2, 1)
    return first + second if isinstance(second, torch.Tensor) else first


def asks_what_only_a_call_tells(self, x):
    x = self.conv(x).max(1)
    return x[0] if isinstance(x, tuple) else x * 0


def asks_what_a_size_is(self, x):
    size = x.shape[2:]
    return F.interpolate(x, size if isinstance(size, tuple) else (size, 1))


def asks_for_a_weight(self, x):
    weight = self.conv.weight
    return self.conv(x) if isinstance(weight, nn.Parameter) and hasattr(weight, "data") else x


def asks_for_attributes(self, x):
    x = F.relu(self.conv(x))
    return x.logits if hasattr(x, "logits") else getattr(x, "_is_kept", x)


def pools(self, x):
    x = F.max_pool2d(x, 2, return_indices=True)
    return x[0] if isinstance(x, tuple) else F.max_pool2d(x, 2)


def pools_as_a_layer(self, x):
    x = nn.MaxPool2d(2)(x)
    return x if isinstance(x, torch.Tensor) else x[0]


def fits_two_sides(self, x):
    height = x.size(2) // 2
    return F.interpolate(x, (height, height) if isinstance(height, int) else height)


FREE_OF_SHAPES = [
    asks_what_it_is_given, asks_what_a_layer_returned, asks_what_a_function_returned, asks_pytorch,
    asks_by_type, asks_the_type_of_others, asks_what_parts_are, asks_what_a_size_is,
    asks_for_a_weight, asks_for_attributes, pools_as_a_layer, fits_two_sides]


@pytest.mark.parametrize("forward", FREE_OF_SHAPES)
def test_what_a_model_asks_is_answered_for_all_shapes(forward):
    model = Model(forward, conv=nn.Conv2d(3, 2, 3))
    delta = assert_same_outputs(model, frames_like(1, 3, 6, 7))
    assert delta.traced.traced_for is None


def goes_by_the_text_of_a_device(self, x):
    return self.conv(x) if "cpu" in str(x.device) and f"{x.dtype}" == "torch.float64" else x


@pytest.mark.parametrize("forward", [
    goes_by_the_text_of_a_device, asks_what_only_a_call_tells,
    asks_the_type_of_what_only_a_call_tells, asks_what_a_call_returned, pools, *FREE_OF_SHAPES])
def test_a_model_may_ask_whether_it_has_a_tensor(forward):
    model = Model(forward, conv=nn.Conv2d(3, 2, 3))
    assert_same_outputs(model, frames_like(1, 3, 6, 7),
                        example_inputs=frames_like(1, 3, 6, 7)[0])


class Filled(nn.Module):
    """PyTorch's C++ looks whether the buffer is a tensor, and into its memory."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return x * 2 + torch.full_like(x, self.scale)


def test_a_models_code_has_its_own_type_again():
    before = builtins.isinstance
    with pytest.raises(TraceError):
        deltaconvert.convert(Model(lambda self, x: x if x.sum() > 0 else -x))
    assert "type" not in globals()
    assert builtins.isinstance is before


def test_no_c_code_takes_a_proxy_for_a_tensor():
    assert_same_outputs(Filled(), frames_like(1, 3, 6, 7))


@torch.jit.script
def scripted_gate(x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
    """An activation as fast as it was once."""
    return x * torch.sigmoid(scale * x)


@torch.jit.script
def scripted_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Branch on a shape, and call another."""
    n, c, h, w = x.size()
    if c % groups == 0:
        x = x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
    return scripted_gate(x)


def test_functions_of_torchscript_are_followed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.b(scripted_shuffle(scripted_gate(self.a(x)), groups=2))
    model, frame = Net().eval(), torch.rand(1, 3, 12, 16)
    run = torch.jit.ScriptFunction.__call__
    delta = deltaconvert.convert(model, frame, strict=True)
    assert torch.jit.ScriptFunction.__call__ is run
    torch.testing.assert_close(delta(frame), model(frame).detach())
