"""Nodes that run when anything changed, by kernels of their own on the host: see the law."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deltaconvert.backends.cuda import CudaBackend, norms, vectors, windows
from deltaconvert.backends.cuda.backend import MOST_LANES
from deltaconvert.backends.cuda.dense import dense_of, foresee
from deltaconvert.config import Config
from deltaconvert.cuda.launcher import ORDINARY_SHARED_BYTES
from deltaconvert.nodes import DeltaNode, Description, EdgeSpec, Slot, fill
from deltaconvert.operators.registry import named
from tests.backends.cpu.test_backend import make_node, weights
from tests.backends.test_cuda import at
from tests.cuda.host.launcher import ORDERS, HostLauncher
from tests.cuda.streams import KernelStream

NORMS = ["max", "rms"]


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def whole_node(case: Any, threshold: float = 0.0, norm: Any = "max",
               dtype: torch.dtype = torch.float32) -> DeltaNode:
    """A node that runs when anything changed."""
    (name, args, params), shapes_in = case
    operator = named(name)
    assert operator is not None
    values = tuple(torch.zeros(s) for s in shapes_in)
    output, lanes = tuple(operator.function(*fill(args, values), **params).shape), shapes_in[0][0]
    specs = tuple(EdgeSpec(f"x{i}", s, torch.float32, lanes) for i, s in enumerate(shapes_in))
    return at(DeltaNode(Description(
        "y", "", "", "global", "", operator.function, operator, args, params, specs,
        EdgeSpec("y", output, torch.float32, lanes), threshold=threshold, norm=norm)), dtype)


def check(node: DeltaNode, kernels: set[str], kind: str, stream_class: Any = KernelStream,
          **settings: Any) -> KernelStream:
    """Run a stream through everything, and then change too little for a node with a threshold."""
    stream = stream_class(node, **settings)
    assert stream.kind == kind
    stream.run()
    if node.about.threshold:
        stream.change(0.3, [0], size=1e-4)
        stream.check()
        assert stream.output.counts == [0] * len(stream.output.counts)
    assert {k.entry for k in getattr(stream.launcher, "ran", [])} in (set(), kernels)
    return stream


def pooled(channels: int, height: int = 13, width: int = 18, lanes: int = 3) -> Any:
    return (("adaptive_avg_pool2d", (Slot(0),), {"output_size": (1, 1)}),
            [(lanes, channels, height, width)])


POOL = {"sum_pixels", "settle_vector"}
POOLED = [(1, 13, 18), (3, 5, 7), (37, 13, 18), (144, 31, 40), (1160, 4, 9)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", POOLED, ids=str)
def test_pooling_to_one_pixel(size, dtype, norm):
    check(whole_node(pooled(*size), 0.1, norm, dtype), POOL, "pooling")


@pytest.mark.parametrize("order", range(len(ORDERS)))
@pytest.mark.parametrize("beside", [0, 3, 8])
def test_pooling_in_a_concatenation(beside, order):
    check(whole_node(pooled(40), dtype=torch.bfloat16), POOL, "pooling", beside=beside, order=order)


@pytest.mark.parametrize("channels", [vectors.MOST_POOLED, vectors.MOST_POOLED + 1])
def test_pooled_channels_fit_in_the_memory_of_any_block(channels):
    stream = KernelStream(whole_node(pooled(channels, 9, 11, 2), 0.1))
    stream.run()
    assert stream.kind == ("pooling" if channels == vectors.MOST_POOLED else "whole")
    assert all(launch.shared_bytes <= ORDINARY_SHARED_BYTES for launch in stream.step.launches)


def test_a_mean_without_its_dimensions():
    case = (("mean", (Slot(0),), {"dim": (2, 3), "keepdim": False}), [(3, 24, 9, 11)])
    check(whole_node(case, 0.1), POOL, "pooling")


def flattened(channels: int, lanes: int = 3, height: int = 5, width: int = 7) -> Any:
    return (("reshape", (Slot(0),), {"shape": (lanes, channels * height * width)}),
            [(lanes, channels, height, width)])


@pytest.mark.parametrize("parts", [False, True], ids=["block", "grid"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 13, 40, 264])
def test_values_of_one_pixel(channels, dtype, norm, parts, monkeypatch):
    if parts:
        monkeypatch.setattr(vectors, "MOST_OF_BLOCK", 16)
        monkeypatch.setattr(vectors, "PACKS_A_THREAD", 1)
    kernels = {"compare_parts", "write_parts"} if parts else {"settle_vector"}
    check(whole_node(flattened(channels), 0.2, norm, dtype), kernels, "whole")


@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_parts_of_a_norm_in_any_order(order, monkeypatch):
    monkeypatch.setattr(vectors, "MOST_OF_BLOCK", 16)
    monkeypatch.setattr(vectors, "PACKS_A_THREAD", 1)
    check(whole_node(flattened(200), 0.2, "rms"), {"compare_parts", "write_parts"}, "whole",
          order=order, processors=4)


def test_a_value_that_belongs_to_no_lane():
    case = (("reshape", (Slot(0),), {"shape": (7, 15)}), [(3, 5, 1, 7)])
    check(whole_node(case, 0.2), {"settle_vector"}, "whole")


def test_a_linear_layer():
    case = (("linear", (Slot(0), weights(10, 24), weights(10)), {}), [(3, 24)])
    node = whole_node(case, 0.2)
    stream = KernelStream(node)
    for share, fresh in ((1.0, True), (0.5, False), (0.0, False), (1.0, False)):
        stream.state.fresh[:] = [fresh] * 3
        stream.change(share, range(3))
        stream.check()
    assert {k.entry for k in stream.launcher.ran} == {"settle_vector"}


def group_norm(channels: int, groups: int, height: int = 13, width: int = 18,
               affine: bool = True) -> Any:
    constants = (weights(channels), weights(channels)) if affine else (None, None)
    return (("group_norm", (Slot(0), *constants), {"groups": groups, "eps": 1e-5}),
            [(3, channels, height, width)])


NORM = {"sum_pixels", "finish_moments", "normalize_pixels"}
GROUPS = [(3, 1), (24, 1), (24, 24), (24, 3), (40, 4), (37, 37), (264, 8), (1040, 2), (72, 1)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("channels, groups", GROUPS)
def test_group_norm(channels, groups, dtype, norm):
    case = group_norm(channels, groups, 5, 9) if channels > 200 else group_norm(channels, groups)
    check(whole_node(case, 0.1, norm, dtype), NORM, "norm")


@pytest.mark.parametrize("order", range(len(ORDERS)))
@pytest.mark.parametrize("beside", [0, 3, 8])
def test_group_norm_in_a_concatenation(beside, order):
    check(whole_node(group_norm(24, 2, affine=False), dtype=torch.bfloat16), NORM, "norm",
          beside=beside, order=order)


def test_instance_norm():
    case = (("instance_norm", (Slot(0), weights(40), weights(40)), {"eps": 1e-5, "rank": 4}),
            [(3, 40, 13, 18)])
    check(whole_node(case, 0.1), NORM, "norm")


def test_a_norm_of_numbers_far_from_zero_keeps_their_spread():
    """Sums of squares would have lost it: 1e-3 beside 1e3 in float32."""
    node = whole_node(group_norm(24, 1, affine=False))
    stream = KernelStream(node)
    stream.inputs[0].value.normal_(1000, 1, generator=torch.Generator().manual_seed(0))
    stream.begin()
    stream.step()
    exact = node.evaluate(stream.inputs[0].value.double())
    torch.testing.assert_close(stream.output.value.double(), exact, rtol=0, atol=2e-4)


def test_a_norm_weighted_by_a_map_runs_whole():
    node = whole_node(group_norm(24, 1))
    about = node.about
    changed = DeltaNode(dataclasses.replace(about, args=(Slot(0), Slot(1), None)))
    assert norms.suits(node)
    assert not norms.suits(changed)


def regions(channels: int, size: tuple[int, int], height: int = 23, width: int = 40) -> Any:
    return (("adaptive_avg_pool2d", (Slot(0),), {"output_size": size}),
            [(3, channels, height, width)])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("channels, size", [(32, (2, 2)), (32, (3, 3)), (13, (6, 6)), (1, (2, 3)),
                                            (264, (1, 2))])
def test_few_regions_of_many_pixels(channels, size, dtype, norm):
    node = at(make_node(regions(channels, size), 0.1, norm), dtype)
    check(node, {"average_regions"}, "regions")


@pytest.mark.parametrize("order", range(len(ORDERS)))
@pytest.mark.parametrize("beside", [0, 3, 8])
def test_regions_in_a_concatenation(beside, order):
    check(at(make_node(regions(24, (3, 2))), torch.bfloat16), {"average_regions"}, "regions",
          beside=beside, order=order)


def test_a_region_that_nothing_changed_in_is_left_alone():
    stream = KernelStream(make_node(regions(8, (2, 2))))
    stream.run()
    edge = stream.inputs[0]
    edge.mask.zero_()
    edge.mask[1, 2, 3] = 1
    edge.value[1, :, 2, 3] += 1
    edge.publish([0, 1, 0])
    assert stream.check() == 1
    assert stream.output.mask.nonzero().tolist() == [[1, 0, 0]]


def test_means_with_padding_are_regions_too():
    case = (("avg_pool2d", (Slot(0),), {
        "kernel_size": 7, "stride": 7, "padding": (2, 3), "ceil_mode": True,
        "count_include_pad": True, "divisor_override": None}), [(3, 24, 13, 18)])
    check(make_node(case, 0.1), {"average_regions"}, "regions")


class WindowStream(KernelStream):
    """Of an attention, of which windows without a change are left alone."""

    def check_found(self, found: int, expected: int) -> None:
        params = self.node.about.params
        rows, cols = params["window"]
        mask = self.inputs[0].mask.float()[:, None]
        height, width = mask.shape[2:]
        mask[torch.tensor(self.state.fresh)] = 1
        padded = F.pad(mask, (0, -width % cols, 0, -height % rows))
        shift = [s if w < n else 0 for s, w, n in zip(
            params["shift"], (rows, cols), padded.shape[2:], strict=True)]
        rolled = padded.roll((-shift[0], -shift[1]), (2, 3))
        windows = F.max_pool2d(rolled, (rows, cols)).repeat_interleave(rows, 2)
        back = windows.repeat_interleave(cols, 3).roll(shift, (2, 3))[:, :, :height, :width]
        assert found == int(back.sum()) <= expected


def attention(heads: int = 2, size: tuple[int, int] = (11, 17), window: tuple[int, int] = (4, 4),
              shift: tuple[int, int] = (2, 2), bias: bool = True, cosines: bool = False) -> Any:
    tokens, channels = window[0] * window[1], 32 * heads
    scale = torch.linspace(1, 5, heads).view(-1, 1, 1) if cosines else None
    return (("window_attention",
             (Slot(0), weights(3 * channels) if bias else None, weights(1, heads, tokens, tokens),
              scale), {"window": window, "shift": shift, "heads": heads}),
            [(3, 3 * channels, *size)])


ATTEND = {"find_windows", "attend_windows", "compute_pixels"}
ATTENTIONS = {
    "windows": attention(),
    "windows of 49 tokens": attention(3, (10, 15), (7, 7), (3, 3)),
    "windows of 64 tokens": attention(1, (16, 9), (8, 8), (4, 4)),
    "not shifted": attention(shift=(0, 0)),
    "shifted one way, by windows that are not square": attention(size=(3, 16), window=(4, 5)),
    "without a bias": attention(bias=False),
    "cosines": attention(size=(12, 16), cosines=True),
    "cosines without a bias": attention(size=(12, 16), bias=False, cosines=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_within_windows(name, dtype):
    norm = "rms" if "cosines" in name else "max"
    check(whole_node(ATTENTIONS[name], 0.05, norm, dtype), ATTEND, "windows", WindowStream)


def test_cosines_of_what_pads_the_map():
    """In float32: in float16 what has no length becomes NaN, in the model too."""
    check(whole_node(attention(cosines=True), 0.05), ATTEND, "windows", WindowStream)


@pytest.mark.parametrize("order", range(len(ORDERS)))
@pytest.mark.parametrize("beside", [0, 3, 8])
def test_attention_in_a_concatenation(beside, order):
    check(whole_node(ATTENTIONS["windows"], dtype=torch.bfloat16), ATTEND, "windows", WindowStream,
          beside=beside, order=order)


def test_attention_that_the_kernel_lacks_runs_whole():
    wide, many = attention(), attention(1, (18, 18), (9, 9), (4, 4))
    assert windows.suits(whole_node(wide))
    assert not windows.suits(whole_node(many))
    wide[0][2]["heads"] = 1
    wide[0][1][2].resize_(1, 1, 16, 16)
    assert not windows.suits(whole_node(wide))


@pytest.mark.parametrize("shift", [(4, 4), (5, 8)], ids=str)
def test_windows_shifted_by_all_of_a_window_and_by_all_of_the_map(shift):
    node = whole_node(attention(1, (8, 8), shift=shift), 0.05)
    check(node, ATTEND, "windows", WindowStream)


def test_windows_shifted_further_than_around_the_map_run_whole():
    node = whole_node(attention(1, (8, 8), shift=(9, 2)), 0.05)
    assert not windows.suits(node)
    check(node, {"find_candidates", "compute_pixels"}, "whole")


@pytest.mark.parametrize("shape, lanes, reason", [
    ((512, 2208, 3840), 8, "numbers in one"), ((MOST_LANES + 1, 4), MOST_LANES + 1, "lanes")])
def test_what_32_bits_or_a_grid_cannot_count_is_refused(shape, lanes, reason):
    backend = CudaBackend(Config(), torch.device("cpu"), HostLauncher())
    about = whole_node(flattened(1)).about
    for size, refused in ((shape, True), ((shape[0] // 4, *shape[1:]), False)):
        output = dataclasses.replace(about.output, shape=size, lanes=min(lanes, size[0]))
        node = DeltaNode(dataclasses.replace(about, output=output))
        assert (reason in (backend.supports(node) or "")) == refused


def stated(node: DeltaNode, function: Any, inputs: int = 1, dtype: Any = torch.int64) -> DeltaNode:
    """The node with another function, as many inputs, and what that returns."""
    about, (spec, *_) = node.about, node.about.inputs
    made = function(*[torch.zeros(spec.shape)] * inputs)
    shape = tuple(made.shape) if isinstance(made, torch.Tensor) else None
    return DeltaNode(dataclasses.replace(
        about, function=function, operator=None, params={},
        args=tuple(Slot(i) for i in range(inputs)),
        inputs=tuple(dataclasses.replace(spec, name=f"x{i}") for i in range(inputs)),
        output=EdgeSpec("y", shape, dtype, about.output.lanes)))


@pytest.mark.parametrize("function, inputs, dtype", [
    (lambda x: x.argmax(1), 1, torch.int64), (lambda x: x > 0, 1, torch.bool),
    (lambda *xs: sum(xs), 12, torch.float32)], ids=["whole numbers", "booleans", "many inputs"])
def test_what_no_kernel_compares_is_written_and_counts_as_changed(function, inputs, dtype):
    stream = KernelStream(stated(whole_node(flattened(4)), function, inputs, dtype), tolerance=1.0)
    assert stream.kind == "uncompared"
    for edge in stream.inputs:
        edge.value.normal_(generator=torch.Generator().manual_seed(0))
    stream.step()
    edge = stream.output
    assert torch.equal(edge.value, function(*(source.value for source in stream.inputs)))
    assert edge.mask.all()
    tally = stream.context.tallies["y"]
    for counter in (tally.changed, *tally.candidates):
        assert int(stream.context.counters[counter]) == edge.mask.numel()
    assert not foresee(stream.node, stream.step, stream.context)
    assert dense_of(stream.step).counters is stream.step.counters


def test_a_tuple_is_kept_as_it_is():
    node = stated(whole_node(flattened(4)), lambda x: (x + 1, x), dtype=None)
    backend = CudaBackend(Config(), torch.device("cpu"), HostLauncher())
    assert backend.supports(node) is None
    assert backend.fold_filters(node).kind == "uncompared"


@pytest.mark.parametrize("rule, dtype, refused", [
    ("local", torch.float64, True), ("local", torch.bool, False), ("global", torch.float64, False),
    ("sparsify", torch.uint8, True), ("sparsify", torch.float32, False)])
def test_what_the_reference_runs(rule, dtype, refused):
    about = make_node(regions(4, (2, 2))).about
    output = dataclasses.replace(about.output, dtype=dtype)
    node = DeltaNode(dataclasses.replace(about, rule=rule, output=output))
    backend = CudaBackend(Config(), torch.device("cpu"), HostLauncher())
    assert (str(dtype) in (backend.supports(node) or "")) == refused


def test_what_elements_are_taken_by_lies_on_the_device():
    about = whole_node(flattened(4)).about
    index = (torch.tensor([0, 1]), torch.tensor(1), slice(None))
    node = DeltaNode(dataclasses.replace(
        about, function=operator.getitem, operator=None, params={}, args=(Slot(0), index)))
    backend = CudaBackend(Config(), torch.device("meta"), HostLauncher())
    assert backend.fold_filters(node).kind == "whole"
    source, (rows, one, everything) = node.about.args
    assert (source, everything) == (Slot(0), slice(None))
    assert (rows.device.type, one.device.type) == ("meta", "cpu")
