"""Convolutions by tiles of two by two pixels: where they lie, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import deltaconvert
from deltaconvert.backends.cpu.convolutions import filters, winograd
from deltaconvert.backends.cpu.frames.parts import GROUPS
from deltaconvert.backends.cpu.frames.steps import CompiledStep
from deltaconvert.config import Config
from deltaconvert.nodes import Slot
from tests.backends.cpu.test_backend import LANES, Stream, conv, deconv, make_node
from tests.law.test_law import suite

TILES, PIXELS = lambda *channels: math.inf, lambda *channels: 0.0


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute by tiles whatever can be."""
    monkeypatch.setattr(winograd, "gain", TILES)


def integers(*shape: int, times: int = 1) -> Tensor:
    """Small numbers: sums of their products are exact. Filters in fours stay so, transformed."""
    generator = torch.Generator().manual_seed(sum(shape))
    return times * torch.randint(-4, 5, shape, generator=generator).float()


def exact_stream(channels: tuple[int, int], size: tuple[int, int], lanes: int = 2,
                 threads: int = 1, **params: Any) -> Stream:
    weight = integers(channels[1], channels[0] // params.get("groups", 1), 3, 3, times=4)
    case = conv(weight, bias=False, **params), [(lanes, channels[0], *size)]
    stream = Stream(make_node(case), Config(threads=threads))
    assert (tiling_of(stream) is not None) == (min(channels) >= filters.FEW_CHANNELS)
    return stream


def transposed_stream(channels: tuple[int, int], size: tuple[int, int], lanes: int = 2,
                      threads: int = 1, **params: Any) -> Stream:
    weight = integers(channels[0], channels[1] // params.get("groups", 1), 4, 4)
    name, (x, *_), settings = deconv(weight, **params)
    case = (name, (x, weight, None, None), settings), [(lanes, channels[0], *size)]
    stream = Stream(make_node(case), Config(threads=threads))
    assert tiling_of(stream) is not None
    return stream


def tiling_of(stream: Stream) -> winograd.Tiling | None:
    assert isinstance(stream.step, CompiledStep)
    kept = (k.value for k in stream.step.engine._kept)
    return next((value for value in kept if isinstance(value, winograd.Tiling)), None)


def went_by_tiles(stream: Stream) -> bool:
    """Whether the last frame's candidates were computed by tiles."""
    assert isinstance(stream.step, CompiledStep)
    return bool(stream.step.head.parts.progress[GROUPS] < 0)


def put(stream: Stream, mask: Tensor, value: Tensor) -> None:
    """Write the masked pixels of the first input; the others' masks are empty."""
    for edge, written in zip(stream.inputs, (mask, *[mask.new_zeros(mask.shape)] * 9),
                             strict=False):
        edge.value.copy_(torch.where(written[:, None].bool(), value, edge.value))
        edge.mask.copy_(written)
        edge.publish(written.flatten(1).sum(1).tolist())


def run_frames(stream: Stream) -> Tensor:
    """A first frame, and a few of which a part changes; each equals dense. Return the last."""
    lanes, _, height, width = stream.inputs[0].value.shape
    for frame, share in enumerate((1.0, 0.02, 0.3, 0.0, 1.0)):
        mask = torch.rand((lanes, height, width), generator=stream.random) < share
        put(stream, mask, integers(*stream.inputs[0].value.shape).roll(frame, 3))
        stream.step()
        stream.state.fresh[:] = [False] * lanes
        expected = stream.node.evaluate(*(edge.value for edge in stream.inputs))
        assert torch.equal(stream.output.value, expected)
    return stream.output.value


def found(pixels: list[int], height: int, width: int, down: int = 1, across: int = 1
          ) -> list[tuple[int, int]]:
    lanes = max(pixels, default=0) // (height * width) + 1
    node = make_node((conv(torch.zeros(1, 1, 3, 3), bias=False, dilation=(down, across),
                           padding=(down, across)), [(lanes, 1, height, width)]))
    tiles = np.full((winograd._most_tiles(node, 1), 2), -1, np.int32)
    total = winograd.find_tiles(np.array(pixels, np.int32), height, width, down, across, tiles)
    return [(int(pixel), int(held)) for pixel, held in tiles[:total]]


@pytest.mark.parametrize("pixels, expected", [
    ([], []),
    ([0], [(0, 1)]),
    ([8], [(8, 1)]),  # a tile may begin in an odd row, and in an odd column
    ([0, 1, 7, 8], [(0, 15)]),
    ([1, 7], [(0, 6)]),  # the upper left pixel itself is none
    ([0, 1, 2], [(0, 3), (2, 1)]),
    ([6, 7], [(0, 4), (6, 1)]),  # the end of a row, and the beginning of the next
    ([6, 13], [(6, 5)]),
    ([14, 21], [(14, 1), (21, 1)]),  # the last row of a lane, and the first of the next
    ([14, 15, 27, 34], [(14, 3), (27, 5)]),
], ids=str)
def test_tiles_of_a_map_of_three_rows_of_seven(pixels: list[int],
                                               expected: list[tuple[int, int]]) -> None:
    assert found(pixels, 3, 7) == expected


@pytest.mark.parametrize("pixels, expected", [
    ([0, 2, 14, 16], [(0, 15)]),
    ([0, 1, 2, 3], [(0, 3), (1, 3)]),  # their tiles are interleaved
    ([0, 1, 2, 3, 4], [(0, 3), (1, 3), (4, 1)]),
    ([0, 7, 14], [(0, 5), (7, 1)]),
    ([7, 21, 23], [(7, 1), (21, 3)]),  # of two lanes
], ids=str)
def test_dilated_tiles_of_a_map_of_three_rows_of_seven(
        pixels: list[int], expected: list[tuple[int, int]]) -> None:
    assert found(pixels, 3, 7, 2, 2) == expected


@suite(100)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.data())
def test_every_candidate_is_in_one_tile_of_its_lane(height: int, width: int, down: int,
                                                    across: int, data: st.DataObject) -> None:
    pixels = sorted(data.draw(st.sets(st.integers(0, 3 * height * width - 1))))
    held = []
    for first, bits in found(pixels, height, width, down, across):
        assert bits in range(1, 16)
        for k in range(4):
            if bits >> k & 1:
                pixel = first + k // 2 * down * width + k % 2 * across
                assert pixel // width == first // width + k // 2 * down
                assert pixel // (height * width) == first // (height * width)
                held.append(pixel)
    assert sorted(held) == pixels


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (7, 4), (8, 8)])
@pytest.mark.parametrize("channels", [(16, 16), (23, 17), (64, 80), (1040, 16)])
@pytest.mark.usefixtures("tiled")
def test_is_exact(channels: tuple[int, int], size: tuple[int, int]) -> None:
    run_frames(exact_stream(channels, size))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (8, 8)])
