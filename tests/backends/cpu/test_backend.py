"""The cpu backend's local nodes against the reference backend, frame by frame."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import pytest
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from deltaconvert.backends import reference
from deltaconvert.backends.base import Buffers, Step, Work
from deltaconvert.backends.cpu import CpuBackend
from deltaconvert.backends.cpu.maps.flat import flat_map
from deltaconvert.backends.cpu.operators import elementwise
from deltaconvert.backends.cpu.rows.activations import Numbers, compiled_activation, exp
from deltaconvert.backends.rule import change_norm
from deltaconvert.config import Config
from deltaconvert.errors import UnsupportedError
from deltaconvert.footprint import broadcast
from deltaconvert.nodes import DeltaNode, Description, EdgeSpec, Slot, fill
from deltaconvert.operators.registry import Shapes, named
from deltaconvert.state import Edge, State

LANES = 3
# Sums of up to 1152 products of unit normals, in another order than the oracle's.
CLOSE = {"rtol": 1e-5, "atol": 2e-4}


def weights(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def conv(weight: Tensor, bias: bool = True, residual: Slot | None = None, **params: Any) -> Any:
    settings = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1,
                "activation": None, **params}
    channels = weight.shape[0]
    return "conv2d", (Slot(0), weight, weights(channels) if bias else None, residual), settings


def deconv(weight: Tensor, residual: Slot | None = None, **params: Any) -> Any:
    settings = {"stride": (2, 2), "padding": (1, 1), "output_padding": (0, 0), "groups": 1,
                "dilation": (1, 1), "activation": None, **params}
    channels = weight.shape[1] * settings["groups"]
    return "conv_transpose2d", (Slot(0), weight, weights(channels), residual), settings


def pool(name: str, **params: Any) -> Any:
    settings = {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": False,
                **params}
    return name, (Slot(0),), settings


def resizing(**params: Any) -> Any:
    settings = {"size": None, "scale_factor": None, "mode": "bilinear", "align_corners": False,
                "recompute_scale_factor": None, "antialias": False, **params}
    return "resize", (Slot(0),), settings


AVERAGE = {"count_include_pad": True, "divisor_override": None}
MAP, MAP16 = (LANES, 24, 13, 18), (LANES, 16, 13, 18)
CASES = {
    "conv 3x3": (conv(weights(20, 24, 3, 3)), [MAP]),
    "conv 1x1": (conv(weights(20, 24, 1, 1), padding=(0, 0)), [MAP]),
    "conv 1x1 stride 2": (conv(weights(20, 24, 1, 1), padding=(0, 0), stride=(2, 2)), [MAP]),
    "conv 3x5 stride 2x3, dilated": (
        conv(weights(20, 24, 3, 5), stride=(2, 3), padding=(3, 2), dilation=(2, 1)), [MAP]),
    "conv 7x7 of 3 channels": (
        conv(weights(16, 3, 7, 7), padding=(3, 3), stride=(2, 2), activation=("relu",)),
        [(LANES, 3, 21, 33)]),
    "conv of 1 channel": (conv(weights(4, 1, 3, 3)), [(LANES, 1, 9, 11)]),
    "conv to 3 channels": (conv(weights(3, 16, 3, 3)), [MAP16]),
    "conv to 1 channel of many": (
        conv(weights(1, 37, 3, 5), stride=(2, 1), activation=("relu",)), [(LANES, 37, 13, 18)]),
    "conv 1x1 to 4 channels": (conv(weights(4, 72, 1, 1), padding=(0, 0)), [(LANES, 72, 9, 11)]),
    "conv to 2 channels + residual": (
        conv(weights(2, 8, 5, 5), padding=(2, 2), residual=Slot(1), activation=("relu",)),
        [(LANES, 8, 13, 18), (LANES, 2, 13, 18)]),
    "conv to 8 channels": (conv(weights(8, 8, 3, 3), activation=("silu",)), [(LANES, 8, 13, 18)]),
    "conv of 16 + residual": (
        conv(weights(16, 16, 3, 3), residual=Slot(1), activation=("hardswish",)), [MAP16, MAP16]),
    "conv of a single pixel": (conv(weights(4, 8, 1, 1), padding=(0, 0)), [(LANES, 8, 1, 1)]),
    "conv + residual + relu": (
        conv(weights(24, 24, 3, 3), residual=Slot(1), activation=("relu",)), [MAP, MAP]),
    "conv + itself": (conv(weights(24, 24, 3, 3), residual=Slot(0)), [MAP]),
    "conv + residual + hardtanh-like": (
        conv(weights(24, 24, 1, 1), padding=(0, 0), residual=Slot(1), activation=("relu6",)),
        [MAP, MAP]),
    "grouped": (conv(weights(20, 12, 3, 3), groups=2), [MAP]),
    "many narrow groups": (conv(weights(48, 3, 3, 3), groups=8), [MAP]),
    "depthwise": (conv(weights(24, 1, 3, 3), groups=24, activation=("relu6",)), [MAP]),
    "depthwise 5x5 stride 2": (
        conv(weights(24, 1, 5, 5), groups=24, padding=(2, 2), stride=(2, 2)), [MAP]),
    "depthwise of many channels": (
        conv(weights(72, 1, 3, 3), groups=72, activation=("hardswish",)), [(LANES, 72, 9, 11)]),
    "depthwise, some channels computed twice": (
        conv(weights(120, 1, 5, 5), groups=120, padding=(2, 2)), [(LANES, 120, 7, 13)]),
    "depthwise, dilated, of two vectors": (
        conv(weights(40, 1, 3, 3), groups=40, dilation=(2, 3), padding=(2, 1)),
        [(LANES, 40, 9, 17)]),
    "depthwise, larger than the map": (
        conv(weights(24, 1, 5, 5), groups=24, padding=(2, 2)), [(LANES, 24, 2, 3)]),
    "depthwise, multiplied": (conv(weights(48, 1, 3, 3), groups=24), [MAP]),
    "transposed": (deconv(weights(16, 12, 4, 4)), [MAP16]),
    "transposed + residual": (
        deconv(weights(16, 12, 4, 4), residual=Slot(1)), [MAP16, (LANES, 12, 26, 36)]),
    "transposed, output padding": (
        deconv(weights(16, 12, 3, 2), stride=(3, 2), output_padding=(2, 1), dilation=(2, 1)),
        [MAP16]),
    "transposed to 3 channels": (
        deconv(weights(20, 3, 9, 9), padding=(4, 4), output_padding=(1, 1)), [(LANES, 20, 9, 11)]),
    "transposed 2x2 to 8 channels": (
        deconv(weights(16, 8, 2, 2), padding=(0, 0), activation=("relu",)), [MAP16]),
    "transposed by 3x2 to 8 channels": (
        deconv(weights(16, 8, 3, 2), padding=(0, 0), stride=(3, 2)), [MAP16]),
    "transposed with gaps": (deconv(weights(16, 12, 1, 1), padding=(0, 0)), [MAP16]),
    "transposed, grouped": (deconv(weights(16, 5, 3, 3), groups=2), [MAP16]),
    "transposed, depthwise": (deconv(weights(16, 1, 4, 4), groups=16), [MAP16]),
    "max pool": (pool("max_pool2d", dilation=(1, 1)), [MAP]),
    "max pool, dilated, ceil": (pool("max_pool2d", dilation=(2, 1), ceil_mode=True), [MAP]),
    "max pool of many channels": (pool("max_pool2d", dilation=(1, 1)), [(LANES, 120, 9, 12)]),
    "mean pool": (pool("avg_pool2d", **AVERAGE), [MAP]),
    "mean pool, ceil": (
        pool("avg_pool2d", **{**AVERAGE, "ceil_mode": True, "stride": (3, 4)}), [MAP]),
    "mean pool without padding": (
        pool("avg_pool2d", **{**AVERAGE, "count_include_pad": False, "ceil_mode": True}), [MAP]),
    "mean pool with a divisor": (
        pool("avg_pool2d", **{**AVERAGE, "divisor_override": 5}), [MAP]),
    "adaptive mean": (("adaptive_avg_pool2d", (Slot(0),), {"output_size": (5, 7)}), [MAP]),
    "adaptive max": (("adaptive_max_pool2d", (Slot(0),), {"output_size": (5, 7)}), [MAP]),
    "add + relu": (("add", (Slot(0), Slot(1)), {"alpha": 2, "activation": ("relu",)}), [MAP, MAP]),
    "layer norm": (("layer_norm2d", (Slot(0), weights(37), weights(37)), {"eps": 1e-6}),
                   [(LANES, 37, 9, 11)]),
    "layer norm of 8 channels": (("layer_norm2d", (Slot(0), None, None), {"eps": 1e-5}),
                                 [(LANES, 8, 9, 11)]),
    "root mean square": (("rms_norm2d", (Slot(0), weights(48)), {"eps": None}),
                         [(LANES, 48, 9, 11)]),
    "add": (("add", (Slot(0), Slot(1)), {"alpha": 1, "activation": ("relu",)}), [MAP, MAP]),
    "add of 16 channels": (("add", (Slot(0), Slot(1)), {"alpha": 1}), [MAP16, MAP16]),
    "pixel shuffle": (("pixel_shuffle", (Slot(0),), {"factor": 3}), [(LANES, 27, 9, 11)]),
    "pixel shuffle of many": (("pixel_shuffle", (Slot(0),), {"factor": 2}), [(LANES, 80, 9, 11)]),
    "add to itself": (("add", (Slot(0), Slot(0)), {}), [MAP]),
    "gate": (("mul", (Slot(0), Slot(1)), {}), [MAP, (LANES, 24, 1, 1)]),
    "subtract + relu6": (
        ("sub", (Slot(0), Slot(1)), {"alpha": 0.5, "activation": ("relu6",)}), [MAP, MAP]),
    "add a number": (("add", (Slot(0), 1.5), {"alpha": -1}), [MAP]),
    "a number minus": (("sub", (2, Slot(0)), {"alpha": 1}), [MAP]),
    "twice": (("mul", (Slot(0), 2.0), {}), [MAP]),
    "gate of one channel": (("mul", (Slot(0), Slot(1)), {}), [MAP, (LANES, 1, 13, 18)]),
    "add of one channel": (("add", (Slot(1), Slot(0)), {}), [MAP, (LANES, 1, 1, 1)]),
    "sigmoid alone": (("sigmoid", (Slot(0),), {}), [MAP]),
    "leaky relu alone": (("leaky_relu", (Slot(0), 0.2), {}), [MAP]),
    "cat": (("cat", ([Slot(0), Slot(1)],), {"dim": 1}), [MAP, MAP16]),
    "crop": (("select", (Slot(0),), {"channels": (3, 1, 5), "rows": tuple(range(2, 9)),
                                     "cols": None}), [MAP]),
    "every other channel": (("select", (Slot(0),), {"channels": tuple(range(1, 24, 2)),
                                                    "rows": None, "cols": None}), [MAP]),
    "channels reversed, flipped": (
        ("select", (Slot(0),), {"channels": tuple(range(23, -1, -1)), "rows": None,
                                "cols": tuple(range(17, -1, -1))}), [MAP]),
    "the last channels": (("select", (Slot(0),), {"channels": tuple(range(11, 24)),
                                                  "rows": None, "cols": None}), [MAP]),
    "one channel": (("select", (Slot(0),), {"channels": (7,), "rows": None, "cols": None}),
                    [MAP]),
    "every other of many channels": (("select", (Slot(0),), {
        "channels": tuple(range(0, 96, 2)), "rows": None, "cols": None}), [(LANES, 96, 7, 9)]),
    "resize to nearest": (("resize_nearest", (Slot(0),), {
        "size": (20, 33), "scale_factor": None, "exact": False,
        "recompute_scale_factor": None}), [MAP]),
    "pad, reflected": (("pad", (Slot(0),), {
        "padding": (2, 1, 3, 0), "mode": "reflect", "value": 0.0}), [MAP]),
    "pad with a number, and cropped": (("pad", (Slot(0),), {
        "padding": (2, -3, -1, 2), "mode": "constant", "value": 1.5}), [(LANES, 3, 9, 11)]),
    "pad channels": (("pad", (Slot(0),), {
        "padding": (1, 0, 0, 1, 2, 1), "mode": "constant", "value": 1.5}), [(LANES, 3, 9, 11)]),
    "pad with zeros": (("pad_zero", (Slot(0),), {"padding": (1, 2, 0, 3)}), [MAP]),
    "softmax": (("softmax", (Slot(0),), {"dim": 1}), [MAP]),
    "bilinear": (resizing(size=(26, 36)), [MAP]),
    "bilinear by odd factors, corners aligned": (
        resizing(size=(31, 11), align_corners=True), [MAP]),
    "bilinear, antialiased": (resizing(size=(7, 40), antialias=True), [MAP]),
    "bilinear of a pixel": (resizing(size=(9, 11)), [(LANES, 24, 1, 1)]),
    "bicubic": (resizing(scale_factor=(1.7, 0.6), mode="bicubic"), [MAP]),
    "bicubic of 3 channels": (
        resizing(scale_factor=(3.0, 3.0), mode="bicubic"), [(LANES, 3, 9, 50)]),
    "bilinear to few pixels of many": (resizing(size=(3, 4)), [(LANES, 40, 21, 37)]),
    "softmax of a vector at most": (("softmax", (Slot(0),), {"dim": 1}), [(LANES, 7, 13, 18)]),
    "softmax of many channels": (("softmax", (Slot(0),), {"dim": 1}), [(LANES, 80, 7, 9)]),
}
ACTIVATIONS = [("relu",), ("relu6",), ("leaky_relu", 0.1), ("hardswish",), ("sigmoid",), ("silu",),
               ("hardsigmoid",), ("elu", 1.5), ("prelu", torch.linspace(-1, 2, 37)), ("tanh",),
               ("gelu", "none"), ("gelu", "tanh"), ("celu", 0.7), ("selu",), ("mish",),
               ("softplus", 2.0, 1.5), ("logsigmoid",), ("softsign",),
               ("clamp", -0.5, None), ("clamp", None, 0.25), ("clamp", -1, 2),
               # By Python:
               ("tanhshrink",)]


def make_node(case: tuple[Any, Sequence[tuple[int, ...]]], threshold: float = 0.0,
              norm: Any = "max") -> DeltaNode:
    (name, args, params), shapes_in = case
    operator = named(name)
    assert operator is not None
    values = tuple(torch.zeros(s) for s in shapes_in)
    output = tuple(operator.function(*fill(args, values), **params).shape)
    constants = {"weight": tuple(args[1].shape)} if name.startswith("conv") else {}
    shapes = Shapes(tuple(shapes_in), output, constants, params)
    footprints = tuple(operator.footprints(shapes)) if operator.footprints else tuple(
        broadcast(s[2:], output[2:]) for s in shapes_in)
    lanes = shapes_in[0][0]
    specs = tuple(EdgeSpec(f"x{i}", s, torch.float32, lanes) for i, s in enumerate(shapes_in))
    return DeltaNode(Description(
        "y", "", "", "local", "", operator.function, operator, args, params, specs,
        EdgeSpec("y", output, torch.float32, lanes), footprints, operator.multiply_adds(shapes),
        threshold, norm, shapes=shapes))


def make_edge(spec: EdgeSpec, threshold: float = 0.0, beside: int = 0) -> Edge:
    """Make an edge; ``beside`` channels lie on either side, as in a concatenation."""
    assert spec.shape is not None
    n, c, h, w = spec.shape
    whole = torch.full((n, h, w, c + 2 * beside), 7.0, dtype=spec.dtype).permute(0, 3, 1, 2)
    value = whole[:, beside:beside + c]
    value.zero_()
    return Edge(spec, value, torch.zeros(spec.mask_shape, dtype=torch.uint8), threshold)


def bind(backend: CpuBackend, node: DeltaNode, inputs: Sequence[Edge], output: Edge,
         state: State) -> Step:
    assert backend.supports(node) is None
    scratch = {want.name: torch.empty(want.nbytes, dtype=torch.uint8)
               for want in sorted(backend.plan(node), key=lambda want: want.nbytes)}
    return backend.bind(node, backend.fold_filters(node),
                        Buffers(tuple(inputs), output, state, scratch))


class Stream:
    """A node run by both backends, from the same state."""

    def __init__(self, node: DeltaNode, config: Config, beside: int = 0) -> None:
        self.node = node
        lanes = node.about.output.lanes
        self.state = State(lanes, [True] * lanes)
        self.inputs = [make_edge(spec, beside=beside) for spec in node.about.inputs]
        self.output, self.expected = (
            make_edge(node.about.output, node.about.threshold, beside) for _ in range(2))
        self.step = bind(CpuBackend(config), node, self.inputs, self.output, self.state)
        self.oracle = reference.create(config).bind(
            node, None, Buffers(tuple(self.inputs), self.expected, self.state))
        self.random = torch.Generator().manual_seed(0)

    def change(self, share: float, lanes: Sequence[int], size: float = 1.0) -> None:
        """Change a share of the inputs' pixels in some lanes."""
        for edge in self.inputs:
            mask = torch.zeros(edge.mask.shape, dtype=torch.bool)
            chosen = torch.rand(edge.mask.shape, generator=self.random) < share
            mask[list(lanes)] = chosen[list(lanes)]
            noise = size * torch.randn(edge.value.shape, generator=self.random)
            edge.value.copy_(torch.where(mask[:, None], edge.value + noise, edge.value))
            edge.mask.copy_(mask)
            edge.publish(mask.flatten(1).sum(1).tolist())

    def check(self) -> Work:
        """Run one frame by both and compare everything."""
        before = self.output.value.clone()
        self.expected.value.copy_(before)
        work, expected = self.step(), self.oracle()
        assert work.candidates == expected.candidates
        new = self.node.evaluate(*(e.value for e in self.inputs))
        self.check_value(before, new)
        counts = self.output.mask.flatten(1).sum(1).tolist()
        assert list(self.output.counts) == counts
        return work

    def check_value(self, before: Tensor, new: Tensor) -> None:
        norm, threshold = self.node.about.norm, self.node.about.threshold
        mask = self.output.mask.bool()
        # Where the norm is within rounding of the threshold, either answer is right.
        exempt = (change_norm(new, before, norm, True, True) - threshold).abs() < 2e-4
        wrong = (mask != self.expected.mask.bool()) & ~exempt
        assert not wrong.any(), f"masks differ at {wrong.nonzero()[:5].tolist()}"
        written = mask[:, None].expand_as(before)
        torch.testing.assert_close(self.output.value[written], new[written], equal_nan=True,
                                   **CLOSE)
        assert torch.equal(self.output.value[~written], before[~written])
        left = change_norm(new, self.output.value, norm, True, True)
        assert not (left > threshold + 2e-4).any(), f"the law: {left.max()} > {threshold}"

    def run(self) -> None:
        """A first frame, then small and large changes, in some lanes and in all, and none."""
        self.change(1.0, range(LANES))
        self.check()
        self.state.fresh[:] = [False] * LANES
        for share, lanes in ((0.05, [1]), (0.3, [0, 2]), (0.0, []), (0.0, []), (1.0, [0]),
                             (0.1, range(LANES))):
            self.change(share, lanes)
            self.check()
        self.state.fresh[1] = True
        self.change(0.05, [0])
        self.check()
        assert int(self.output.mask[1].sum()) == self.output.spec.pixels
        self.state.fresh[1] = False
        self.change(0.0, [])
        assert self.check() == Work(0, 0)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, threads: int) -> None:
    Stream(make_node(CASES[name]), Config(threads=threads)).run()


