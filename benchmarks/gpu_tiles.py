"""Which tile of warpgroups is best for each layer of ResNet-50's body: what tiles.py chooses by.

    python benchmarks/gpu_tiles.py [--dtype float32] [--lanes 1 8] [--share 0.05] [--chosen]

float32 is multiplied as tf32. Each tile's output is checked before it is timed; behind the times
is the error of the layer, and how much larger or smaller its sums are, of the library and of ours,
against float32 by the library.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from gpu_layers import ALL_PROPAGATE, GPU, REPEATS, Bench, Layer, body, time_ms
from torch import Tensor

from deltaconvert.backends.cuda.tiles import LARGE_CLUSTER, Tile
from deltaconvert.cuda.launcher import CupyLauncher

# bm, stages, early, splits by the columns of a tile.
TILES = {
    64: [(64, 3, True, 1), (64, 4, True, 1), (64, 4, False, 1), (64, 6, True, 1), (64, 3, True, 2),
         (64, 4, True, 2), (64, 4, False, 2), (64, 4, True, 4), (64, 4, False, 4),
         (128, 3, False, 1), (128, 4, False, 1), (128, 6, False, 1), (128, 4, False, 2)],
    128: [(64, 3, True, 1), (64, 4, True, 1), (64, 3, False, 1), (64, 4, False, 1),
          (64, 3, True, 2), (64, 4, True, 2), (64, 4, False, 2), (64, 4, True, 4),
          (64, 4, False, 4), (128, 3, False, 1), (128, 4, False, 1), (128, 4, False, 2)],
    256: [(64, 4, False, 1), (128, 4, False, 1), (64, 4, False, 2)]}
# Of which a warpgroup copies, for 16-bit numbers: bm, bn, stages.
AHEAD = ((128, 64, 4), (64, 128, 4), (128, 128, 6))


def tiles(layer: Layer, lanes: int, dtype: torch.dtype, limit: int) -> Iterator[dict[str, Any]]:
    """Yield what is tried for a layer, where it fits."""
    if dtype.itemsize == 2:
        yield from ({"warpgroups": True, "bm": bm, "bn": bn, "stages": stages, "early": True,
                     "splits": 1, "ahead": True} for bm, bn, stages in AHEAD
                    if bn < 2 * layer.cout and layer.cout <= LARGE_CLUSTER * bn)
    for bn, some in TILES.items():
        for bm, stages, early, splits in some:
            tile = Tile(True, bm, bn, 128 // dtype.itemsize, stages, True, True, early, splits)
            shared = tile.shared_bytes(dtype.itemsize, (layer.kernel,) * 2, layer.cout,
                                       layer.residual) + 6 * 1024  # and for `Found`
            if (bn < 2 * layer.cout and tile.cluster(layer.cout) <= LARGE_CLUSTER
                    and shared <= limit and (splits == 1 or lanes == 1)):
                yield {"warpgroups": True, "bm": bm, "bn": bn, "stages": stages, "early": early,
                       "splits": splits}


def compile_all(dtype: torch.dtype, launcher: CupyLauncher) -> None:
    """Compile what will be tried, several at once."""
    kernels = set()
    for bn, kernel in product(TILES, (1, 3)):
        layer = Layer(34, 60, 1024, bn, kernel, 1, False, 1)
        for told in tiles(layer, 1, dtype, launcher.shared_limit):
            if told["bn"] == bn:
                bench = Bench(layer, 1, dtype, 0.05, ALL_PROPAGATE, launcher, told)
                kernels.update(launch.kernel for launch in bench.steps[0].launches)
    launcher.prepare(kernels)


def off(found: Tensor, exact: Tensor) -> str:
    """Return the relative error, and the factor of the sums less one."""
    found, exact = found.double(), exact.double()
    factor = float((found * exact).sum() / exact.square().sum()) - 1
    return f"{float((found - exact).norm() / exact.norm()):.2e} ({factor:+.1e})"


def accuracy(bench: Bench) -> str:
    """Compare the library and a run of ours with float32."""
    with torch.backends.cudnn.flags(allow_tf32=False, benchmark=False):
        exact = bench.dense()
    dense = bench.dense()
    bench.output.mask.zero_()
    bench.sparse()
    mask = bench.output.mask.bool()[:, None].expand_as(exact)
    return (f"error of the library {off(dense[mask], exact[mask])}, "
            f"ours {off(bench.output.value[mask], exact[mask])}")


def in_words(tile: Tile) -> str:
    """Return a tile as the tables have it."""
    return (f"{tile.bm}x{tile.bn} {tile.stages}{' early' if tile.early else ''}"
            f"{' ahead' if tile.ahead else ''}"
            f"{f' /{tile.splits}' if tile.splits > 1 else ''}")


def sweep(layer: Layer, lanes: int, dtype: torch.dtype, share: float, launcher: CupyLauncher,
          tried: list[dict[str, Any]]) -> tuple[float, float]:
    """Print a layer's times; return that of the tile that is chosen, and of the best one."""
    bench = Bench(layer, lanes, dtype, share, ALL_PROPAGATE, launcher)
    wanted = bench.dense()
    bench.check(bench.sparse, wanted)
    chosen, accurate = in_words(bench.tile), accuracy(bench)
    times = {chosen: time_ms(bench.sparse, REPEATS, 9)}
    for told in tried:
        bench = Bench(layer, lanes, dtype, share, ALL_PROPAGATE, launcher, told)
        if in_words(bench.tile) not in times:
            try:
                bench.check(bench.sparse, wanted)
                times[in_words(bench.tile)] = time_ms(bench.sparse, REPEATS, 9)
            except (AssertionError, RuntimeError) as error:
                print("FAILED", layer, told, str(error)[:300], flush=True)
    ranked = sorted(times, key=lambda name: times[name])
    print(f"{layer!s:32} x{layer.times} lanes {lanes} {share:.0%}: chosen {chosen} "
          f"{1e3 * times[chosen]:.1f}; "
          + ", ".join(f"{name} {1e3 * times[name]:.1f}" for name in ranked)
          + f"; {accurate}", flush=True)
    return times[chosen], times[ranked[0]]


def main() -> None:
    """Try all tiles for all layers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lanes", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--chosen", action="store_true", help="only the tiles that are chosen")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    launcher, dtype = CupyLauncher(GPU), getattr(torch, options.dtype)
    with torch.inference_mode():
        if not options.chosen:
            compile_all(dtype, launcher)
        for lanes in options.lanes:
            chosen = best = 0.0
            for layer in body():
                tried = [] if options.chosen else list(
                    tiles(layer, lanes, dtype, launcher.shared_limit))
                ours, least = sweep(layer, lanes, dtype, options.share, launcher, tried)
                chosen, best = chosen + layer.times * ours, best + layer.times * least
            print(f"== lanes {lanes}: chosen {chosen:.3f} ms, the best of each {best:.3f} ms",
                  flush=True)


if __name__ == "__main__":
    main()
