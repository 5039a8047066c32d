"""``convert`` and the module it makes."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.errors import ConfigError, FrameError, InputError, TraceError, UnsupportedError
from tests.passes.graphs import Model, trained_norm

BACKENDS = ["reference", "cpu"]
FRAME = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), trained_norm(4), nn.ReLU(inplace=True),
                         nn.Conv2d(4, 2, 1)).eval()


def dense(model: nn.Module, frame: torch.Tensor = FRAME) -> torch.Tensor:
    with torch.no_grad():
        return model(frame.clone())


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_untouched(backend, training):
    model = net().train(training)
    hooked = []
    model[0].register_forward_hook(lambda *_: hooked.append(1))
    model[0].weight.requires_grad_(False)
    before = {k: (v.clone(), v.data_ptr()) for k, v in model.state_dict().items()}
    modules = [(name, id(m), m.training, getattr(m, "inplace", None))
               for name, m in model.named_modules()]
    delta = deltaconvert.convert(model, FRAME, backend=backend)
    delta(FRAME)
    delta(FRAME + 1)
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == {
        k: pointer for k, (_, pointer) in before.items()}
    assert all(torch.equal(v, before[k][0]) for k, v in model.state_dict().items())
    assert [(name, id(m), m.training, getattr(m, "inplace", None))
            for name, m in model.named_modules()] == modules
    mine, theirs = ({p.data_ptr() for p in m.parameters()} for m in (delta, model))
    assert not mine & theirs


def test_a_model_in_train_mode_is_converted_as_in_eval_mode(backend):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), trained_norm(4), nn.Dropout(0.9)).train()
    delta = deltaconvert.convert(model, backend=backend)
    out = delta(FRAME)
    torch.testing.assert_close(out, dense(copy.deepcopy(model).eval()))
    assert not delta.training
    assert not delta.train().training


def test_the_state_dict_has_the_same_names_and_values(backend):
    model = net()
    delta = deltaconvert.convert(model, FRAME, backend=backend)
    delta(FRAME)
    mine, theirs = delta.state_dict(), model.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    assert [n for n, _ in delta.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [n for n, _ in delta.named_buffers()] == [n for n, _ in model.named_buffers()]
    net(1).load_state_dict(mine)


@pytest.mark.parametrize("name", ["stream", "config", "program", "summary", "reset",
                                  "observe", "statistics", "signature", "state", "results"])
def test_submodules_may_have_any_name(backend, name):
    model = Model(lambda self, x: getattr(self, name)(x))
    model.add_module(name, nn.Conv2d(3, 2, 1)) if not hasattr(model, name) else setattr(
        model, name, nn.Conv2d(3, 2, 1))
    delta = deltaconvert.convert(model, backend=backend)
    torch.testing.assert_close(delta(FRAME), dense(model))
    assert list(delta.state_dict()) == [f"{name}.weight", f"{name}.bias"]
    delta.load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", ["graph", "code", "meta"])
def test_but_three_names_are_torch_fxs(name):
    model = Model(lambda self, x: self._modules[name](x))
    model.add_module(name, nn.Conv2d(3, 2, 1))
    with pytest.raises(TraceError, match=rf"Model\.{name} cannot keep its name"):
        deltaconvert.convert(model)
    wrapped = nn.Sequential(model)
    torch.testing.assert_close(deltaconvert.convert(wrapped)(FRAME), dense(wrapped))


def test_loading_weights_rebuilds_what_is_derived_and_starts_anew(backend):
    delta = deltaconvert.convert(net(), backend=backend, threshold=0.5)
    stream = delta.new_stream()
    delta(FRAME)
    stream(FRAME)
    delta.load_state_dict(net(1).state_dict())
    torch.testing.assert_close(delta(FRAME), dense(net(1)))
    torch.testing.assert_close(stream(FRAME), dense(net(1)))


def test_wrong_weights_are_refused_as_by_any_module(backend):
    delta = deltaconvert.convert(net(), backend=backend)
    delta(FRAME)
    with pytest.raises(RuntimeError, match="Missing key"):
        delta.load_state_dict({})
    torch.testing.assert_close(delta(FRAME), dense(net()))


@pytest.mark.parametrize("change, dtype, tolerance", [
    (lambda m: m.double(), torch.float64, 1e-9), (lambda m: m.half(), torch.float16, 1e-2),
    (lambda m: m.to(torch.bfloat16), torch.bfloat16, 1e-1),
    (lambda m: m.to("cpu"), torch.float32, 1e-5)])
def test_conversions_rebuild_too(backend, change, dtype, tolerance):
    model = net()
    delta = deltaconvert.convert(model, backend=backend)
    delta(FRAME)
    assert change(delta) is delta
    for frame in (FRAME, FRAME + 1):
        out = delta(frame.to(dtype))
        assert out.dtype == dtype
        exact = dense(copy.deepcopy(model).to(dtype).double(), frame.to(dtype).double())
        assert (out.double() - exact).abs().max() < tolerance * exact.abs().max()
    if dtype != torch.float32:
        with pytest.raises(FrameError):
            delta(FRAME)


def test_another_device_is_refused():
    delta = deltaconvert.convert(net(), backend="reference")
    with pytest.raises(FrameError, match=r"input 'input' is on the meta device"):
        delta(FRAME.to("meta"))


# Strict


def with_fallbacks() -> nn.Module:
    def forward(self, x):
        x = F.grid_sample(self.conv(x), self.grid, align_corners=False)
        x = self.block(x)
        return x.cumsum(2)
    model = Model(forward, conv=nn.Conv2d(3, 4, 1), grid=torch.rand(2, 8, 9, 2),
                  block=nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()))
    model.grid.requires_grad_(False)
    return model


def test_strict_lists_every_fallback_with_path_line_and_reason():
    with pytest.raises(UnsupportedError) as caught:
        deltaconvert.convert(with_fallbacks(), FRAME, strict=True)
    message = str(caught.value)
    assert "strict: 3 nodes" in message
    lines = message.splitlines()[1:-1]
    assert len(lines) == 3
    for line, (path, code, reason, advice) in zip(lines, [
            ("grid_sample", "F.grid_sample(self.conv(x), self.grid",
             "grid_sample is not an operator",
             "nothing: where it reads depends on the numbers in the frame"),
            ("block.0", "self.block(x)", "BatchNorm without running statistics",
             "running statistics, as after training"),
            ("cumsum", "return x.cumsum(2)", "cumsum is not an operator",
             "nothing: each number depends on all before it")], strict=True):
        assert line.strip().startswith(path)
        assert reason in line
        assert f"({__file__}" in line
        assert code in line
        assert f"to be local it takes {advice}" in line
        assert "[0.0% of the multiply-adds]" in line


def test_strict_says_how_much_of_the_work_a_fallback_is():
    model = Model(lambda self, x: self.deep(self.conv(x)[:, :, None])[:, :, 0],
                  conv=nn.Conv2d(3, 1, 1), deep=nn.Conv3d(1, 1, (1, 3, 3), padding=(0, 1, 1)))
    with pytest.raises(UnsupportedError, match=r"deep: Conv3d is not an operator that deltaconvert "
                       r"knows \[75.0% of the multiply-adds\].*convolutions of maps N x C x H x W"):
        deltaconvert.convert(model, FRAME, strict=True)


def test_strict_answers_at_the_first_frame_without_example_inputs():
    delta = deltaconvert.convert(with_fallbacks(), strict=True)
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="3 nodes"):
            delta(FRAME)


def test_strict_lets_global_nodes_pass():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 2))
    torch.testing.assert_close(deltaconvert.convert(model, FRAME, strict=True)(FRAME), dense(model))


def test_without_strict_fallbacks_run():
    model = with_fallbacks()
    delta = deltaconvert.convert(model)
    torch.testing.assert_close(delta(FRAME), dense(model))
    assert delta.summary().count("unknown: ") == 3


# Arguments


def test_example_inputs_compile_at_once():
    delta = deltaconvert.convert(net(), FRAME)
    assert len(delta._programs) == 1
    program = next(iter(delta._programs.values()))
    delta(FRAME)
    assert delta.stream.program is program
    assert delta.stream.totals["_0"].frames == 1


@pytest.mark.parametrize("examples", [[FRAME], (FRAME,), FRAME])
def test_example_inputs_may_be_one_frame_or_several(examples):
    assert deltaconvert.convert(net(), examples)(FRAME).shape == (2, 2, 6, 7)


def test_example_inputs_that_do_not_fit_are_refused():
    with pytest.raises(FrameError, match="module 0 fails on"):
        deltaconvert.convert(net(), torch.randn(1, 4, 8, 8))
    with pytest.raises(FrameError, match="takes 1 input"):
        deltaconvert.convert(net(), [FRAME, FRAME])


def test_settings_override_the_configuration():
    config = deltaconvert.Config(threshold=0.5, norm="rms")
    delta = deltaconvert.convert(net(), config=config, threshold=0.25)
    assert (delta.config.threshold, delta.config.norm) == (0.25, "rms")
    assert config.threshold == 0.5
    with pytest.raises(ConfigError, match="no such setting"):
        deltaconvert.convert(net(), thresholds=1)


def test_a_copy_has_its_own_weights_and_no_past(backend):
    delta = deltaconvert.convert(net(), backend=backend, threshold=0.5)
    delta(FRAME)
    copied = copy.deepcopy({"delta": delta, "stream": delta.new_stream()})
    copied["delta"].load_state_dict(net(1).state_dict())
    torch.testing.assert_close(copied["delta"](FRAME), dense(net(1)))
    torch.testing.assert_close(copied["stream"](FRAME), dense(net(1)))
    torch.testing.assert_close(delta(FRAME), dense(net()))
    assert copied["delta"].config == delta.config


def test_a_shallow_copy_shares_the_weights_and_has_no_past(backend):
    delta = deltaconvert.convert(net(), backend=backend)
    out = delta(FRAME)
    copied = copy.copy(delta)
    assert next(copied.parameters()) is next(delta.parameters())
    assert copied.stream.program is None
    torch.testing.assert_close(copied(FRAME), out)


def test_it_is_saved_not_pickled():
    with pytest.raises(UnsupportedError, match=r"deltaconvert\.save\(delta, path\)"):
        pickle.dumps(deltaconvert.convert(net()))


@pytest.mark.parametrize("wrap", [
    torch.compile, nn.DataParallel, torch.optim.swa_utils.AveragedModel,
    lambda m: torch.compile(nn.DataParallel(m))],
    ids=["compile", "DataParallel", "AveragedModel", "two"])
def test_what_pytorch_wraps_is_converted(wrap):
    within = nn.Sequential(wrap(net()), nn.ReLU())
    for model in (wrap(net()), within):
        delta = deltaconvert.convert(model, strict=True)
        plain = net() if model is not within else nn.Sequential(net(), nn.ReLU())
        torch.testing.assert_close(delta(FRAME), dense(plain))
    assert delta.state_dict().keys() == within.state_dict().keys()


def test_torchscript_is_refused_whole_and_kept_as_a_part():
    scripted = torch.jit.script(net())
    for model in (scripted, torch.jit.trace(net(), FRAME)):
        with pytest.raises(TraceError, match=r"TorchScript.*Convert the nn\.Module"):
            deltaconvert.convert(model)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), scripted, nn.ReLU(inplace=True)).eval()
    delta = deltaconvert.convert(model)
    torch.testing.assert_close(delta(FRAME), dense(model))
    assert {n.about.name: n.about.rule for n in delta.stream.program.nodes}["_1"] == "unknown"
    islands = deltaconvert.convert(model, FRAME, modules=["0"])
    torch.testing.assert_close(islands(FRAME), dense(model))


def test_what_cannot_be_copied_is_named_and_functions_of_torchscript_need_not_be():
    model = Model(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 2, 1))
    model.double_it = torch.jit.script(_twice)
    torch.testing.assert_close(deltaconvert.convert(model)(FRAME), dense(model))
    model.lock = threading.Lock()
    for modules in (None, "auto", ["conv"]):
        with pytest.raises(TraceError, match=r"Model cannot be copied \(cannot pickle"):
            deltaconvert.convert(model, modules=modules)


def _twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_a_dict_of_frames_is_taken_and_refused_by_a_file(tmp_path):
    model = Model(lambda self, x: self.conv(x["image"]), conv=nn.Conv2d(3, 2, 1))
    delta, given = deltaconvert.convert(model), {"image": torch.randn(1, 3, 4, 4)}
    with torch.no_grad():
        torch.testing.assert_close(delta(given), model(given))
    deltaconvert.save(delta, tmp_path / "x.delta")
    loaded = deltaconvert.load(tmp_path / "x.delta")
    torch.testing.assert_close(loaded(given["image"]), delta(given))
    with pytest.raises(FrameError, match=r"'x_0' is a dict, .* takes tensors, one after the other"):
        loaded(given)


def test_what_is_converted_already_is_refused():
    with pytest.raises(InputError, match="converted already"):
        deltaconvert.convert(deltaconvert.convert(net()))


@pytest.mark.parametrize("given, what", [
    (None, "None"), ("resnet18", "a str"), (nn.ReLU().state_dict(), "an OrderedDict"),
    (torch.nn, "a module"), (len, "a builtin_function_or_method"),
    (nn.ReLU, r"the class ReLU \(call it first\)")])
@pytest.mark.parametrize("modules", [None, "auto", ["body"]])
def test_what_is_no_model_is_refused(given, what, modules):
    with pytest.raises(InputError, match=f"convert takes an nn.Module, not {what}. To convert a"):
        deltaconvert.convert(given, modules=modules)


@pytest.mark.parametrize("settings, message", [
    ({"config": {"threshold": 1}}, r"config=\{'threshold': 1\}: give a Config, or its settings by"),
    ({"nodes": ["conv"]}, r"nodes=\['conv'\]: give a dict, as"),
    ({"threads": "2"}, "threads='2': give at least 1"),
])
def test_settings_of_another_kind_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        deltaconvert.convert(net(), **settings)


@pytest.mark.parametrize("pattern, hit", [
    ("features.0", {"features_0"}), ("features.*", {"features_0", "features_2"}),
    ("features_?", {"features_0", "features_2"}), ("head", {"head"}), ("*", {
        "features_0", "features_2", "head"})])
def test_settings_for_nodes_by_a_pattern(backend, pattern, hit):
    model = Model(lambda self, x: self.head(self.features(x)), head=nn.Conv2d(4, 2, 1),
                  features=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    delta = deltaconvert.convert(model, backend=backend, threshold=0.1, nodes={pattern: 0.7})
    delta(FRAME)
    assert {n.about.name for n in delta.stream.program.nodes if n.about.threshold == 0.7} == hit


def test_a_pattern_that_matches_nothing_is_refused_with_what_is_like_it():
    delta = deltaconvert.convert(Model(lambda self, x: self.backbone(x), backbone=net()),
                                 nodes={"backbone.0": 0.1, "backbone.9": 0.7})
    with pytest.raises(ConfigError, match=r"nodes\['backbone.9'\] matches no node.*backbone\.3"):
        delta(FRAME)


# The module


def test_the_summary_names_nodes_rules_thresholds_and_bytes(backend):
    delta = deltaconvert.convert(net(), backend=backend, threshold=0.25)
    assert "first frame" in delta.summary()
    delta(FRAME)
    text = delta.summary()
    assert "conv2d + relu" in text
    assert "0.25" in text
    assert f"{delta.stream.state_bytes / 1e6:.1f} MB for 2 lanes" in text
    assert "100.0%" in text


def test_a_node_that_runs_a_module_of_the_models_goes_by_its_type():
    delta = deltaconvert.convert(nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 3, 1)).eval())
    delta(FRAME)
    node = delta.stream.program.nodes[-1]
    assert node.extra_repr().startswith("Conv1d, unknown")
    assert " Conv1d " in delta.summary()


def test_other_settings_on_the_same_weights(backend):
    delta = deltaconvert.convert(net(), backend=backend)
    loose = delta.with_config(delta.config.replace(threshold=100.0))
    delta(FRAME)
    first = loose(FRAME)
    assert torch.equal(loose(FRAME + 1), first)
    torch.testing.assert_close(delta(FRAME + 1), dense(net(), FRAME + 1))
    assert next(loose.parameters()) is next(delta.parameters())


def test_models_without_weights_or_without_operators():
    for function in (lambda self, x: x, lambda self, x: F.relu(x), lambda self, x: torch.ones(3)):
        model = Model(function)
        delta = deltaconvert.convert(model)
        for frame in (FRAME, FRAME + 1):
            assert torch.equal(delta(frame), model(frame))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiasing_to_one_column_is_as_in_the_model(mode):
    """PyTorch gives other numbers for a map with its channels last, as maps are kept here."""
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x):
            return F.interpolate(self.conv(x), size=(7, 1), mode=mode, antialias=True)

    model = Narrow().eval()
    delta = deltaconvert.convert(model)
    for frame in torch.rand(3, 1, 3, 20, 30):
        torch.testing.assert_close(delta(frame), model(frame))


class PassedOn(nn.Module):
    """A wrapper that hands on whatever it is given, as those that average weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_a_forward_that_names_no_input_goes_by_the_examples(backend, tmp_path):
    model, small = PassedOn(net()), FRAME[:, :, :6].contiguous()
    with pytest.raises(TraceError, match="give convert its example_inputs"):
        deltaconvert.convert(model)
    delta = deltaconvert.convert(model, FRAME, backend=backend)
    for frame in (FRAME, FRAME + 1, small):
        torch.testing.assert_close(delta(frame), dense(model, frame))
    deltaconvert.save(delta, tmp_path / "model.delta")
    torch.testing.assert_close(deltaconvert.load(tmp_path / "model.delta")(FRAME),
                               dense(model))


