"""What a forward keeps for the next frame is refused; what it only leaves behind is not."""

from __future__ import annotations

from collections import OrderedDict, deque
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert.errors import TraceError
from tests.passes.graphs import Model, frames_like

FRAME = torch.randn(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))


def assigned(self, x):
    y = self.conv(x)
    self.past = 0.9 * self.past + 0.1 * y
    return y - self.past


def written(self, x):
    y = self.conv(x)
    self.past.mul_(0.9).add_(0.1 * y)
    return y - self.past


def written_by_its_item(self, x):
    self.past[:, 0] = self.conv(x)[:, 1]
    return self.past * 2


def added_to(self, x):
    self.past += self.conv(x)
    return self.past * 2


def counted(self, x):
    self.count += 1
    return self.conv(x) * self.count


def none_at_first(self, x):
    y = self.conv(x)
    if self.hidden is None:
        self.hidden = torch.zeros_like(y)
    self.hidden = torch.tanh(y + self.hidden)
    return self.hidden


def in_a_list(self, x):
    y = self.conv(x)
    last = self.queue[-1] if self.queue else y
    self.queue.append(y)
    return y - last


def in_a_submodule(self, x):
    self.part.before, before = self.conv(x), self.part.before
    return self.conv(x) - before


def counted_and_computed_with(self, x):
    self.count += 1
    return self.conv(x) * (self.count % 2)


def counted_anew(self, x):
    self.count = self.count + 1
    return self.conv(x) * self.count


def counted_by_a_number(self, x):
    self.number += 1
    return self.conv(x) * self.number


def every_thirtieth(self, x):
    self.number += 1
    return self.conv(x) * (2 if self.number % 30 == 0 else 1)


def after_the_fifth(self, x):
    self.count = self.count + 1
    return self.conv(x) * (2 if self.count > 5 else 1)


def from_the_second_on(self, x):
    first, self.warm = not self.warm, True
    return self.conv(x) * (1 if first else 2)


def in_turn(self, x):
    self.number = (self.number + 1) % 2
    return self.conv(x) + self.past[:, self.number:self.number + 1]


def decayed(self, x):
    self.past.mul_(0.9)
    return self.conv(x) + self.past.sum()


def through_a_view(self, x):
    self.past.view(2, 6, 7).mul_(0.5).add_(self.conv(x)[0])
    return self.past * 2


def by_a_parameter(self, x):
    y = self.conv(x)
    self.learnt.data.copy_(y)
    return y + self.learnt * 2


def of_weights(self, x):
    self.conv.weight.detach().mul_(0.5)
    return self.conv(x)


def made_at_first_and_written(self, x):
    y = self.conv(x)
    if self.hidden is None:
        self.hidden = torch.zeros_like(y)
    self.hidden.mul_(0.9).add_(y)
    return self.hidden * 2


def made_of_numbers_and_written(self, x):
    if self.hidden is None:
        self.hidden = torch.zeros(1, 2, 6, 7)
    self.hidden.mul_(0.9).add_(self.conv(x))
    return self.hidden * 2


def in_a_deque(self, x):
    self.last.append(self.conv(x))
    return sum(self.last)


def in_an_object(self, x):
    y, self.settings.before = self.settings.before, self.conv(x)
    return y - self.settings.before


def by_the_shape_of_the_last(self, x):
    y = self.conv(x)
    if self.hidden is None or self.hidden[0] != x.shape:
        self.hidden = x.shape, torch.zeros_like(y)
    self.hidden = x.shape, self.hidden[1] * 0.5 + y
    return self.hidden[1] * 2


def another_first_frame_of_a_shape(self, x):
    first, self.number = self.number != x.shape, x.shape
    return self.conv(x) * (2 if first else 1)


def a_grid_that_is_written_into(self, x):
    if self.number != x.shape:
        self.hidden, self.number = torch.arange(x.shape[3]).type_as(x), x.shape
    else:
        self.hidden += 1
    return self.conv(x) * self.hidden