@pytest.mark.parametrize("name", ["conv 3x3", "conv 1x1", "conv + residual + relu", "depthwise",
                                  "grouped", "transposed", "max pool", "mean pool", "cat",
                                  "conv to 3 channels", "conv to 2 channels + residual",
                                  "conv of 16 + residual", "transposed to 3 channels", "add"])
def test_works_on_slices_of_concatenations(name: str) -> None:
    stream = Stream(make_node(CASES[name]), Config(threads=1), beside=5)
    stream.run()
    output = flat_map(stream.output.value)
    numbers, step, channels = torch.from_numpy(output.data), output.step, output.channels
    outside = numbers[:(len(numbers) // step) * step].view(-1, step)[:, channels:]
    assert (outside == 7).all(), "a neighbour in the concatenation was overwritten"


@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("name", ["conv 3x3", "conv + residual + relu", "depthwise", "mean pool",
                                  "gate", "conv to 3 channels", "conv to 8 channels",
                                  "conv of 16 + residual", "add of 16 channels"])
def test_holds_back_what_is_within_the_threshold(name: str, norm: str) -> None:
    stream = Stream(make_node(CASES[name], threshold=0.5, norm=norm), Config(threads=2))
    stream.run()
    stream.change(0.3, [0], size=1e-3)
    work = stream.check()
    assert work.candidates > 0
    assert stream.output.counts == [0, 0, 0]


@pytest.mark.parametrize("alone", [False, True], ids=["fused", "alone"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation: tuple[Any, ...], alone: bool) -> None:
    name, *settings = activation
    case: Any = (conv(weights(37, 24, 1, 1), padding=(0, 0), activation=activation), [MAP])
    if alone:
        case = (name, (Slot(0), *settings), {}), [(LANES, 37, 9, 11)]
    Stream(make_node(case), Config(threads=1)).run()


def test_padding_and_resizing_need_no_python() -> None:
    for case in CASES:
        if case.startswith(("pad", "bi")) and case != "pad channels":
            stream = Stream(make_node(CASES[case]), Config(threads=1))
            assert not stream.step.engine.calls_python, case  # type: ignore[attr-defined]


def test_activations_that_need_no_python() -> None:
    for name, *settings in ACTIVATIONS[:-1]:
        case = (name, (Slot(0), *settings), {}), [(LANES, 37, 9, 11)]
        assert elementwise.refusal(make_node(case)) is None, name
    assert compiled_activation(("clamp", -0.5, math.nan)) is None  # all of it is NaN


def test_activations_behind_a_residual() -> None:
    for activation in ("prelu", torch.linspace(-1, 2, 37)), ("tanh",):
        residual = conv(weights(37, 24, 1, 1), padding=(0, 0), residual=Slot(1),
                        activation=activation)
        Stream(make_node((residual, [MAP, (LANES, 37, *MAP[2:])])), Config(threads=2)).run()


def _exp(typing: Any, x: Any) -> Any:
    """The exponential of one number."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return exp(Numbers(builder, args[0])).value

    return types.float32(types.float32), codegen


one_exp = intrinsic(_exp)


@numba.njit
def exponentials(x):
    return np.array([one_exp(v) for v in x])


def test_exponential_is_accurate_to_two_ulp() -> None:
    x = np.concatenate([np.linspace(-87, 88, 20001), np.linspace(-1, 1, 20001)]).astype(np.float32)
    true = np.exp(x.astype(np.float64))
    ours = exponentials(x)
    assert (np.abs(ours - true) / np.spacing(true.astype(np.float32))).max() < 2
    nan, small = exponentials(np.array([math.nan, -math.inf], np.float32))
    assert math.isnan(nan)
    assert small < 1e-37


@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("name", ["conv 3x3", "max pool", "depthwise 5x5 stride 2",
                                  "conv + residual + relu", "conv to 3 channels",
                                  "conv to 8 channels", "conv of 16 + residual",
                                  "transposed to 3 channels"])
def test_what_is_not_a_number_comes_and_goes(name: str, norm: str) -> None:
    stream = Stream(make_node(CASES[name], threshold=1.0, norm=norm), Config(threads=1))
    stream.run()
    edge = stream.inputs[0]
    good = edge.value[1, :, 6, 6].clone()
    for bad in (math.nan, math.inf, None):
        edge.value[1, :, 6, 6] = good if bad is None else bad
        edge.mask.zero_()
        edge.mask[1, 6, 6] = 1
        edge.publish([0, 1, 0])
        for other in stream.inputs[1:]:
            other.mask.zero_()
            other.publish([0, 0, 0])
        stream.step()
        holds_bad = not stream.output.value.isfinite().all()
        assert holds_bad == (bad is not None), f"after {bad}"
    new = stream.node.evaluate(*(e.value for e in stream.inputs))
    left = change_norm(new, stream.output.value, stream.node.about.norm, True, True)
    assert float(left.max()) <= 1.0 + 2e-4


def test_readers_of_a_mask_share_its_list() -> None:
    stream, backend = Stream(make_node(CASES["conv 3x3"]), Config(threads=1)), CpuBackend(Config())
    scratch = {want.name: torch.empty(want.nbytes, dtype=torch.uint8)
               for want in backend.plan(stream.node)}
    buffers = Buffers(tuple(stream.inputs), stream.output, stream.state, scratch)
    first, second = (backend.bind(stream.node, backend.fold_filters(stream.node), buffers)
                     for _ in range(2))
    stream.run()
    stream.change(0.2, [0])
    found = first()
    listed = first.head.parts.listed  # type: ignore[attr-defined]
    listed[0] = 1  # a list made anew would be whole again
    assert second() == Work(1, stream.node.about.multiply_adds)
    stream.change(0.2, [0])
    assert second().candidates > found.candidates // 2


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_schedules_what_is_needed_and_no_more(share: float) -> None:
    node = make_node(CASES["conv 3x3"])
    stream = Stream(node, Config(threads=1))
    stream.run()
    stream.change(share, [2])
    work = stream.check()
    assert work.scheduled == work.candidates * node.about.multiply_adds > 0


def test_two_streams_in_two_threads() -> None:
    case = conv(weights(64, 64, 3, 3) / 24, activation=("silu",)), [(LANES, 64, 40, 56)]
    node, backend = make_node(case), CpuBackend(Config(threads=2))
    failures: list[BaseException] = []

    def serve(seed: int) -> None:
        try:
            with torch.inference_mode():
                stream = Stream(node, Config(threads=2))
                stream.step = bind(backend, node, stream.inputs, stream.output, stream.state)
                stream.random.manual_seed(seed)
                for _ in range(3):
                    stream.run()
                    stream.state.fresh[:] = [True] * LANES
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.parametrize("case, reason", [
    ((("add", (Slot(0), torch.zeros(1, 1, 13, 1)), {}), [MAP]), "differs from pixel to pixel"),
    ((("add", (Slot(0), torch.zeros(LANES, 1, 1, 1)), {}), [MAP]), "single pixels"),
    (("conv2d", (Slot(0), weights(8, 24, 3, 3), None, weights(1, 8, 13, 18)),
      {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}), "constant"),
], ids=["row constant", "lane constant", "constant residual"])
def test_says_what_it_does_not_run(case: Any, reason: str) -> None:
    case = case if isinstance(case[0], tuple) else (case, [MAP])
    assert reason in (CpuBackend(Config()).supports(make_node(case)) or "")


def test_refuses_other_numbers_than_float32() -> None:
    node = make_node(CASES["max pool"])
    spec = node.about.output
    node.about.output = EdgeSpec(spec.name, spec.shape, torch.float64, spec.lanes)
    assert "float64" in (CpuBackend(Config()).supports(node) or "")


def test_maps_that_are_not_channels_last_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="channels-last"):
        flat_map(torch.zeros(2, 8, 5, 5))
