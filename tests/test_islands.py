"""Submodules converted inside a model that cannot be traced whole."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert import IslandsModule
from deltaconvert.checking.law import LawChecker, check_law
from deltaconvert.errors import (
    ConfigError,
    FrameError,
    InputError,
    StreamBusyError,
    TraceError,
    UnsupportedError,
)
from tests.passes.graphs import frames_like, trained_norm


class Pyramid(nn.Module):
    """Branches on numbers, shares a head over two levels, and takes settings it may ignore."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), trained_norm(8),
                                      nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3, padding=1))
        self.head = nn.Conv2d(6, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1))
        self.eval()

    def forward(self, x: Tensor, boost: float | None = None) -> dict[str, Tensor]:
        if float(x.abs().max()) > 1e6:  # what tracing cannot follow
            return {}
        x = self.backbone(x)
        levels = [x, F.avg_pool2d(x, 2)]
        return {str(i): self.head(level) * self.scale for i, level in enumerate(levels)}


class Boxes(nn.Module):
    """Runs a head on as many crops as there are numbers over 2 in a frame."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        count = 1 + int((x > 2).sum())
        return self.head(x[:1, :, :6, :6].expand(count, -1, -1, -1) + torch.arange(
            count).view(-1, 1, 1, 1))


def clip(*shape: int, count: int = 4) -> list[Tensor]:
    return [frame.float() for frame in frames_like(*(shape or (1, 3, 16, 18)), count=count)]


def converted(model: nn.Module | None = None, modules=("backbone", "head"), **settings
              ) -> IslandsModule:
    delta = deltaconvert.convert(model or Pyramid(), modules=list(modules), **settings)
    assert isinstance(delta, IslandsModule)
    return delta


def assert_agrees(model: nn.Module, delta: nn.Module, frames: list) -> None:
    for time, frame in enumerate(frames):
        inputs = frame if isinstance(frame, tuple) else (frame,)
        with torch.no_grad():
            expected = model(*inputs)
        torch.testing.assert_close(delta(*inputs), expected, msg=lambda m, t=time: f"{t}: {m}")


def work(stream) -> dict[str, int]:
    """Multiply-adds that the last frame needed, by call."""
    sums: dict[str, int] = {}
    for name, stats in stream.last.items():
        label = name.partition(":")[0]
        sums[label] = sums.get(label, 0) + stats.needed
    return sums


def test_it_cannot_be_traced_whole():
    with pytest.raises(TraceError, match="Pyramid cannot be traced"):
        deltaconvert.convert(Pyramid())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_shared_head_has_a_past_for_each_of_its_calls(backend):
    model, frames = Pyramid(), clip()
    delta = converted(model, backend=backend)
    assert_agrees(model, delta, frames)
    assert list(delta.stream.calls) == ["backbone", "head", "head[2]"]
    assert min(work(delta.stream).values()) > 0
    first = sum(s.dense for s in delta.stream.last.values())
    assert sum(work(delta.stream).values()) < first
    delta(frames[-1])
    assert set(work(delta.stream).values()) == {0}


def test_calls_of_equal_shapes_do_not_mix():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Conv2d(3, 2, 3)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            gap = self.encoder(one) - self.encoder(other)
            return gap if float(one.sum()) < 1e6 else gap + 1

    model, frames = Pair(), list(zip(clip(), clip(count=5)[:0:-1], strict=True))
    delta = converted(model, ["encoder"])
    assert_agrees(model, delta, frames)
    delta(*frames[-1])
    assert work(delta.stream) == {"encoder": 0, "encoder[2]": 0}


def test_the_model_is_untouched_and_the_state_dict_its_own():
    model = Pyramid()
    before = copy.deepcopy(model.state_dict())
    forwards = [m.forward for m in model.modules()]
    delta = converted(model)
    delta(clip()[0])
    assert [m.forward for m in model.modules()] == forwards
    assert model.backbone[2].inplace
    assert list(delta.state_dict()) == list(before)
    for name, value in delta.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.data_ptr() != model.state_dict()[name].data_ptr() or not value.numel()


def test_a_copy_has_its_own_weights_and_islands():
    delta = converted()
    delta(clip()[0])
    copied, stream = copy.deepcopy((delta, delta.new_stream()))
    with torch.no_grad():
        delta.model.scale.fill_(3)
        for parameter in delta.model.head.parameters():
            parameter.zero_()
    delta.load_state_dict(delta.state_dict())
    assert_agrees(Pyramid(), copied, clip())
    assert_agrees(Pyramid(), stream, clip())
    assert work(copied.stream)
    assert not delta(clip()[0])["0"].any()
    with pytest.raises(UnsupportedError, match="not pickled"):
        pickle.dumps(copied)


def test_new_weights_and_another_dtype_reach_the_islands():
    model, other, frames = Pyramid(), Pyramid(), clip()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    delta = converted(model)
    assert_agrees(model, delta, frames[:2])
    delta.load_state_dict(other.state_dict())
    assert_agrees(other, delta, frames)
    assert_agrees(other.double(), delta.double(), [f.double() for f in frames])


def test_what_surrounds_an_island_finds_it_as_it_was():
    class Inside(nn.Conv2d):
        stride_of_all = 7

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = Inside(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.inside, Inside)
            y = self.inside(x) * self.inside.stride_of_all + self.inside.bias.view(-1, 1, 1)
            return y if float(y.sum()) else -y

    model = Outside()
    seen: list[int] = []
    model.inside.register_forward_hook(lambda *_: seen.append(1))
    delta = converted(model, ["inside"])
    assert_agrees(model, delta, clip())
    assert len(seen) == 8  # four frames, both models


def test_a_batch_that_differs_from_frame_to_frame_is_left_to_the_dense_submodule():
    model = Boxes()
    delta = converted(model, ["head"])
    still = torch.zeros(1, 3, 8, 8)
    more = still.clone()
    more[0, 0, 7, :3] = 3
    assert_agrees(model, delta, [still, more, still, more, more, more])
    assert work(delta.stream) == {"head": 0}  # four crops twice: from then on a stream


def test_arguments_that_are_no_frames_go_to_the_dense_submodule():
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 2, 3)
            self.block = Optional_(nn.Conv2d(2, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.block(self.inner(x), scale=2.0)
            return y if float(y.sum()) else -y

    class Optional_(nn.Module):
        def __init__(self, conv: nn.Module) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.conv(x) * scale

    model = Lists()
    delta = converted(model, ["inner", "block"])
    assert_agrees(model, delta, clip())
    assert list(delta.stream.calls) == ["inner"]


def test_streams_are_apart_and_reset_forgets():
    model, frames = Pyramid(), clip()
    delta = converted(model)
    other = delta.new_stream()
    for mine, theirs in zip(frames, reversed(frames), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(delta(mine), model(mine))
            torch.testing.assert_close(other(theirs), model(theirs))
    bytes_before = delta.stream.state_bytes
    assert bytes_before > 0
    delta.reset()
    assert delta.stream.state_bytes == 0
    delta(frames[-1])
    assert delta.stream.state_bytes == bytes_before
    assert sum(work(delta.stream).values()) == sum(s.dense for s in delta.stream.last.values())


def test_a_second_thread_in_a_stream_is_refused():
    entered, leave = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            entered.set()
            assert leave.wait(10)
            return self.conv(x)

    delta = converted(Waits(), ["conv"])
    thread = threading.Thread(target=delta, args=(clip()[0],))
    thread.start()
    assert entered.wait(10)
    with pytest.raises(StreamBusyError, match="new_stream"):
        delta(clip()[0])
    leave.set()
    thread.join()
    delta(clip()[0])


def test_thresholds_go_by_the_path_in_the_model():
    delta = converted(threshold=0.01, nodes={"backbone.0": 0.5}, backend="reference")
    frames = clip()
    for frame in frames:
        delta(frame)
    assert check_law(delta, frames) == []
    thresholds = {n.about.name: n.about.threshold for n in delta.stream.program.nodes
                  if n.about.operator and n.about.operator.name == "conv2d"}
    assert thresholds["backbone:_0"] == 0.5
    assert all(node.about.path.startswith(node.about.name.partition("[")[0].partition(":")[0])
               for node in delta.stream.program.nodes)
    looser = delta.with_config(delta.config.replace(threshold=0.0, nodes={}))
    assert_agrees(Pyramid(), looser, frames)


def test_settings_of_nodes_outside_all_islands_are_refused():
    with pytest.raises(ConfigError, match=r"nodes\['neck.\*'\] is in no island: .* backbone\., "):
        converted(nodes={"neck.*": 0.1})


def test_validate_names_each_call_and_finds_a_broken_law():
    model, frames = Pyramid(), clip()
    delta = converted(model, backend="reference")
    report = deltaconvert.validate(model, delta, frames)
    assert report.passed
    assert report.exact
    assert report.law_nodes == len(delta_nodes(delta, frames))
    assert deltaconvert.validate(None, delta, frames).passed
    stream = delta.new_stream()
    checker = LawChecker(delta, each=False)
    stream.observe(checker)
    checker.begin(frames[0])
    stream(frames[0])
    second = stream.calls["head[2]"]
    second._state.edges[second.program.nodes[-1].about.name].value.add_(1.0)
    breaches = checker.check()
    assert [b.node.partition(":")[0] for b in breaches] == ["head[2]"]


def delta_nodes(delta: IslandsModule, frames: list[Tensor]) -> list[str]:
    stream = delta.new_stream()
    stream(frames[0])
    names = [n.about.name for n in stream.program.nodes]
    assert len(names) == len(set(names))
    return names


def test_the_summary_has_a_table_for_each_call():
    delta = converted()
    assert delta.summary() == "backbone: not called yet\n\nhead: not called yet"
    delta(clip()[0])
    text = delta.summary()
    assert [line for line in text.splitlines() if line.endswith(":")] == [
        "backbone:", "head:", "head[2]:"]
    assert text.count("multiply-adds:") == 3


def test_a_frame_that_an_island_refuses_says_which():
    delta = converted()
    with pytest.raises(FrameError, match=r"^backbone: .*(NaN|not a number|not finite)"):
        delta(torch.full((1, 3, 16, 18), float("nan")))


@pytest.mark.parametrize("modules, message", [
    (["neck"], r"Pyramid has no submodule 'neck'; its children are backbone, head"),
    ([""], r"has no submodule ''"),
    (["backbone", "backbone.0"], r"backbone\.0 is a part of backbone"),
    ([], r"modules=\[\] leaves nothing"),
    ("backbone", r"give a list of paths, \['backbone'\], or 'auto'"),
])
def test_wrong_paths_are_refused(modules, message):
    with pytest.raises(InputError, match=message):
        deltaconvert.convert(Pyramid(), modules=modules)


def test_a_submodule_that_cannot_be_traced_is_named():
    outer = nn.Sequential(Pyramid())
    with pytest.raises(TraceError, match=r"^0: Pyramid cannot be traced"):
        deltaconvert.convert(outer, modules=["0"])


def test_a_file_cannot_hold_what_is_between_islands(tmp_path):
    delta = converted()
    with pytest.raises(UnsupportedError, match=r"Pyramid runs code of its own.*islands\[path\]"):
        deltaconvert.save(delta, tmp_path / "x.delta")
    assert not list(tmp_path.iterdir())
    deltaconvert.save(delta.islands["backbone"], tmp_path / "backbone.delta")
    frame = clip()[0]
    torch.testing.assert_close(deltaconvert.load(tmp_path / "backbone.delta")(frame),
                               Pyramid().backbone(frame).detach())


def test_a_converted_model_is_not_converted_again():
    with pytest.raises(InputError, match="converted already"):
        deltaconvert.convert(converted())


# --- finding them -----------------------------------------------------------------------


def test_auto_takes_the_largest_that_can_be_traced():
    class RoIHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    model = Pyramid()
    model.by_region = RoIHeads()
    model.plain = nn.Linear(3, 3)
    delta = deltaconvert.convert(nn.ModuleDict({"m": model})["m"], modules="auto")
    assert list(delta.islands) == ["backbone", "head"]
    assert_agrees(model, delta, clip())


def test_auto_converts_whole_what_can_be_traced_whole():
    assert isinstance(deltaconvert.convert(Pyramid().backbone, modules="auto"),
                      deltaconvert.DeltaModule)


def test_auto_with_frames_takes_what_is_called_with_tensors_and_may_branch_on_shapes():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.pad(x, (0, 1)) if x.shape[-1] % 2 else x)

    model = Pyramid()
    model.backbone.insert(0, Branches())
    model.backbone[1] = nn.Conv2d(2, 8, 3)
    model.unused = nn.Conv2d(3, 3, 1)
    assert next(iter(deltaconvert.convert(model, modules="auto").islands)) == "backbone.0.conv"
    frames = clip(1, 3, 16, 17)
    delta = deltaconvert.convert(model, frames[0], modules="auto")
    assert list(delta.islands) == ["backbone", "head"]
    assert_agrees(model, delta, [*frames, *clip(1, 3, 14, 16)])


@pytest.mark.parametrize("given", [0, 1])
def test_auto_converts_the_parts_of_what_turns_out_to_keep_a_buffer(given):
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.register_buffer("past", torch.ones(1, 3, 16, 18))

        def forward(self, x: Tensor) -> Tensor:
            past = self.past.reshape_as(x)  # a view, as only a call tells
            past += x
            return self.conv(x) * self.past
    model, frames = Counts(), clip()
    with pytest.raises(UnsupportedError, match=r"keeps past from frame to frame.*modules="):
        deltaconvert.convert(model, frames[0])
    delta = deltaconvert.convert(model, frames[:given], modules="auto")
    assert list(delta.islands) == ["conv"]
    assert_agrees(model, delta, frames)


def writes_its_weights(self, x):
    with torch.no_grad():
        self.part[0].weight.mul_(1.1)
    return self.part(x)


def has_other_weights(self, x):
    self.part[0].weight = nn.Parameter(self.part[0].weight * 1.1)
    return self.part(x)


def trains_it_in_turn(self, x):
    self.part.train(not self.part.training)
    return self.part(x)


def maps_it_over_the_batch(self, x):
    return torch.vmap(self.part)(x[:, None]).squeeze(1)


class Around(nn.Module):
    """Calls a part as a function does, behind what cannot be traced."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.0), nn.BatchNorm2d(4), nn.ReLU())
        self.function = function

    def forward(self, x):
        return self.function(self, x + 1 if x.sum() > 0 else x)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("function", [writes_its_weights, has_other_weights, trains_it_in_turn,
                                      maps_it_over_the_batch])