def another_grid_than_it_left(self, x):
    if self.number != x.shape:
        grid, self.number = torch.ones_like(x[:, :1]), x.shape
        self.hidden = grid * 2
        return self.conv(x) + grid
    return self.conv(x) + self.hidden


def as_a_number_of_the_last(self, x):
    before = torch.zeros_like(x) if self.hidden is None else self.hidden
    self.hidden = torch.full_like(x, x.mean())
    return self.conv(x - before)


def as_a_copy_of_the_last(self, x):
    before = torch.zeros_like(x) if self.hidden is None else self.hidden
    self.hidden = x.new_tensor(x)
    return self.conv(x - before)


SEEN = []


def in_a_global(self, x):
    SEEN.append(self.conv(x))
    return SEEN[0]


def a_count_beside_a_grid(self, x):
    if self.number == 0:
        self.hidden = torch.ones_like(x[:, :1])
    self.number += 1
    return self.conv(x) * self.hidden * self.number


def a_list_of_the_last_beside_a_grid(self, x):
    first, self.queue = not self.queue, [[*x.shape]]
    self.hidden = torch.ones_like(x[:, :1])
    return self.conv(x) * (2 if first else 1) * self.hidden


def from_the_third_on_beside_a_grid(self, x):
    if self.queue != [[*x.shape]]:
        self.queue, self.hidden = [[*x.shape]], torch.ones_like(x[:, :1])
        return self.conv(x) * self.hidden
    first, self.warm = not self.warm, True
    return self.conv(x) * self.hidden if first else self.conv(x)


STATES = {f.__name__: (f, name) for f, name in (
    (as_a_number_of_the_last, "hidden"), (as_a_copy_of_the_last, "hidden"),
    (counted_and_computed_with, "count"), (counted_anew, "count"), (counted_by_a_number, "number"),
    (every_thirtieth, "number"), (after_the_fifth, "count"), (from_the_second_on, "warm"),
    (in_turn, "number"), (decayed, "past"), (through_a_view, "past"), (by_a_parameter, "learnt"),
    (of_weights, "conv.weight"), (made_at_first_and_written, "hidden"),
    (made_of_numbers_and_written, "hidden"), (in_a_deque, "last"),
    (in_an_object, "settings.before"), (in_a_global, "tests.passes.tracing.test_find_state.SEEN"),
    (assigned, "past"), (written, "past"), (written_by_its_item, "past"), (added_to, "past"),
    (counted, "count"), (none_at_first, "hidden"), (in_a_list, "queue"),
    (in_a_submodule, "part.before"))}


class OfAClass(Model):
    last: list[Tensor] | Tensor | None = None
    queue: ClassVar[list[Tensor]] = []


def in_its_class(self, x):
    y, last = self.conv(x), OfAClass.last
    OfAClass.last = y
    return y if last is None else y - last


def in_a_list_of_its_class(self, x):
    OfAClass.queue.append(self.conv(x))
    return OfAClass.queue[0] * 2


def around_a_forward():
    last = None

    def in_a_closure(self, x):
        nonlocal last
        y, before = self.conv(x), last
        last = y
        return y if before is None else y - before
    return in_a_closure


LAST = None


def in_a_global_name(self, x):
    global LAST
    y, before = self.conv(x), LAST
    LAST = y
    return y if before is None else y - before


SHARED = {f.__name__: (f, name) for f, name in (
    (in_its_class, "OfAClass.last"), (in_a_list_of_its_class, "OfAClass.queue"),
    (around_a_forward(), "last"),
    (in_a_global_name, "tests.passes.tracing.test_find_state.LAST"))}


@pytest.mark.parametrize("name", SHARED)
def test_state_in_what_the_code_shares_is_named_and_nothing_is_left(name):
    function, attribute = SHARED[name]
    stateful = OfAClass(function, conv=nn.Conv2d(3, 2, 3))
    with pytest.raises(TraceError, match=f"keeps {attribute} from frame to frame"):
        deltaconvert.convert(stateful)
    islands = deltaconvert.convert(stateful, modules="auto")
    for kept in (OfAClass.last, LAST, *OfAClass.queue):
        assert kept is None
    assert type(islands(FRAME)) is type(islands(FRAME)) is Tensor
    OfAClass.last = None
    OfAClass.queue.clear()