class Sum(nn.Conv2d):
    def forward(self, *frames):
        return super().forward(sum(frames))


def test_any_number_of_frames():
    model = Sum(3, 2, 3)
    delta = deltaconvert.convert(model, [FRAME, FRAME])
    for count in (2, 3, 2):
        frames = [FRAME + place for place in range(count)]
        torch.testing.assert_close(delta(*frames), model(*frames).detach())


def test_a_shape_that_the_example_settles_leaves_the_part_before_it():
    def forward(self, x):
        x = self.body(x)
        x[x < 0] *= 0.1
        return x
    model = Model(forward, body=net()).eval()
    islands = deltaconvert.convert(model, FRAME, modules="auto")
    assert list(islands.islands) == ["body"]
    torch.testing.assert_close(islands(FRAME), dense(model))
    with pytest.raises(UnsupportedError, match="depends on the data"):
        deltaconvert.convert(model, FRAME)(FRAME)


def test_a_group_norm_of_bright_maps_is_as_exact_as_the_models(backend):
    """With its channels last, PyTorch's own is off by 0.06 here."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.GroupNorm(2, 4)).eval()
    nn.init.ones_(model[0].weight)
    generator = torch.Generator().manual_seed(0)
    frame = torch.randn(1, 4, 32, 32, generator=generator) * 0.1 + 30
    out = deltaconvert.convert(model, backend=backend)(frame)
    torch.testing.assert_close(out, dense(model, frame), rtol=1e-3, atol=1e-3)
