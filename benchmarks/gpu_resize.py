"""Resizing on a GPU at given masks, against PyTorch's own in the same run.

    python benchmarks/gpu_resize.py

Bilinear and bicubic, maps of 256 channels twice as large: as in the decoder of a segmenter.
"""

from __future__ import annotations

from typing import Any

import torch
from gpu_layers import ALL_PROPAGATE, GPU, REPEATS, Bound, time_ms

from deltaconvert.cuda.launcher import CupyLauncher
from deltaconvert.nodes import DeltaNode, Description, EdgeSpec, Slot, fill
from deltaconvert.operators.registry import Shapes, named

SHAPE = (256, 135, 240)  # channels, height, width of the input


def node(mode: str, lanes: int, dtype: torch.dtype) -> DeltaNode:
    """Return the node of a resizing to twice the size."""
    operator = named("resize")
    shape_in = (lanes, *SHAPE)
    shape = (lanes, SHAPE[0], 2 * SHAPE[1], 2 * SHAPE[2])
    params = {"size": None, "scale_factor": (2.0, 2.0), "mode": mode, "align_corners": False,
              "recompute_scale_factor": None, "antialias": False}
    shapes = Shapes((shape_in,), shape, {}, params)
    return DeltaNode(Description(
        "y", "", "", "local", "", operator.function, operator, (Slot(0),), params,
        (EdgeSpec("x", shape_in, dtype, lanes),), EdgeSpec("y", shape, dtype, lanes),
        tuple(operator.footprints(shapes)), 0, ALL_PROPAGATE, shapes=shapes))


def measure(mode: str, lanes: int, dtype: torch.dtype, share: float,
            launcher: CupyLauncher) -> dict[str, Any]:
    """Check a resizing against PyTorch's, then time both; return the figures."""
    torch.manual_seed(0)
    one = node(mode, lanes, dtype)
    x = torch.randn(lanes, *SHAPE, device=GPU, dtype=dtype).contiguous(
        memory_format=torch.channels_last)
    bench = Bound(one, [x], share, launcher)
    dense = lambda: one.about.function(*fill(one.about.args, (x,)), **one.about.params)  # noqa: E731
    needed = bench.check(bench.sparse, dense())
    return {"mode": mode, "lanes": lanes, "dtype": str(dtype), "share": share,
            "candidates": needed, "dense_ms": time_ms(dense),
            "sparse_ms": time_ms(bench.sparse, REPEATS)}


def all_rows(launcher: CupyLauncher) -> list[dict[str, Any]]:
    """Measure all cases and print them."""
    rows = []
    for mode in ("bilinear", "bicubic"):
        for lanes in (1, 8):
            for share in (0.05, 1.0):
                row = measure(mode, lanes, torch.float16, share, launcher)
                rows.append(row)
                print(f"{mode} lanes {lanes} needed {row['candidates']:.1%}: PyTorch "
                      f"{1e3 * row['dense_ms']:.1f} us, delta {1e3 * row['sparse_ms']:.1f} us",
                      flush=True)
    return rows


if __name__ == "__main__":
    with torch.inference_mode():
        all_rows(CupyLauncher(GPU))