def left_for_others(self, x):
    self.seen = self.conv(x)
    return F.relu(self.seen)


def counted_in_vain(self, x):
    self.count += 1
    return self.conv(x)


def grid_of_a_shape(self, x):
    if self.hidden is None:
        self.hidden = torch.ones_like(x[:, :1])
    return self.conv(x) + self.hidden


def to_where_it_is(self, x):
    self.past = self.past.to(x.dtype)
    return self.conv(x) + self.past


def canvas(self, x):
    made = torch.zeros(1, 3, 8, 9)
    made[:, :, 1:7, 1:8] = x
    return self.conv(made)


def counted_by_a_number_in_vain(self, x):
    self.number += 1
    return self.conv(x)


def in_a_deque_for_others(self, x):
    self.last.append(self.conv(x))
    return self.last[-1] * 2


GRIDS = {}


def grid_of_a_shape_in_a_global(self, x):
    key = str(x.shape)
    if key not in GRIDS:
        GRIDS[key] = torch.ones_like(x[:, :1])
    return self.conv(x) + GRIDS[key]


def written_through_its_data(self, x):
    y = self.conv(x)
    y.data[:, :1] = 0
    y.data += 1
    return y * 2


HARMLESS = {f.__name__: f for f in (counted_by_a_number_in_vain, in_a_deque_for_others,
                                    grid_of_a_shape_in_a_global, written_through_its_data,
                                    left_for_others, counted_in_vain, grid_of_a_shape,
                                    to_where_it_is, canvas)}


SHAPED = {f.__name__: (f, name) for f, name in (
    (by_the_shape_of_the_last, "hidden"), (another_first_frame_of_a_shape, "number"),
    (a_grid_that_is_written_into, "hidden, number"),
    (another_grid_than_it_left, "hidden, number"),
    (a_count_beside_a_grid, "hidden, number"),
    (a_list_of_the_last_beside_a_grid, "hidden, queue"),
    (from_the_third_on_beside_a_grid, "hidden, queue"))}


def model(function) -> Model:
    torch.manual_seed(0)
    made = Model(function, conv=nn.Conv2d(3, 2, 3, padding=1), hidden=None, queue=[],
                 part=nn.Identity(), number=0, warm=False, last=deque(maxlen=2),
                 settings=SimpleNamespace(before=torch.zeros(1, 2, 6, 7)),
                 learnt=torch.zeros(1, 2, 6, 7))
    made.part.before = torch.zeros(1, 2, 6, 7)
    made.register_buffer("past", torch.arange(84.0).view(1, 2, 6, 7) / 84)
    made.register_buffer("count", torch.zeros(()))
    return made


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("frames", [[], [FRAME]], ids=["by shape", "with a frame"])
def test_state_is_refused_by_its_name(name, frames):
    function, attribute = STATES[name]
    with pytest.raises(TraceError, match=rf"Model cannot be converted whole: it keeps {attribute} "
                                         r"from frame to frame.*modules='auto'"):
        deltaconvert.convert(model(function), frames)


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("frames", [[], [FRAME]], ids=["guessed", "with a frame"])
def test_state_beside_a_shape_is_refused_by_its_name(name, frames):
    function, attributes = SHAPED[name]
    with pytest.raises(TraceError, match=f"keeps {attributes} from frame to frame"):
        deltaconvert.convert(model(function), frames)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_only_left_is_no_state(name):
    frames = [f.float()[:, :, :6, :7] for f in frames_like(1, 3, 6, 7)]
    delta = deltaconvert.convert(model(HARMLESS[name]))
    for frame in frames:
        with torch.no_grad():
            torch.testing.assert_close(delta(frame), model(HARMLESS[name])(frame))
    assert delta.state_dict().keys() == model(HARMLESS[name]).state_dict().keys()
    for value, before in zip(delta.state_dict().values(),
                             model(HARMLESS[name]).state_dict().values(), strict=True):
        assert torch.equal(value, before)