@pytest.mark.parametrize("channels", [(16, 16), (23, 17), (64, 80)])
@pytest.mark.usefixtures("tiled")
def test_transposed_is_exact(channels: tuple[int, int], size: tuple[int, int]) -> None:
    stream = transposed_stream(channels, size)
    run_frames(stream)
    assert went_by_tiles(stream)


@pytest.mark.parametrize("padding, more", [((0, 0), (0, 0)), ((0, 1), (1, 0)), ((2, 2), (1, 1)),
                                           ((3, 0), (0, 1))])
@pytest.mark.usefixtures("tiled")
def test_transposed_with_any_padding(padding: tuple[int, int], more: tuple[int, int]) -> None:
    run_frames(transposed_stream((16, 16), (5, 6), padding=padding, output_padding=more))


@pytest.mark.parametrize("channels, groups", [((34, 60), 2), ((64, 32), 16)])
@pytest.mark.usefixtures("tiled")
def test_transposed_in_groups(channels: tuple[int, int], groups: int) -> None:
    run_frames(transposed_stream(channels, (5, 7), groups=groups))


@pytest.mark.parametrize("channels, size", [((48, 40), (20, 28)), ((512, 384), (5, 12)),
                                            ((272, 272), (5, 80))], ids=str)
@pytest.mark.usefixtures("tiled")
def test_transposed_by_two_workers_comes_to_the_same(channels: tuple[int, int],
                                                     size: tuple[int, int]) -> None:
    shared = run_frames(transposed_stream(channels, size, lanes=1, threads=2))
    assert torch.equal(shared, run_frames(transposed_stream(channels, size, lanes=1)))


@pytest.mark.parametrize("value", [math.nan, math.inf, 3.4e38])
@pytest.mark.usefixtures("tiled")
def test_transposed_what_is_not_finite_reaches_its_readers_alone(value: float) -> None:
    node = transposed_stream((16, 16), (6, 7)).node
    node.about.args[1].abs_().add_(4)
    stream = Stream(node, Config(threads=1))
    x = integers(2, 16, 6, 7)
    x[1, 5, 3, 4] = value
    put(stream, torch.ones(2, 6, 7), x)
    stream.step()
    torch.testing.assert_close(stream.output.value, node.evaluate(x), equal_nan=True)


@pytest.mark.parametrize("channels", [(1, 16), (3, 64), (7, 7), (64, 1)])
@pytest.mark.usefixtures("tiled")
def test_few_channels_are_left_to_the_definition(channels: tuple[int, int]) -> None:
    run_frames(exact_stream(channels, (5, 7)))


