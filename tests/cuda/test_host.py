"""The host's shim is trusted only because each of these mistakes in a kernel is noticed."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from deltaconvert.nodes import Slot
from tests.backends.cpu.test_backend import CASES, conv, make_node, weights
from tests.backends.test_cuda import ROUNDED, at, check_rounding, scaled
from tests.cuda.host.launcher import ORDERS
from tests.cuda.streams import KernelStream

MISTAKES = {
    "a missing barrier behind the rows": (
        "convolution.cu", """tile * BM), tile * BM, count);
    block_barrier();
    for (int group""", """tile * BM), tile * BM, count);
    for (int group"""),
    "a missing barrier before a stage is used": (
        "convolution.cu", """            wait_for_copies<STAGES - 2>();
            block_barrier();""", "            wait_for_copies<STAGES - 2>();"),
    "a stage that is not waited for": (
        "convolution.cu", "wait_for_copies<STAGES - 2>();", "wait_for_copies<STAGES - 1>();"),
    "a row too far at the border": (
        "convolution.cu", "(lane * args.height_in + row) * args.width_in",
        "(lane * args.height_in + row + (row == 0)) * args.width_in"),
    "a tap too few": (
        "masks.cu", "for (int t = 0; t < from.taps_x; ++t) reached",
        "for (int t = 0; t < from.taps_x - 1; ++t) reached"),
    "a store that is not masked": (
        "convolution.cu", """        if (!args.rule.fresh[lane]
            && !exceeds(shared.total[i], args.rule, args.rule.thresholds[lane]))
            continue;""", ""),
    "a pixel too few at the end of the list": (
        "convolution.cu", "first + i < count ?", "first + i < count - 1 ?"),
    "a fragment's wrong row": (
        "convolution.cu", "first_row() + lane % 16", "first_row() + lane % 8"),
    "a fragment's wrong column": (
        "convolution.cu", "first_col() + lane % 4 * 2", "first_col() + lane % 4"),
    "a rank that two threads share": (
        "masks.cu", "(1u << lane_id) - 1u", "(1u << lane_id / 2 * 2) - 1u"),
    "a row's end that is not seen": (
        "masks.cu", "if (from.width - left < 64) bits", "if (from.width - left < 0) bits"),
}


WARPGROUPS = "convolution_sm90.cu"
# Where a norm spans blocks, its barriers would hide these.
MISTAKES_OF_ONE_COLUMN = {
    "a missing barrier before the next tile's stages": (
        "block_barrier();  // the stages are free", "// the stages are free"),
    "stages that are overwritten while others read them": (
        "    cluster_has_read();  // before a block's stages", "    // before a block's stages"),
}
MISTAKES_OF_SPLITS = {
    "sums of another split that are read too early": (
        "    cluster_barrier();\n    if (part.split == 0) {", "    if (part.split == 0) {"),
    "a split that is left out": ("for (int split = 1; split < SPLITS;",
                                 "for (int split = 2; split < SPLITS;"),
    "another block's sums": ("split * part.columns + part.column", "split + part.column"),
    "a bias that every split adds": ("part.split == 0 ? args.bias", "args.bias ? args.bias"),
    "stages that two splits sum": ("phase, part.column, first);", "phase, part.column, 0);"),
    "old values that are read before they are copied": (
        "    wait_for_copies<0>();\n    wait_for_products<0>();", "    wait_for_products<0>();"),
}
MISTAKES_OF_WARPGROUPS = {
    "earlier kernels that are not waited for": (
        "    wait_for_earlier_kernels();\n    if (!SCAN)", "    if (!SCAN)"),
    "earlier kernels that are waited for too late": (
        "    wait_for_earlier_kernels();\n    if (!SCAN) let_next_kernel_begin();",
        "    if (threadIdx.x == 0) atomicAdd(args.counts, 0);\n    wait_for_earlier_kernels();"),
    "a filter that is not waited for": (
        "wait_for_arrival(shared.arrived + slot, parities >> slot & 1u);", ""),
    "arrivals that are mixed up": ("parities ^= 1u << slot;", ""),
    "a missing barrier before a stage is used": (
        "block_barrier();  // the stage is there for all", "// the stage is there for all"),
    "a stage that is not waited for": (
        "wait_for_copies<AHEAD - 1>();", "wait_for_copies<AHEAD>();"),
    "a stage that is overwritten while it is multiplied": (
        "if (stage + AHEAD < stages) loader.load(free);",
        "if (stage + AHEAD < stages) loader.load((free + STAGES - (stage >= 0)) % STAGES);"),
    "sums that are read before they are done": (
        "    wait_for_copies<0>();\n    wait_for_products<0>();\n", "    wait_for_copies<0>();\n"),
    "rows that are replaced while they are read": (
        "rows_of(shared, args, turn ^ 1);", "rows_of(shared, args, turn);"),
    "packs of a row in the wrong order": (
        "+ slot * A_STAGE + swizzled(row, at))", "+ slot * A_STAGE + row * ROW_BYTES + at)"),
    "a thread's wrong channels": ("+ threadIdx.x % 4 * FEW;", "+ (threadIdx.x + 1) % 4 * FEW;"),
    "a thread's wrong row": (
        "(threadIdx.x - FIRST) / WARP * 16 + threadIdx.x % WARP / 4;",
        "(threadIdx.x - FIRST) / WARP * 16 + threadIdx.x % WARP / 4 * 2 % 8;"),
    "a store that is not masked": (
        "if (pixel < 0 || (!ALL && !exceeds(total[half], args.rule, threshold[half]))) continue;",
        "if (pixel < 0) continue;"),
    "parts of a norm that are read too early": (
        "        if (threadIdx.x % 4 == 0) shared.total[first + half * 8] = total[half];\n"
        "    cluster_barrier();",
        "        if (threadIdx.x % 4 == 0) shared.total[first + half * 8] = total[half];"),
    "parts of a norm that are left out": (
        "block < columns; block += 4", "block < columns - 1; block += 4"),
}


MISTAKES_OF_ROUNDING = {
    "numbers that tensor cores cut off": ("            loader.round(slot);\n", ""),
    "numbers that are rounded before they are there": (
        "            wait_for_copies<AHEAD - 1>();\n            loader.round(slot);",
        "            loader.round(slot);\n            wait_for_copies<AHEAD - 1>();"),
    "a stage that is rounded in another's place": ("loader.round(slot);", "loader.round(free);"),
    "rows that are not rounded": (
        "for (int i = 0; i < A_COPIES; ++i) {\n                typedef Pack<unsigned",
        "for (int i = 1; i < A_COPIES; ++i) {\n                typedef Pack<unsigned"),
}
COPIES_AHEAD = "convolution_ahead_sm90.cu"
MISTAKES_AHEAD = {
    "a slot that is filled before it is empty": (
        "        ring.wait_until_empty();\n        byte* const a", "        byte* const a"),
    "a slot that is empty before its products are done": (
        "        wait_for_products<1>();\n        if (before >= 0) release(ring.empty + before);\n"
        "        before = ring.slot;", "        release(ring.empty + ring.slot);"),
    "products of a slot that is not full": (
        "        ring.wait_until_full();\n        show_tensor", "        show_tensor"),
    "old values that have not arrived": (
        "        ring.wait_until_full();\n        maps.at", "        maps.at"),
    "a map that is filled before its slot is empty": (
        "        ring.wait_until_empty();\n        Arrivals* const full = ring.full + ring.slot;\n"
        "        copy_map",
        "        Arrivals* const full = ring.full + ring.slot;\n        copy_map"),
    "rows that are replaced while they are needed": (
        "            wait_for_arrival(shared.read + turn, (number / TURNS & 1) ^ 1);\n", ""),
    "rows that are read before all are there": (
        "            first_threads_barrier<THREADS>();\n", ""),
    "parts of a norm that are read too early": (
        "    wait_for_others(shared.sent + turn, parity);\n", ""),
    "a bias that is read too early": (
        "    if (columns > 1) cluster_barrier();\n    else block_barrier();\n", ""),
    "rows of the tile before": (
        "            listed = further;\n", ""),
    "thresholds of the tile before": (
        "            threshold = threshold_of(args, listed, tile * BM, count);\n", ""),
}
MISTAKES_OF_SCANS = {
    "an input whose mask is forgotten": ("if (args.more_bits) bits |= memory[i];", ""),
    "a candidate that is taken for its neighbour": (
        "if (left < low) continue;", "if (left <= low) continue;"),
    "counts of other warps that are read too early": (
        "found.warps[warp] = upto;\n    block_barrier();", "found.warps[warp] = upto;"),
    "bits that are read before they are copied": (
        "    int sum = 0;\n    wait_for_copies<0>();", "    int sum = 0;"),
}


def run(change: tuple[str, str, str] | None, told: dict[str, Any], case: Any = None,
        order: int = 0) -> None:
    """Run a convolution on tensor cores, with a mistake in it; then with changes to hold back."""
    node = at(make_node(scaled(case or CASES["conv 3x3"]), threshold=0.2), torch.float16)
    stream = KernelStream(node, told=told, change=change, processors=1, order=order)
    stream.run()
    for size in (0.3, 0.2, 1e-3):  # some near the threshold, and none that exceeds it
        stream.change(0.3, [0], size=size)
        stream.check()
    stream.state.fresh[0] = True  # nothing exceeds the threshold but there
    stream.change(0.3, [1], size=1e-3)
    stream.check()


MISTAKES_OF_DEPTHWISE = {
    "parts of a norm that are read too early": (
        "        block_barrier();\n        decide(", "        decide("),
    "decisions that are read too early": (
        "start, count, rows, run);\n        block_barrier();", "start, count, rows, run);"),
    "pixels that are taken for neighbours": (
        "all = all && args.list[place + r] == pixel + r;", ";"),
    "a row's end that is not seen": ("pixel % args.width + RUN > args.width", "false"),
    "parts of a norm that are left out": ("int k = term; exists", "int k = term + TERMS; exists"),
    "another lane's map": ("lane * args.height_in + row", "row"),
    "a store that is not masked": ("shared.changed[row] = changed ? pixel : -1;",
                                   "shared.changed[row] = exists ? pixel : -1;"),
}


WARP_TILE = {"fused": True, "warpgroups": False}
# Two warpgroups, two blocks of a cluster, two tiles one after the other, six stages of K.
GROUP_TILE = {"warpgroups": True, "bm": 128, "bn": 32, "stages": 4, "early": False}
# The same, K cut in two.
SPLIT_TILE = {**GROUP_TILE, "early": True, "splits": 2}
SCANNED = (conv(weights(40, 40, 1, 1), padding=(0, 0), residual=Slot(1)),
           [(3, 40, 7, 70), (3, 40, 7, 70)])
LONG = conv(weights(40, 40, 3, 3)), [(3, 40, 7, 9)]


# A warpgroup that multiplies, two blocks of a cluster, three tiles one after the other.
AHEAD_TILE = {"warpgroups": True, "bm": 64, "bn": 32, "stages": 6, "early": True, "ahead": True}


@pytest.mark.parametrize("told, case", [(WARP_TILE, None), (GROUP_TILE, LONG), (SPLIT_TILE, LONG),
                                        (GROUP_TILE, SCANNED), (AHEAD_TILE, LONG)],
                         ids=["warps", "warpgroups", "splits", "scan", "ahead"])
@torch.inference_mode()
def test_without_a_mistake_all_is_well(told, case):
    run(None, told, case)


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.inference_mode()
def test_a_mistake_is_noticed(mistake):
    with pytest.raises(AssertionError):
        run(MISTAKES[mistake], WARP_TILE)


@pytest.mark.parametrize("mistake", MISTAKES_OF_WARPGROUPS)
@torch.inference_mode()
def test_a_mistake_of_warpgroups_is_noticed(mistake):
    with pytest.raises(AssertionError):
        run((WARPGROUPS, *MISTAKES_OF_WARPGROUPS[mistake]), GROUP_TILE, LONG)


@pytest.mark.parametrize("mistake", MISTAKES_OF_ONE_COLUMN)
@torch.inference_mode()
def test_a_mistake_of_one_column_is_noticed(mistake):
    with pytest.raises(AssertionError):
        run((WARPGROUPS, *MISTAKES_OF_ONE_COLUMN[mistake]), {**SPLIT_TILE, "bn": 64}, LONG, 1)


@pytest.mark.parametrize("mistake", MISTAKES_OF_SPLITS)
@torch.inference_mode()
def test_a_mistake_of_splits_is_noticed(mistake):
    with pytest.raises(AssertionError):
        run((WARPGROUPS, *MISTAKES_OF_SPLITS[mistake]), SPLIT_TILE, LONG)


@pytest.mark.parametrize("mistake", MISTAKES_AHEAD)
@torch.inference_mode()
def test_a_mistake_of_warps_that_copy_is_noticed(mistake):
    # Of short sums, there is room for more tiles than rows are kept of.
    case = SCANNED if mistake.startswith("rows that are replaced") else LONG

    def in_any_order() -> None:
        for order in range(len(ORDERS)):
            run((COPIES_AHEAD, *MISTAKES_AHEAD[mistake]), AHEAD_TILE, case, order)

    with pytest.raises(AssertionError):
        in_any_order()


@pytest.mark.parametrize("mistake", MISTAKES_OF_SCANS)
@torch.inference_mode()
def test_a_mistake_of_scans_is_noticed(mistake):
    with pytest.raises(AssertionError):
        run((WARPGROUPS, *MISTAKES_OF_SCANS[mistake]), GROUP_TILE, SCANNED)


@pytest.mark.parametrize("mistake", [None, *MISTAKES_OF_DEPTHWISE])
@torch.inference_mode()
def test_a_mistake_of_depthwise_is_noticed(mistake):
    change = mistake and ("depthwise.cu", *MISTAKES_OF_DEPTHWISE[mistake])
    node = make_node(CASES["depthwise of many channels"], threshold=0.2, norm="rms")
    stream = KernelStream(node, change=change, processors=1)
    with pytest.raises(AssertionError) if mistake else nullcontext():
        stream.run()
        for size in (0.3, 0.2, 1e-3):  # some near the threshold, and none that exceeds it
            stream.change(0.3, [0], size=size)
            stream.check()


@pytest.mark.parametrize("mistake", MISTAKES_OF_ROUNDING)
@torch.inference_mode()
def test_a_mistake_of_rounding_is_noticed(mistake):
    with pytest.raises(AssertionError):
        check_rounding(*ROUNDED[0], change=(WARPGROUPS, *MISTAKES_OF_ROUNDING[mistake]))


@pytest.mark.parametrize("told", [{}, {"warpgroups": True}])
def test_programs_of_two_sizes_share_packed_filters(told):
    weight = weights(40, 24, 3, 3)
    one, other, changed = (
        KernelStream(make_node((conv(w), [(1, 24, 8, width)])), told=told).backend.prepared["y"]
        for w, width in ((weight, 9), (weight.clone(), 11), (2 * weight, 9)))
    assert one.kind == other.kind == "convolution"
    assert one.data.tile == other.data.tile
    assert one.data.weight is other.data.weight
    assert one.data.whole is other.data.whole
    assert one.data.tables.shape != other.data.tables.shape
    assert one.data.weight is not changed.data.weight
    assert not torch.equal(one.data.weight, changed.data.weight)