def test_an_island_that_the_model_changes_is_left_to_the_dense_submodule(function, given):
    dense = Around(function).eval()
    frames = [torch.rand(2, 3, 8, 9) for _ in range(4)]
    delta = deltaconvert.convert(copy.deepcopy(dense), frames[0] if given else None, modules="auto")
    with torch.no_grad():
        for frame in frames:
            torch.testing.assert_close(delta(frame), dense(frame))


@pytest.mark.parametrize("modules", [None, ["0"]])
def test_a_transform_of_a_converted_model_is_refused(modules):
    delta = deltaconvert.convert(nn.Sequential(nn.Conv2d(3, 4, 3)), modules=modules)
    with pytest.raises(UnsupportedError, match=r"not transformed by torch\.func"):
        torch.vmap(delta)(torch.rand(2, 1, 3, 8, 9))


def test_auto_says_where_there_is_nothing():
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) else -x

    with pytest.raises(TraceError, match="Nothing has no submodule with convolutions"):
        deltaconvert.convert(Nothing(), modules="auto")


def test_strict_with_frames_answers_at_once():
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cummax(x, 1)[0]

    model = Pyramid()
    model.backbone.append(Odd())
    with pytest.raises(UnsupportedError, match="cummax"):
        deltaconvert.convert(model, clip()[0], modules=["backbone"], strict=True)


