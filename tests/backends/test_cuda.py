"""Every kernel of the cuda backend, run on the host, against the reference backend."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deltaconvert.backends.cuda import tiles
from deltaconvert.backends.cuda.candidates import PATCHES, STRIP, strip_reads
from deltaconvert.backends.cuda.filters import numbers_of
from deltaconvert.backends.rule import change_norm
from deltaconvert.nodes import DeltaNode, Slot
from tests.backends.cpu.test_backend import ACTIVATIONS, CASES, MAP, conv, make_node, pool, weights
from tests.cuda.host.launcher import ORDERS
from tests.cuda.streams import TF32, KernelStream

FUSED, PARTS = {"fused": True, "warpgroups": False}, {"fused": False}
# A tile of two warpgroups; and a cluster over the channels, with as few stages as there can be.
TWO, CLUSTER = ({"warpgroups": True, "bm": 128, "bn": 64, "stages": 4, "early": False},
                {"warpgroups": True, "bm": 64, "bn": 32, "stages": 3, "early": True})
# K cut over the blocks of a cluster.
SPLIT = {"warpgroups": True, "bm": 64, "bn": 64, "stages": 4, "early": False, "splits": 2}
SPLIT_CLUSTER = {**CLUSTER, "stages": 4, "splits": 4}
# One of each kernel, and of each way into it.
OF_EACH_KIND = ["conv 3x3", "conv 7x7 of 3 channels", "conv + residual + relu", "depthwise",
                "max pool", "mean pool without padding", "gate", "cat", "softmax", "bilinear"]
CONVOLUTIONS = ["conv 3x3", "conv 1x1 stride 2", "conv + residual + relu", "grouped",
                "transposed", "transposed with gaps"]


@pytest.fixture(autouse=True)
def _exact():
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        yield


def at(node: DeltaNode, dtype: torch.dtype) -> DeltaNode:
    """The node in another dtype."""
    about = node.about
    args = tuple(a.to(dtype) if isinstance(a, Tensor) else a for a in about.args)
    inputs = tuple(dataclasses.replace(spec, dtype=dtype) for spec in about.inputs)
    output = dataclasses.replace(about.output, dtype=dtype)
    return DeltaNode(dataclasses.replace(about, args=args, inputs=inputs, output=output))


def scaled(case: Any) -> Any:
    """A convolution whose sums are about as large as its inputs, for few bits."""
    (name, args, params), shapes = case
    if isinstance(args[1] if len(args) > 1 else None, Tensor):
        args = (args[0], args[1] / math.sqrt(args[1][0].numel()), *args[2:])
    return (name, args, params), shapes


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str) -> None:
    KernelStream(make_node(CASES[name])).run()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_that_apply_the_rule_themselves(name: str) -> None:
    stream = KernelStream(make_node(CASES[name]), told=FUSED)
    stream.run()
    assert {k.entry for k in stream.launcher.ran} == {"find_candidates", "convolve"}


@pytest.mark.parametrize("told", [FUSED, PARTS], ids=["fused", "parts"])
@pytest.mark.parametrize("name", ["conv 3x3", "conv 7x7 of 3 channels", "transposed"])
def test_tensor_cores_in_float16(name: str, told: dict[str, Any]) -> None:
    stream = KernelStream(at(make_node(scaled(CASES[name])), torch.float16), told=told)
    stream.run()
    assert ("TENSOR", 1) in stream.launcher.ran[1].defines


def of_tensor_cores(node: DeltaNode, **settings: Any) -> KernelStream:
    """A stream of a node that may be multiplied as tf32."""
    tolerance = TF32 if node.about.output.dtype == torch.float32 else None
    with torch.backends.cudnn.flags(allow_tf32=True):
        return KernelStream(node, tolerance=tolerance, **settings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("told", [TWO, CLUSTER, SPLIT, SPLIT_CLUSTER],
                         ids=["two", "cluster", "split", "split cluster"])
@pytest.mark.parametrize("name", ["conv 3x3", "conv 1x1 stride 2", "conv 7x7 of 3 channels",
                                  "conv + residual + relu", "transposed"])
def test_warpgroups(name: str, told: dict[str, Any], dtype: torch.dtype) -> None:
    stream = of_tensor_cores(at(make_node(scaled(CASES[name])), dtype), told=told)
    stream.run()
    assert {k.entry for k in stream.launcher.ran} == {"find_candidates", "convolve_sm90"}


# With warps that copy: two warpgroups that multiply, and a cluster, with few slots.
AHEAD = {"warpgroups": True, "bm": 128, "bn": 64, "stages": 3, "early": True, "ahead": True}
AHEAD_CLUSTER = {**AHEAD, "bm": 64, "bn": 32, "stages": 2}


@pytest.mark.parametrize("told", [AHEAD, AHEAD_CLUSTER], ids=["two", "cluster"])
@pytest.mark.parametrize("name", ["conv 3x3", "conv 1x1 stride 2", "conv 7x7 of 3 channels",
                                  "conv + residual + relu", "transposed"])
def test_warps_that_copy(name: str, told: dict[str, Any]) -> None:
    stream = KernelStream(at(make_node(scaled(CASES[name])), torch.float16), told=told)
    stream.run()
    assert {k.entry for k in stream.launcher.ran} == {"find_candidates", "convolve_ahead"}


# Words that are full and that are not, more of them than threads, and lanes that are fresh.
@pytest.mark.parametrize("width", [31, 64, 130])
@pytest.mark.parametrize("told", [TWO, SPLIT], ids=["two", "split"])
@pytest.mark.parametrize("residual", [None, Slot(1)], ids=["plain", "residual"])
def test_candidates_that_blocks_find_themselves(width: int, told: dict[str, Any],
                                                residual: Slot | None) -> None:
    maps = [(2, 72, 37, width)] + ([(2, 16, 37, width)] if residual else [])
    case = conv(weights(16, 72, 1, 1), padding=(0, 0), residual=residual), maps
    stream = KernelStream(at(make_node(scaled(case)), torch.float16), told=told)
    for share, fresh in ((1.0, 2), (0.0, 0), (1e-3, 0), (0.05, 1), (0.6, 0)):
        stream.state.fresh[:] = [lane < fresh for lane in range(2)]
        stream.change(share, range(2))
        stream.check()
    assert {k.entry for k in stream.launcher.ran} == {"convolve_sm90"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_dense_way(name: str, dtype: torch.dtype) -> None:
    """What lies beside the output's channels stays as it is."""
    node = at(make_node(scaled(CASES[name]), threshold=0.2), dtype)
    KernelStream(node, dense=True, beside=8 if node.about.output.is_map else 0).run()