def test_the_parts_without_state_are_converted():
    frames = [f.float() for f in frames_like(1, 3, 6, 7)]
    dense, delta = model(written), deltaconvert.convert(model(written), FRAME, modules="auto")
    assert list(delta.islands) == ["conv"]
    for frame in frames:
        with torch.no_grad():
            torch.testing.assert_close(delta(frame), dense(frame))


def test_nothing_is_left_in_what_is_beside_the_model():
    GRIDS.clear()
    deltaconvert.convert(model(grid_of_a_shape_in_a_global))
    assert not GRIDS
    with pytest.raises(TraceError):
        deltaconvert.convert(model(in_a_global))
    assert not SEEN


@pytest.mark.parametrize("frames", [(), (FRAME,)], ids=["traced", "traced for frames"])
@pytest.mark.parametrize("key", [lambda x: (x.device, x.dtype), lambda x: x.shape],
                         ids=["device and dtype", "shape"])
def test_a_cache_may_go_by_what_a_frame_is_like(key, frames):
    """A proxy that is a key and is asked for its name, or compared, would record that as a call."""
    def scaled(self, x):
        place = key(x)
        if place not in self.scales:
            self.scales[place] = torch.full((4, 1, 1), 2.0, device=x.device)
        return self.conv(x) * self.scales[place]

    model = Model(scaled, conv=nn.Conv2d(3, 4, 3), scales={})
    delta = deltaconvert.convert(model, frames, backend="reference")
    torch.testing.assert_close(delta(FRAME), 2 * model.conv(FRAME))


def shapes_in_a_list(self, x):
    shapes = [list(x.shape[2:])]
    if self.queue != shapes:
        self.hidden = torch.arange(x.shape[3]).type_as(x).expand(1, 2, *shapes[0])
        self.queue = shapes
    return self.conv(x) * self.hidden, self.hidden[:, self.conv(x)[0, :, 0, 0].argsort()]


def sides_as_numbers(self, x):
    if (self.number, self.count) != (x.shape[2], x.shape[3]):
        self.number, self.count = x.shape[2:]
        self.hidden = 2 * torch.ones_like(x[:, :1])
    return self.conv(x) * self.hidden


@pytest.mark.parametrize("function", [shapes_in_a_list, sides_as_numbers])
@pytest.mark.parametrize("frames", [(), FRAME], ids=["guessed", "with a frame"])
def test_a_cache_may_go_by_plain_numbers_of_a_shape(function, frames):
    delta = deltaconvert.convert(cached := Model(
        function, conv=nn.Conv2d(3, 2, 3, padding=1), hidden=None, queue=[], number=0, count=0),
        frames, backend="reference")
    for frame in (FRAME, FRAME + 1, torch.randn(1, 3, 9, 5)):
        with torch.no_grad():
            torch.testing.assert_close(delta(frame), cached(frame))


class Registry(OrderedDict):
    """Files what it is given under another name, and answers with what that names."""

    def __setitem__(self, key, value):
        super().__setitem__(str(type(key)), value)

    def __getitem__(self, key):
        return getattr(F, super().__getitem__(key))


REGISTRY = Registry()
REGISTRY[1], REGISTRY["one"] = "relu", "sigmoid"


def test_a_registry_beside_the_model_is_left_alone():
    def branches(self, x):
        act = REGISTRY["<class 'int'>"]
        return act(self.conv(x)) if x.shape[-1] > 2 else x
    before = dict(dict.items(REGISTRY))
    deltaconvert.convert(Model(branches, conv=nn.Conv2d(3, 2, 3)), FRAME)(FRAME)
    assert dict(dict.items(REGISTRY)) == before