@pytest.mark.parametrize("padding", [(0, 0), (0, 1), (2, 2), (3, 0)])
@pytest.mark.usefixtures("tiled")
def test_any_padding(padding: tuple[int, int]) -> None:
    run_frames(exact_stream((16, 16), (5, 6), padding=padding))


@pytest.mark.parametrize("dilation", [(2, 2), (1, 3), (4, 1), (6, 9)])
@pytest.mark.parametrize("size", [(3, 5), (8, 9), (13, 20)])
@pytest.mark.usefixtures("tiled")
def test_dilated_is_exact(size: tuple[int, int], dilation: tuple[int, int]) -> None:
    stream = exact_stream((16, 23), size, dilation=dilation, padding=dilation)
    run_frames(stream)
    assert went_by_tiles(stream)


@pytest.mark.parametrize("padding", [(0, 0), (3, 1)])
@pytest.mark.usefixtures("tiled")
def test_dilated_with_any_padding_and_in_groups(padding: tuple[int, int]) -> None:
    run_frames(exact_stream((34, 60), (9, 11), dilation=(2, 3), padding=padding, groups=2))


def test_dilated_frames_choose_between_tiles_and_pixels() -> None:
    stream = exact_stream((64, 64), (24, 24), lanes=1, dilation=(2, 2), padding=(2, 2))
    run_frames(stream)
    assert went_by_tiles(stream)
    single = torch.zeros(1, 24, 24)
    single[0, 0, 0] = 1
    put(stream, single, stream.inputs[0].value + 1)
    stream.step()
    assert torch.equal(stream.output.value, stream.node.evaluate(stream.inputs[0].value))
    assert not went_by_tiles(stream)


@pytest.mark.parametrize("channels, groups", [((34, 60), 2), ((64, 32), 16), ((48, 96), 3)])
@pytest.mark.usefixtures("tiled")
def test_groups(channels: tuple[int, int], groups: int) -> None:
    run_frames(exact_stream(channels, (9, 14), groups=groups))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.usefixtures("tiled")
def test_padding_modes(mode: str) -> None:
    model = nn.Conv2d(16, 16, 3, padding=1, padding_mode=mode, bias=False).eval()
    model.weight.data = integers(16, 16, 3, 3, times=4)
    delta = deltaconvert.convert(model, config=Config(backend="cpu", threads=1))
    frame = integers(1, 16, 5, 7)
    for pixel in (None, (0, 0), (2, 3), (4, 6), (0, 5)):
        if pixel:
            frame[:, :, *pixel] += 3
        with torch.inference_mode():
            assert torch.equal(delta(frame), model(frame))


@pytest.mark.parametrize("channels, size, parts", [
    ((48, 40), (40, 56), 1),  # many tiles, shared
    ((512, 384), (5, 12), 2),  # few tiles of a large filter: its columns are shared
    ((272, 272), (5, winograd.TILES * 5 // 3), 2),  # the same, two chunks and a half
], ids=["tiles", "columns", "chunks of columns"])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
@pytest.mark.usefixtures("tiled")
def test_workers_come_to_the_same(channels: tuple[int, int], size: tuple[int, int],
                                  parts: int, dilation: tuple[int, int]) -> None:
    shared, alone = (exact_stream(channels, size, lanes=1, threads=threads, dilation=dilation,
                                  padding=dilation) for threads in (2, 1))
    assert torch.equal(run_frames(shared), run_frames(alone))
    tiling = tiling_of(shared)
    assert tiling is not None
    assert tiling.frame[winograd._PARTS] == parts


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("activation", [None, ("relu",), ("silu",), ("tanhshrink",)], ids=str)
@pytest.mark.usefixtures("tiled")
def test_residual_activation_and_threshold(activation: tuple[Any, ...] | None, norm: str,
                                           threads: int) -> None:
    weight = torch.randn(24, 24, 3, 3, generator=torch.Generator().manual_seed(0)) / 15
    shape = (LANES, 24, 41, 43)
    case = conv(weight, residual=Slot(1), activation=activation), [shape, shape]
    stream = Stream(make_node(case, threshold=0.4, norm=norm), Config(threads=threads))
    assert stream.step.engine.calls_python == (activation == ("tanhshrink",))  # type: ignore
    stream.run()
    stream.change(0.3, [0], size=1e-3)
    assert stream.check().candidates > sum(stream.output.counts)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.4e38, -3.4e38])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("tiled")
