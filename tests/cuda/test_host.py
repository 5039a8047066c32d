"""The host's shim is trusted only because each of these mistakes in a kernel is noticed."""

from __future__ import annotations

import pytest
import torch

from tests.backends.test_cpu import CASES, make_node
from tests.backends.test_cuda import at, scaled
from tests.cuda.streams import KernelStream

MISTAKES = {
    "a missing barrier behind the rows": (
        "convolution.cu", """    find_rows(shared.rows, args, phase, tile * BM, count);
    block_barrier();
    for (int group""", """    find_rows(shared.rows, args, phase, tile * BM, count);
    for (int group"""),
    "a missing barrier before a stage is used": (
        "convolution.cu", """        wait_for_copies<STAGES - 2>();
        block_barrier();""", "        wait_for_copies<STAGES - 2>();"),
    "a stage that is not waited for": (
        "convolution.cu", "wait_for_copies<STAGES - 2>();", "wait_for_copies<STAGES - 1>();"),
    "a row too far at the border": (
        "convolution.cu", "(lane * args.height_in + row) * args.width_in",
        "(lane * args.height_in + row + (row == 0)) * args.width_in"),
    "a tap too few": (
        "masks.cu", "for (int j = 0; j < from.taps_x; ++j) {\n            UNROLL",
        "for (int j = 0; j < from.taps_x - 1; ++j) {\n            UNROLL"),
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
}


def run(change: tuple[str, str, str] | None) -> None:
    """Run a convolution on tensor cores, with a mistake in it; then with changes to hold back."""
    node = at(make_node(scaled(CASES["conv 3x3"]), threshold=0.2), torch.float16)
    stream = KernelStream(node, told={"fused": True}, change=change)
    stream.run()
    stream.change(0.3, [0], size=1e-3)
    stream.check()


@torch.inference_mode()
def test_without_a_mistake_all_is_well():
    run(None)


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.inference_mode()
def test_a_mistake_is_noticed(mistake):
    with pytest.raises(AssertionError):
        run(MISTAKES[mistake])