@pytest.mark.parametrize("most_bytes", [0, 1e9], ids=["large", "small"])
@pytest.mark.parametrize("channels", [16, 72, 264])
def test_all_pixels_by_warpgroups(channels: int, most_bytes: float,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library would leave a map to another kernel."""
    monkeypatch.setattr(tiles, "MOST_BYTES_OF_FEW", most_bytes)
    monkeypatch.setattr(tiles, "FEWEST_BYTES_OF_ALL", 0)
    case = (conv(weights(channels, 24, 1, 1), padding=(0, 0), residual=Slot(1),
                 activation=("relu",)), [(3, 24, 9, 20), (3, channels, 9, 20)])
    stream = KernelStream(at(make_node(scaled(case), threshold=0.2), torch.float16),
                          told={"warpgroups": True}, dense=True, beside=8, processors=1)
    stream.run()
    assert {k.entry for k in stream.launcher.ran} == {"convolve_sm90"}


# Lanes of a warp that share a pixel, and packs of each: one, some, and more than are kept.
@pytest.mark.parametrize("channels, lanes, packs", [
    (3, 1, 1), (6, 1, 1), (5, 8, 1), (24, 8, 1), (264, 32, 3), (520, 32, 0)])
def test_a_pixel_is_shared_by_lanes_of_a_warp(channels: int, lanes: int, packs: int) -> None:
    case = pool("max_pool2d", dilation=(1, 1)), [(3, channels, 9, 12)]
    KernelStream(make_node(case), dense=True).run()
    stream = KernelStream(make_node(case, threshold=0.2))
    stream.run()
    defines = dict(stream.launcher.ran[1].defines)
    assert (defines["LANES"], defines["PACKS"]) == (lanes, packs)


# A block of one pixel, of many, and of more channels than it has threads for.
@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("channels, taps, stride, dtype, entry", [
    (37, 3, 2, torch.float32, "depthwise"),
    (264, 5, 1, torch.float16, "depthwise"), (1152, 3, 1, torch.float16, "depthwise"),
    (301, 3, 1, torch.float32, "compute_pixels"), (16, 7, 1, torch.float16, "depthwise"),
    (16, 11, 1, torch.float16, "compute_pixels")])
def test_depthwise_channels_and_taps(channels: int, taps: int, stride: int, dtype: torch.dtype,
                                     entry: str, norm: str) -> None:
    case = (conv(weights(channels, 1, taps, taps), groups=channels, stride=(stride, stride),
                 padding=(taps // 2, taps // 2), residual=Slot(1)),
            [(3, channels, 6, 13), (3, channels, -(-6 // stride), -(-13 // stride))])
    node = at(make_node(scaled(case), threshold=0.2, norm=norm), dtype)
    stream = KernelStream(node, processors=1)
    stream.run()
    stream.change(0.3, [0], size=1e-3)
    assert stream.check() > 0
    assert stream.output.counts == [0, 0, 0]
    assert entry in {k.entry for k in stream.launcher.ran}
    stream = KernelStream(node, processors=1, dense=True)
    stream.run()
    assert {k.entry for k in stream.launcher.ran} == {entry}


@pytest.mark.parametrize("order", range(1, len(ORDERS)))
def test_depthwise_in_whatever_order(order: int) -> None:
    KernelStream(make_node(CASES["depthwise of many channels"], threshold=0.2), order=order,
                 processors=1, beside=4).run()


# Of 8 neighbours: near and far ones, the same, none, and those of a reflection.
@pytest.mark.parametrize("cols", [
    [[0, 1], [0, 2], [5, -1]] * 4, [[7, 7]] * 9, [[-1, -1]] * 3, [[2, 0], [1, 1], [59, 0]]])
def test_what_strips_read(cols: list[list[int]]) -> None:
    table = np.array(cols)
    made = strip_reads(table)
    for x, taps in enumerate(cols):
        strip = made[x // STRIP]
        bits = int(strip["bits"][x % STRIP])
        assert {int(strip["first"]) + b for b in range(64) if bits >> b & 1} == set(taps) - {-1}
        assert bits >> int(strip["span"]) == 0


def test_strips_that_read_far_apart_go_by_tables() -> None:
    assert strip_reads(np.array([[0], [60]])) is None


# Patches, with gaps and overlaps, and what is read outside of the map; a strip's end is a row's.
@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("taps, stride, padding, size", [
    ((8, 8), (8, 8), (0, 0), (24, 80)), ((9, 16), (9, 16), (0, 0), (37, 150)),
    ((7, 11), (4, 9), (3, 5), (19, 91)), ((2, 5), (3, 13), (1, 2), (9, 131)),
    ((33, 32), (32, 32), (40, 36), (50, 67)), ((3, 70), (1, 1), (1, 9), (5, 77))])
def test_patches_are_found_by_warps(taps, stride, padding, size, norm) -> None:
    case = conv(weights(6, 3, *taps), stride=stride, padding=padding), [(3, 3, *size)]
    stream = KernelStream(make_node(scaled(case), threshold=0.02, norm=norm), processors=1)
    finds = next(one for one in stream.step.launches if one.kernel.entry == "find_candidates")
    assert finds.args.source[0].reads == PATCHES
    stream.run()
    for share in (0.0005, 0.01, 0.3):
        stream.change(share, [0, 2])
        stream.check()  # how many there were, too


@pytest.mark.parametrize("old, new", [
    ("(c - from.taps_x) / from.step_x + 1", "(c - from.taps_x) / from.step_x"),
    ("min(c / from.step_x, at.pixels - 1)", "min(c / from.step_x, at.pixels - 2)"),
    ("+ 4 * rest;", "+ 4 * (rest | 1);")], ids=["a reader too many", "too few", "another word"])
def test_a_mistake_in_patches_is_found(old: str, new: str) -> None:
    case = conv(weights(6, 3, 2, 5), stride=(3, 13), padding=(1, 2)), [(3, 3, 9, 131)]
    with pytest.raises(AssertionError):
        KernelStream(make_node(scaled(case)), change=("masks.cu", old, new)).run()


WIDE = conv(weights(72, 40, 3, 3), activation=("silu",)), [(3, 40, 7, 9)]


@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("order, dtype", [*((order, torch.float16) for order in range(len(ORDERS))),
                                          (0, torch.float32)])
@pytest.mark.parametrize("beside, told", [(0, CLUSTER), (3, CLUSTER), (0, SPLIT_CLUSTER)])
def test_clusters_of_warpgroups(order: int, dtype: torch.dtype, beside: int, told: Any,
                                norm: str) -> None:
    """Three blocks of 32 channels, the last not full; more tiles than blocks; odd addresses."""
    node = at(make_node(scaled(WIDE), threshold=0.2, norm=norm), dtype)
    stream = of_tensor_cores(node, told=told, order=order, beside=beside, processors=1)
    stream.run()
    stream.change(0.3, [0], size=1e-3)
    assert stream.check() > 0
    assert stream.output.counts == [0, 0, 0]


@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("order", range(len(ORDERS)))
@pytest.mark.parametrize("beside, told", [(0, AHEAD_CLUSTER), (3, AHEAD_CLUSTER), (0, AHEAD)])
@pytest.mark.parametrize("residual", [None, Slot(1)], ids=["3x3", "residual"])
def test_clusters_with_warps_that_copy(residual: Slot | None, beside: int, told: Any, order: int,
                                       norm: str) -> None:
    """As above; with a residual, there are more maps than stages of K."""
    case = WIDE
    if residual:
        case = (conv(weights(72, 40, 1, 1), padding=(0, 0), residual=residual,
                     activation=("silu",)), [(3, 40, 11, 19), (3, 72, 11, 19)])
    node = at(make_node(scaled(case), threshold=0.2, norm=norm), torch.float16)
    stream = KernelStream(node, told=told, order=order, beside=beside, processors=1)
    stream.run()
    stream.change(0.3, [0], size=1e-3)
    assert stream.check() > 0
    assert {k.entry for k in stream.launcher.ran} == {"find_candidates", "convolve_ahead"}


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_bfloat16(name: str) -> None:
    KernelStream(at(make_node(scaled(CASES[name])), torch.bfloat16)).run()


@pytest.mark.parametrize("told", [FUSED, PARTS], ids=["fused", "parts"])
@pytest.mark.parametrize("name", ["conv 3x3", "conv + residual + relu"])
def test_tf32_of_warps(name: str, told: dict[str, Any]) -> None:
    stream = of_tensor_cores(make_node(scaled(CASES[name])), told=told)
    stream.run()
    assert ("TENSOR", 1) in stream.launcher.ran[1].defines


# Numbers that tf32 lacks, and the nearest: one above the middle of two, and two in the middle.
ROUNDED = [(1 + 3 / 4096, 1 + 1 / 1024), (1 + 1 / 2048, 1.0), (1 + 3 / 2048, 1 + 2 / 1024)]


def check_rounding(x: float, nearest: float, place: Any = lambda node: node,
                   **settings: Any) -> None:
    """A mean of equal products, in which maps and filters hold a number that is rounded."""
    filters = torch.full((16, 64, 2, 2), -x / 256)
    node = place(make_node((conv(filters, bias=False, padding=(0, 0)), [(1, 64, 2, 2)])))
    stream = of_tensor_cores(node, told={"warpgroups": True}, **settings)
    for number, wanted in ((x, nearest * nearest), (math.nan, math.nan), (math.inf, math.inf)):
        stream.inputs[0].value.fill_(number)
        stream.begin()
        stream.step()
        # But for the sums' own rounding: cut off, they would be 1e-3 less.
        torch.testing.assert_close(stream.output.value, torch.full_like(
            stream.output.value, -wanted), rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("x, nearest", ROUNDED)
def test_warpgroups_round_to_tf32(x: float, nearest: float) -> None:
    check_rounding(x, nearest)


@pytest.mark.parametrize("order", range(1, len(ORDERS)))
@pytest.mark.parametrize("name", ["conv 3x3", "conv 7x7 of 3 channels", "max pool", "transposed"])
def test_whatever_order_threads_and_blocks_run_in(name: str, order: int) -> None:
    KernelStream(make_node(CASES[name]), order=order).run()
    KernelStream(make_node(CASES[name]), order=order, told=FUSED).run()


@pytest.mark.parametrize("beside", [5, 8])
@pytest.mark.parametrize("name", ["conv 3x3", "conv + residual + relu", "depthwise", "grouped",
                                  "transposed", "max pool", "cat", "bilinear"])
def test_works_on_slices_of_concatenations(name: str, beside: int) -> None:
    stream = KernelStream(make_node(CASES[name]), beside=beside, told=FUSED)
    stream.run()


@pytest.mark.parametrize("told", [FUSED, PARTS], ids=["fused", "parts"])
@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("name", ["conv 3x3", "conv + residual + relu", "mean pool", "gate"])
def test_holds_back_what_is_within_the_threshold(name: str, norm: str, told) -> None:
    stream = KernelStream(make_node(CASES[name], threshold=0.5, norm=norm), told=told)
    stream.run()
    stream.change(0.3, [0], size=1e-3)
    assert stream.check() > 0
    assert stream.output.counts == [0, 0, 0]


@pytest.mark.parametrize("activation", [
    *(a for a in ACTIVATIONS if a[0] != "prelu"), ("softshrink", 0.3), ("elu", 0.7)],
    ids=lambda a: "-".join(map(str, a)))
def test_activations(activation: tuple[Any, ...]) -> None:
    case = conv(weights(37, 24, 1, 1), padding=(0, 0), activation=activation), [MAP]
    stream = KernelStream(make_node(case))
    stream.run()
    assert {k.entry for k in stream.launcher.ran} >= {"convolve"}


# Functions of numbers at one place: two maps, a gate, a map of a channel, constants and numbers.
GATE, THIN = (3, 24, 1, 1), (3, 1, 13, 18)
APPLIED = {
    "divided by a gate": (("div", (Slot(0), Slot(1)), {"rounding_mode": None}), [MAP, GATE]),
    "a number over a map": (("div", (2.0, Slot(0)), {"rounding_mode": None}), [MAP]),
    "divided by a constant": (("div", (Slot(0), weights(24, 1, 1).abs() + 1),
                               {"rounding_mode": None}), [MAP]),
    "square": (("pow", (Slot(0), 2), {}), [MAP]),
    "to the power of a map": (("pow", (1.5, Slot(0)), {}), [MAP]),
    "to powers of channels": (("pow", (Slot(0), torch.tensor([2.0, 3.0] * 12).view(24, 1, 1)), {}),
                              [MAP]),
    "larger of two": (("maximum", (Slot(0), Slot(1)), {}), [MAP, THIN]),
    "smaller of two": (("minimum", (Slot(0), Slot(1)), {}), [MAP, MAP]),
    "mixed": (("lerp", (Slot(0), Slot(1), 0.3), {}), [MAP, MAP]),
    "mixed by a map": (("lerp", (Slot(0), Slot(1), Slot(2)), {}), [MAP, MAP, GATE]),
    "plus a product": (("addcmul", (Slot(0), Slot(1), Slot(2)), {"value": 0.5}),
                       [MAP, MAP, THIN]),
    "plus a constant product": (("addcmul", (weights(24, 1, 1), weights(24, 1, 1), Slot(0)),
                                 {"value": 2}), [MAP]),
    "slopes of channels": (("prelu", (Slot(0), weights(24)), {}), [MAP]),
    "one slope": (("prelu", (Slot(0), weights(1)), {}), [MAP]),
    "shrunk": (("hardshrink", (Slot(0),), {"lambd": 0.4}), [MAP]),
    "cut below": (("threshold", (Slot(0),), {"threshold": 0.2, "value": -3.0}), [MAP]),
    "clamped": (("clamp", (Slot(0),), {"min": -0.2, "max": None}), [MAP]),
    "clamped to the upper end": (("clamp", (Slot(0),), {"min": 0.4, "max": 0.2}), [MAP]),
    **{name: ((name, (Slot(0),), {}), [MAP]) for name in (
        "abs", "neg", "square", "exp", "expm1", "sin", "erf", "atan", "floor", "mish", "selu")},
    "unshuffled": (("pixel_unshuffle", (Slot(0),), {"factor": 2}), [(3, 6, 8, 14)]),
    "patches merged": (("patch_merging2d", (Slot(0),), {}), [(3, 12, 9, 13)]),
}


@pytest.mark.parametrize("name, dtype", [
    *((name, torch.float32) for name in APPLIED),
    *((name, torch.float16) for name in ("divided by a gate", "slopes of channels", "exp",
                                         "unshuffled"))])
def test_functions_of_numbers_and_shuffles_have_kernels(name: str, dtype: torch.dtype) -> None:
    stream = KernelStream(at(make_node(APPLIED[name]), dtype))
    stream.run()
    assert {k.entry for k in stream.launcher.ran} == {"find_candidates", "compute_pixels"}
    assert stream.kind == "pixels"


def test_a_norm_without_a_number_to_add_takes_that_of_float32_in_float16_too() -> None:
    node = at(make_node(CASES["root mean square"]), torch.float16)
    stream = KernelStream(node)
    stream.inputs[0].value.normal_(0, 0.01, generator=torch.Generator().manual_seed(0))
    stream.begin()
    stream.step()
    torch.testing.assert_close(stream.output.value, node.evaluate(stream.inputs[0].value))


def test_numbers_of_channels_begin_where_vectors_may() -> None:
    part = weights(25)[1:]
    made = numbers_of(part)
    assert made is not None
    assert part.data_ptr() % 16 != made.data_ptr() % 16 == 0
    assert made.equal(part)


@pytest.mark.parametrize("name", CASES)
def test_no_local_node_runs_whole(name: str) -> None:
    assert KernelStream(make_node(CASES[name])).kind in ("pixels", "convolution")


@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("name", ["conv 3x3", "max pool", "depthwise 5x5 stride 2",
                                  "conv + residual + relu"])
def test_what_is_not_a_number_comes_and_goes(name: str, norm: str) -> None:
    stream = KernelStream(make_node(CASES[name], threshold=1.0, norm=norm))
    stream.run()
    edge = stream.inputs[0]
    good = edge.value[1, :, 6, 6].clone()
    for bad in (math.nan, math.inf, None):
        edge.value[1, :, 6, 6] = good if bad is None else bad
        for other in stream.inputs:
            other.mask.zero_()
        edge.mask[1, 6, 6] = 1
        stream.begin()
        stream.step()
        assert (not stream.output.value.isfinite().all()) == (bad is not None), f"after {bad}"
    new = stream.node.evaluate(*(e.value for e in stream.inputs))
    left = change_norm(new, stream.output.value, norm, True, True)
    assert float(left.max()) <= 1.0 + 2e-4


def test_a_lane_that_was_reset_is_computed_whole_beside_others() -> None:
    stream = KernelStream(make_node(CASES["conv 3x3"], threshold=0.5))
    stream.run()
    stream.state.fresh[2] = True
    stream.change(0.0, [])
    assert stream.check() == stream.output.spec.pixels
    assert stream.output.counts == [0, 0, stream.output.spec.pixels]


def test_few_rows_are_split_along_their_sums() -> None:
    """One tile for many blocks: as many ranges of the 18 stages as pay for their sums."""
    case = conv(weights(16, 32, 3, 3)), [(2, 32, 4, 5)]
    KernelStream(make_node(case), told=PARTS, processors=8).run()
