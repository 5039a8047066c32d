"""Mistakes in the kernels of nodes that run when anything changed: each is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltaconvert.backends.cuda import vectors
from tests.backends.cpu.test_backend import make_node
from tests.backends.test_cuda_whole import (
    WindowStream,
    attention,
    flattened,
    group_norm,
    pooled,
    regions,
    whole_node,
)
from tests.cuda.streams import KernelStream

POOLING, VECTOR = pooled(40, 31, 40), flattened(200)
NORM, SWIN = group_norm(24, 3, 13, 19), attention(1, (10, 15), (7, 7), (3, 3))
MISTAKES: dict[str, tuple[Any, str, str, str]] = {
    "sums that others are still at": (
        POOLING, "sums.cu", "    block_barrier();\n    if (share.group", "    if (share.group"),
    "a group that is not added": (
        POOLING, "sums.cu", "g < share.groups; ++g", "g < share.groups - 1; ++g"),
    "a part that is not added": (
        POOLING, "vector.cu", "part < args.part_count; part", "part < args.part_count - 1; part"),
    "a norm that is read before it is summed": (
        VECTOR, "vector.cu", "memory[warp] = x;\n    block_barrier();", "memory[warp] = x;"),
    "a part of a norm that is left out": (
        VECTOR, "vector.cu", "part < gridDim.x;", "part < gridDim.x - 1;"),
    "a part that is not written": (
        VECTOR, "vector.cu", "min(first + each, static_cast<long long>(packs))",
        "min(first + each, packs - 1ll)"),
    "a last part that weighs as much as others": (
        NORM, "norm.cu", "i % entries)] * pixels;", "i % entries)] * each;"),
    "spreads of parts alone": (
        NORM, "norm.cu", "spread += entry[1] +", "spread += entry[1] + 0.f *"),
    "another lane's factors": (
        NORM, "norm.cu", "args.table + 3ll * lane * args.rule.channels + c",
        "args.table + 3ll * (lane / 2) * args.rule.channels + c"),
    "a token of another part that is not kept apart": (
        SWIN, "windows.cu", "+ (x >= wide - args.shift_x)", "+ 0 * (x >= wide - args.shift_x)"),
    "windows that are not shifted back": (
        SWIN, "windows.cu", "if (y >= high) y -= high;", ""),
    "tokens that take others' places": (
        SWIN, "windows.cu", "block_barrier();  // before the next", "// before the next"),
    "a window that is not looked at whole": (
        SWIN, "windows.cu", "|| (other >= 0 && args.mask[other]);", ";"),
    "a change that is not seen": (
        (("regions",), regions(8, (2, 2))), "regions.cu", "i < args.taps_y * args.taps_x; i += T",
        "i < args.taps_y * args.taps_x - 200; i += T"),
}


def run(case: Any, change: tuple[str, str, str] | None) -> None:
    """Run a node, with a mistake in a kernel."""
    if case[0] == ("regions",):
        stream = KernelStream(make_node(case[1], 0.05), change=change, processors=1)
    else:
        of_windows = case[0][0] == "window_attention"
        stream = (WindowStream if of_windows else KernelStream)(
            whole_node(case, 0.05), change=change, processors=1)
    stream.run()
    for share, size in ((0.01, 1.0), (0.005, 1.0), (0.3, 1e-4)):
        stream.change(share, [1], size=size)
        stream.check()
    edge = stream.inputs[0]  # the last number
    edge.mask.zero_()
    edge.mask[1, -1, -1] = 1
    edge.value[1, -1, -1, -1] += 5
    edge.publish([0, 1, 0])
    stream.check()


@pytest.fixture(autouse=True)
def _in_parts(monkeypatch):
    monkeypatch.setattr(vectors, "MOST_OF_BLOCK", 2000)
    monkeypatch.setattr(vectors, "PACKS_A_THREAD", 1)
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("case", [POOLING, VECTOR, NORM, SWIN, (("regions",), regions(8, (2, 2)))],
                         ids=["pooling", "vector", "norm", "windows", "regions"])
def test_without_a_mistake_all_is_well(case):
    run(case, None)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake):
    case, *change = MISTAKES[mistake]
    with pytest.raises(AssertionError):
        run(case, tuple(change))