def test_what_is_not_finite_reaches_its_readers_alone(value: float, threads: int) -> None:
    stream = exact_stream((16, 16), (7, 9), threads=threads)
    stream.node.about.args[1].abs_().add_(4)  # sums overflow to infinity, and never to NaN
    stream = Stream(stream.node, Config(threads=threads))
    good = integers(2, 16, 7, 9)
    put(stream, torch.ones(2, 7, 9), good)
    stream.step()
    stream.state.fresh[:] = [False] * 2
    before = stream.output.value.clone()
    for y, x in ((3, 4), (2, 3), (0, 0), (6, 8)):
        bad, mask = good.clone(), torch.zeros(2, 7, 9)
        bad[1, 5, y, x], mask[1, y, x] = value, 1
        put(stream, mask, bad)
        stream.step()
        reached = F.max_pool2d(mask, 3, 1, 1).bool()
        result = stream.output.value.permute(1, 0, 2, 3)
        assert torch.equal(result[:, ~reached], before.permute(1, 0, 2, 3)[:, ~reached])
        expected = stream.node.evaluate(bad)
        torch.testing.assert_close(stream.output.value, expected, equal_nan=True)
        put(stream, mask, good)
        stream.step()
        assert torch.equal(stream.output.value, before)
        tiling = tiling_of(stream)
        assert tiling is not None
        assert not tiling.rows.spoiled.any()


@pytest.mark.usefixtures("tiled")
def test_what_overflows_on_the_way_is_computed_by_the_definition() -> None:
    weight = torch.zeros(16, 16, 3, 3)
    weight[range(16), range(16), 1, 1] = 1  # the output is the input
    stream = Stream(make_node((conv(weight, bias=False), [(1, 16, 6, 6)])), Config(threads=1))
    huge = torch.where(torch.arange(36).view(6, 6) % 5 < 3, 3e38, -3e38).expand(1, 16, 6, 6)
    put(stream, torch.ones(1, 6, 6), huge)
    stream.step()
    assert torch.equal(stream.output.value, huge)


@pytest.mark.usefixtures("tiled")
def test_pixels_between_zeros_are_zero() -> None:
    weight = torch.randn(32, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    stream = Stream(make_node((conv(weight, bias=False), [(1, 32, 8, 8)])), Config(threads=1))
    x = torch.randn(1, 32, 8, 8, generator=stream.random)
    x[:, :, :, :5] = 0
    put(stream, torch.ones(1, 8, 8), x)
    stream.step()
    assert (stream.output.value[:, :, :, :4] == 0).all()
    assert (stream.output.value[:, :, :, 4:] != 0).all()


@pytest.mark.parametrize("channels", [64, 256])
def test_error_of_one_evaluation(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(channels, channels, 3, 3,
                         generator=torch.Generator().manual_seed(0)) / math.sqrt(9 * channels)
    node = make_node((conv(weight, bias=False), [(1, channels, 12, 14)]))
    errors = []
    for gain in (TILES, PIXELS):
        monkeypatch.setattr(winograd, "gain", gain)
        stream = Stream(node, Config(threads=1))
        put(stream, torch.ones(1, 12, 14),
            torch.randn(1, channels, 12, 14, generator=stream.random).relu())
        stream.step()
        expected = F.conv2d(stream.inputs[0].value.double(), weight.double(), padding=1)
        errors.append(float((stream.output.value - expected).norm() / expected.norm()))
    assert errors[0] < errors[1] < 1e-6, "sums are shorter than the definition's"


def test_a_filter_that_overflows_when_transformed_has_no_tiles() -> None:
    assert filters._tile(torch.full((1, 3, 3, 16, 16), 3e38)) is None
    assert filters._tile(torch.full((1, 3, 3, 16, 16), 1e38)) is not None


@pytest.mark.parametrize("channels", [32, 64, 512])
def test_the_rule_takes_full_tiles_and_leaves_single_pixels(channels: int) -> None:
    assert 0.9 * winograd.gain(channels, channels) > 1 / 4
    assert winograd.gain(channels, channels) < 9 / 16


def test_the_rule_leaves_few_channels() -> None:
    assert winograd.gain(16, 16) < 0.4


@pytest.mark.parametrize("make, side", [(exact_stream, 24), (transposed_stream, 16)])
def test_frames_choose_between_tiles_and_pixels(make: Callable[..., Stream], side: int) -> None:
    stream = make((64, 64), (side, side), lanes=1)
    run_frames(stream)
    assert went_by_tiles(stream)
    single = torch.zeros(1, side, side)
    single[0, 0, 0] = 1
    put(stream, single, stream.inputs[0].value + 1)
    stream.step()
    assert torch.equal(stream.output.value, stream.node.evaluate(stream.inputs[0].value))
    assert not went_by_tiles(stream)
