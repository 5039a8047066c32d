"""Code that branches on shapes is followed where frames are given."""

from __future__ import annotations

import math
from threading import Event, Thread

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.checking.dense import StoredModel
from deltaconvert.passes.trace import trace


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.full((1, 4, 1, 1), 0.5))

    def forward(self, x):
        assert x.shape[-1] % 2 == 0
        x = self.conv(x) * self.scale
        if len(x.shape) == 4 and x.ndim == x.dim():
            x = F.relu(x, inplace=True)
        x = F.interpolate(x, size=(math.ceil(x.size(2) * 1.5), int(x.shape[3] * 1.5)))
        for channel in range(x.size(1)):
            x[:, channel] += channel
        first, *_ = x.chunk(2, 1)
        ones = torch.ones(x.shape[0], 1, *x.shape[2:], device=x.device)
        return first, x.view(*x.shape[:2], -1).mean(-1), x + ones


class NumberBranching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Anchored(nn.Module):
    """A head with the grid of the last size, as those of detectors are."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.stride, self.shape, self.grid = torch.tensor([2.0, 4.0]), None, torch.empty(0)

    def forward(self, x):
        x = self.conv(x)
        if self.shape != x.shape:
            columns = torch.arange(x.shape[3]).type_as(x) * self.stride[0]
            self.grid = torch.stack((columns, x.new_full((x.shape[3],), self.stride[1])))
            self.shape = x.shape
        return self.grid[:1] - x / self.grid[1:]


class OfBytes(nn.Module):
    """Takes pictures as bytes too, and goes by the dtype of what it computed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        x = self.conv(x)
        return x * 2 if x.dtype == torch.bfloat16 else x


def moving(frame: torch.Tensor) -> list[torch.Tensor]:
    frames = [frame]
    for step in range(2):
        frames.append(frames[-1].clone())
        frames[-1][:, :, 3:5, 4 + step:6 + step] += 1
    return frames