class Collecting(nn.Module):
    """Reads what hooks on the layers of an encoder kept; the first frame puts them there."""

    def __init__(self, lazy):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), nn.Conv2d(4, 4, 3, padding=1))
        self.kept = []
        if not lazy:
            self.watch()

    def watch(self):
        self.encoder[0].register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.kept.append(output)

    def forward(self, x):
        if not self.encoder[0]._forward_hooks:
            self.watch()
        self.kept.clear()
        out = self.encoder(x)
        return out * float(out.mean() > 1e9) + self.kept[-1]


@pytest.mark.parametrize("lazy, islands", [(False, ["encoder.0", "encoder.1"]),
                                           (True, ["encoder"])])
def test_what_hooks_within_keep_is_the_frames_own(lazy, islands):
    model = Collecting(lazy).eval()
    delta = deltaconvert.convert(model, modules="auto")
    assert list(delta.islands) == islands
    for frame in torch.rand(3, 1, 3, 8, 9):
        with torch.no_grad():
            torch.testing.assert_close(delta(frame), model(frame))


def test_an_island_with_hooks_within_is_refused():
    with pytest.raises(TraceError, match=r"encoder: a submodule has forward hooks.*handle.remove"):
        deltaconvert.convert(Collecting(lazy=False).eval(), modules=["encoder"])
