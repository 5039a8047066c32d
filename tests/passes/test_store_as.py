"""Store as: values and weights in another precision, frames and outputs in the model's own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert.errors import ConfigError
from tests.passes.graphs import Model, TwoInputs, program_of, trained_norm

SHAPE = (2, 3, 12, 14)


def clip(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    frame = torch.randn(SHAPE, generator=generator)
    made = [frame]
    for time in range(1, count):
        frame = frame.clone()
        frame[time % 2, :, time:time + 3, 2:6] = torch.randn(3, 3, 4, generator=generator)
        made.append(frame)
    return made


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), trained_norm(6), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Conv2d(6, 4, 1), nn.ELU()).eval()


def dtypes_of(delta: deltaconvert.DeltaModule) -> set[torch.dtype | None]:
    return {node.about.output.dtype for node in program_of(delta).nodes}


@pytest.mark.parametrize("backend", ["cpu", "reference", "paper"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_maps_are_kept_in_it_and_outputs_are_the_models(backend, dtype):
    model, kept = network(), getattr(torch, dtype)
    before = copy.deepcopy(model.state_dict())
    delta = deltaconvert.convert(model, backend=backend, dtype=dtype)
    plain = deltaconvert.convert(model, backend=backend)
    for frame in clip():
        out = delta(frame)
        assert out.dtype == torch.float32
        exact = copy.deepcopy(model).double()(frame.double())
        own = (copy.deepcopy(model).to(kept)(frame.to(kept)).double() - exact).abs().max()
        error = (out.double() - exact).abs().max()
        assert error <= 4 * own
        assert error > 10 * (plain(frame).double() - exact).abs().max()
    assert dtypes_of(delta) == {kept}
    values = (program_of(d).plan.value_bytes for d in (delta, plain))
    assert 2 * next(values) == next(values)
    assert all(torch.equal(delta.state_dict()[k], v) for k, v in before.items())


def test_a_model_in_half_precision_may_be_kept_in_float32():
    model = network().bfloat16()
    wide, own = deltaconvert.convert(model, dtype="float32"), deltaconvert.convert(model)
    frame = clip()[0].bfloat16()
    exact = copy.deepcopy(model).double()(frame.double())
    errors = [float((delta(frame).double() - exact).square().mean()) for delta in (wide, own)]
    assert wide(frame).dtype == torch.bfloat16
    assert dtypes_of(wide) == {torch.float32}
    assert errors[0] < 0.7 * errors[1]  # the folded filter is the model's, in its precision


def test_derived_weights_are_rounded_once_and_after_they_were_derived():
    model = network()
    delta = deltaconvert.convert(model, dtype="bfloat16", backend="reference")
    delta(clip()[0])
    conv, norm = model[0], model[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    folded = (conv.weight.double() * scale.view(-1, 1, 1, 1)).float().bfloat16()
    first = next(n for n in program_of(delta).nodes if n.about.rule == "local")
    assert torch.equal(first.about.args[1], folded)


def test_what_the_model_converts_on_its_way_is_converted_back():
    def forward(self, x):
        y = self.conv(x).to(torch.float64)
        mask = torch.zeros_like(x, dtype=torch.float32)
        return self.other(y.float() + mask[:, :1]), y

    torch.manual_seed(0)
    model = Model(forward, conv=nn.Conv2d(3, 4, 1), other=nn.Conv2d(4, 2, 3))
    delta = deltaconvert.convert(model, dtype="bfloat16")
    for frame in clip():
        outputs, expected = delta(frame), model(frame)
        assert [o.dtype for o in outputs] == [e.dtype for e in expected]
        for out, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(out, wanted, rtol=3e-2, atol=3e-2)


def test_constants_that_are_returned_are_not_rounded():
    model = Model(lambda self, x: (self.conv(x), self.anchors, self.anchors * 2, x.argmax(1), 7),
                  conv=nn.Conv2d(3, 2, 1), anchors=torch.tensor([1.0009765625, 257.0]))
    outputs = deltaconvert.convert(model, dtype="bfloat16")(clip()[0])
    assert torch.equal(outputs[1], model.anchors)
    assert torch.equal(outputs[2], model.anchors * 2)
    assert outputs[3].dtype == torch.int64
    assert outputs[4] == 7


def test_several_outputs_in_one_value():
    model = Model(lambda self, x: torch.topk(self.conv(x), 2, 1), conv=nn.Conv2d(3, 4, 1))
    values, indices = deltaconvert.convert(model, dtype="bfloat16")(clip()[0])
    assert values.dtype == torch.float32
    assert indices.dtype == torch.int64
    torch.testing.assert_close(values, model(clip()[0]).values, rtol=2e-2, atol=2e-2)


def test_frames_that_are_no_floats_stay_so():
    model = Model(lambda self, x: self.conv(x.float() / 255), conv=nn.Conv2d(3, 4, 1))
    frame = torch.randint(0, 256, SHAPE, dtype=torch.uint8)
    delta = deltaconvert.convert(model, dtype="bfloat16")
    torch.testing.assert_close(delta(frame), model(frame), rtol=2e-2, atol=2e-2)
    assert torch.uint8 in dtypes_of(delta)


def test_two_inputs():
    model = TwoInputs(lambda self, x, y: F.relu(self.conv(x) + y), conv=nn.Conv2d(3, 3, 1))
    delta = deltaconvert.convert(model, dtype="bfloat16")
    for frame in clip():
        torch.testing.assert_close(delta(frame, frame + 1), model(frame, frame + 1), rtol=2e-2,
                                   atol=2e-2)


def test_the_frame_is_refused_as_ever():
    delta = deltaconvert.convert(network(), dtype="bfloat16")
    first, second = clip(2)
    delta(first)
    for bad in (torch.nan, torch.inf, 3.4e38):  # the last is no number that bfloat16 has
        broken = second.clone()
        broken[1, 0, 3, 3] = bad
        with pytest.raises(deltaconvert.DeltaConvertError, match="NaN or infinite"):
            delta(broken)
    again = deltaconvert.convert(network(), dtype="bfloat16")
    again(first)
    assert torch.equal(delta(second), again(second))


def test_an_operator_that_does_not_take_it_is_named():
    model = Model(lambda self, x: torch.fft.rfft2(self.conv(x)).abs(), conv=nn.Conv2d(3, 4, 1))
    delta = deltaconvert.convert(model, dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"dtype=bfloat16: .*fft.* does not take it .*Leave dtype "
                                          r"out"):
        delta(clip()[0])


def test_is_kept_in_the_file(tmp_path):
    delta = deltaconvert.convert(network(), dtype="bfloat16")
    deltaconvert.save(delta, tmp_path / "model.delta")
    loaded = deltaconvert.load(tmp_path / "model.delta")
    assert loaded.config.dtype == "bfloat16"
    for frame in clip():
        assert torch.equal(loaded(frame), delta(frame))


def test_validates_by_its_own_rounding():
    model = network()
    report = deltaconvert.validate(model, deltaconvert.convert(model, dtype="bfloat16"), clip())
    assert report.passed, report
    assert report.dtype == "bfloat16"
    (output,) = report.outputs
    assert 1e-4 < output.worst_relative_rms < 2e-2
    wrong = network()
    wrong[4].weight.data *= 1.2
    report = deltaconvert.validate(model, deltaconvert.convert(wrong, dtype="bfloat16"), clip())
    assert not report.passed


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_modules_that_are_called_as_they_are_compute_in_their_own(backend):
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv3d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.deep(x[:, None].relu())[:, 0].relu()

    model = Deep().eval()
    delta = deltaconvert.convert(model, backend=backend, dtype="bfloat16")
    for frame in clip():
        out = delta(frame)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, model(frame), rtol=2e-2, atol=2e-2)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    nodes = [node.about for node in program_of(delta).nodes]
    assert nodes[0].output.dtype == nodes[-1].output.dtype == torch.bfloat16
    called = [function for n in nodes
              for function, *_ in getattr(n.function, "calls", [(n.function,)])]
    (deep,) = (function for function in called if isinstance(function, nn.Conv3d))
    assert deep.weight.dtype == torch.float32