class BestChannel(nn.Module):
    """Asks for the shape of a part of what an operator returns, as RT-DETR's choice does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        best = self.conv(x).max(1, keepdim=True)
        assert best.values.shape[2] % 2 == 0
        height = best.values.shape[2]
        return best.values * height, best.values.reshape(len(x), height, -1)


@pytest.mark.parametrize("made", [Branching, Anchored, BestChannel])
@pytest.mark.parametrize("given", [(), (torch.zeros(1, 3, 16, 16),)], ids=["", "for frames"])
def test_a_branch_on_shapes_is_followed_for_each_size_that_comes(made, given):
    model = made().eval()
    delta = deltaconvert.convert(model, given)
    other = delta.new_stream()
    with torch.no_grad():
        for small, large in zip(moving(torch.randn(2, 3, 8, 10)),
                                moving(torch.randn(1, 3, 14, 12)), strict=True):
            for frame, stream in ((small, delta), (large, other)):
                torch.testing.assert_close(stream(frame), model(frame), rtol=1e-5, atol=1e-6)
        assert delta(small)[0].shape == model(small)[0].shape
        torch.testing.assert_close(delta(large), model(large), rtol=1e-5, atol=1e-6)
    assert delta.stream.last.keys() == other.last.keys()


def test_its_stored_model_follows_the_size_too():
    delta = deltaconvert.convert(Branching())
    assert deltaconvert.validate(None, delta, moving(torch.randn(1, 3, 14, 12))).passed


def test_one_size_in_another_dtype_is_traced_anew(tmp_path):
    model, frame = OfBytes().eval(), torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    delta = deltaconvert.convert(model, frame)
    with torch.no_grad():
        for given in (frame, frame / 255):
            torch.testing.assert_close(delta(given), model(given))
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(delta(given), model(given))
        assert not deltaconvert.validate(None, delta, [frame, frame]).breaches
        delta(frame / 255)
        deltaconvert.save(delta, tmp_path / "one.delta")
        stored = deltaconvert.load(tmp_path / "one.delta")
        torch.testing.assert_close(stored(frame / 255), model(frame / 255))
        with pytest.raises(deltaconvert.FrameTypeError, match=r"float32\]; these are .*uint8"):
            stored(frame)


def test_what_was_guessed_is_the_graph_of_no_frame():
    delta = deltaconvert.convert(OfBytes())
    shape, = delta.traced.traced_for
    frame = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert deltaconvert.validate(None, delta, [frame, frame]).passed
    stored = StoredModel(deltaconvert.convert(OfBytes()))
    assert stored(frame).dtype == torch.float32


def test_constants_are_kept_once_a_size():
    class Ramp(nn.Module):
        def forward(self, x):
            return x * (torch.arange(x.shape[-1]) + 1) if x.shape[-1] % 2 else x
    delta = deltaconvert.convert(Ramp(), torch.ones(1, 1, 2, 3))
    for width in (3, 5, 7):
        frame = torch.ones(1, 1, 2, width)
        assert torch.equal(delta(frame), Ramp()(frame))
    assert sum(name.startswith("_tensor_constant") for name in vars(delta._root)) == 3


def test_a_size_that_its_code_refuses_is_refused():
    delta = deltaconvert.convert(Branching())
    with pytest.raises(deltaconvert.FrameError, match=r"\(1, 3, 8, 9\).*assert x\.shape"):
        delta(torch.zeros(1, 3, 8, 9))
    assert delta(torch.zeros(1, 3, 8, 8))[0].shape == (1, 2, 12, 12)


class Flow(nn.Module):
    """Warps the second of two frames, by code that goes by the size of maps."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, one, two):
        flow = self.conv(torch.cat([one, two], 1))
        rows, cols = two.shape[2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        grid = torch.stack([x, y]).to(flow) + flow
        grid[:, 0] = 2 * grid[:, 0] / max(cols - 1, 1) - 1
        grid[:, 1] = 2 * grid[:, 1] / max(rows - 1, 1) - 1
        return F.grid_sample(two, grid.permute(0, 2, 3, 1), align_corners=True)


def test_models_of_two_frames_need_no_example_inputs():
    model = Flow().double().eval()
    delta = deltaconvert.convert(model, backend="reference")
    for size in ((8, 9), (8, 9), (5, 12)):
        one, two = torch.randn(2, 1, 3, *size, dtype=torch.float64)
        for frames in ((one, two), (two, one), (two, two), (two, two)):
            with torch.no_grad():
                torch.testing.assert_close(delta(*frames), model(*frames))


def test_a_file_is_for_one_size_which_somebody_gave(tmp_path):
    model, frame = Branching().eval(), torch.randn(1, 3, 8, 8)
    delta = deltaconvert.convert(model)
    with pytest.raises(deltaconvert.InputError, match="Run a frame of it before saving"):
        deltaconvert.save(delta, tmp_path / "none.delta")
    assert not list(tmp_path.iterdir())
    delta(frame)
    deltaconvert.save(delta, tmp_path / "one.delta")
    stored = deltaconvert.load(tmp_path / "one.delta")
    torch.testing.assert_close(stored(frame), delta(frame))
    with pytest.raises(deltaconvert.FrameError, match="branches on shapes"):
        stored(torch.zeros(1, 3, 8, 10))


def test_what_other_threads_run_is_not_recorded():
    """FX takes the place of ``nn.Module.__call__`` for the whole process while it traces."""
    beside, frame, ended, failed = nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4), Event(), []

    def run():
        while not ended.is_set():
            try:
                beside(frame)
            except Exception as error:
                failed.append(error)
                return
    thread = Thread(target=run)
    thread.start()
    try:
        for _ in range(5):
            graph = trace(Branching(), [torch.zeros(1, 3, 8, 8)]).graph
            assert sum(n.op == "call_module" for n in graph.nodes) == 1
    finally:
        ended.set()
        thread.join()
    assert not failed


def test_a_model_that_needs_no_shapes_is_traced_without_them():
    assert trace(nn.Conv2d(3, 2, 1), [torch.zeros(1, 3, 4, 4)]).meta["traced_for"] is None


def test_a_branch_on_numbers_stays_refused():
    with pytest.raises(deltaconvert.TraceError, match=r"if x.sum\(\) > 0"):
        deltaconvert.convert(NumberBranching(), torch.ones(1, 1, 2, 2))
    with pytest.raises(deltaconvert.TraceError, match=r"if x.sum\(\) > 0"):
        deltaconvert.convert(NumberBranching())


class OneSize(nn.Module):
    """As models of patches are written: it takes frames of the size that it was made for."""

    def __init__(self, image_size):
        super().__init__()
        self.image_size, self.conv = image_size, nn.Conv2d(3, 2, 3)

    def forward(self, x):
        if x.shape[-2:] != ((self.image_size,) * 2 if isinstance(self.image_size, int)
                            else self.image_size):
            raise ValueError(f"{x.shape}: wants {self.image_size}")
        return self.conv(x)


@pytest.mark.parametrize("size", [24, (16, 40)])
def test_a_model_of_one_size_says_which(size):
    model = OneSize(size).eval()
    delta = deltaconvert.convert(model)
    frame = torch.randn(1, 3, *((size, size) if isinstance(size, int) else size))
    torch.testing.assert_close(delta(frame), model(frame))
    with pytest.raises(deltaconvert.FrameError, match="wants"):
        delta(torch.randn(1, 3, 50, 50))
