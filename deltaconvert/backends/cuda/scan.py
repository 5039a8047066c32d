"""Convolutions that find their candidates themselves, in masks kept as bits; `scan.cuh`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from deltaconvert.backends.cuda.candidates import Tables
from deltaconvert.backends.cuda.tiles import Tile
from deltaconvert.nodes import DeltaNode, EdgeSpec

WORD, WARP, PACK = 32, 32, 4  # bits, threads, words that are copied together
MOST_WORDS = 1200  # every block looks through all of them
MOST_SOURCES = 2


def words_of(spec: EdgeSpec) -> int:
    """Count the words of a map's mask, whole ones in every row, in whole packs."""
    lanes, height, width = spec.mask_shape
    return -(-lanes * height * -(-width // WORD) // PACK) * PACK


def as_words(mask: Tensor) -> Tensor:
    """Return a mask's bits, int32 ``[words]``, as `mark` in common.cuh sets them."""
    padded = F.pad(mask.bool(), (0, -mask.shape[-1] % WORD)).unflatten(-1, (-1, WORD))
    words = (padded.long() << torch.arange(WORD, device=mask.device)).sum(-1).flatten()
    words = F.pad(words, (0, -len(words) % PACK))
    return torch.where(words >= 2**31, words - 2**32, words).int()


def scans(node: DeltaNode, tile: Tile, phases: int, tables: Tables) -> bool:
    """Whether a convolution finds its candidates itself.

    Args:
        node: a convolution.
        tile: that it is computed by.
        phases: how many it has.
        tables: of the program, as far as nodes are planned.
    """
    about = node.about
    return (tile.warpgroups and not tile.ahead and phases == 1 and len(about.inputs) <= MOST_SOURCES
            and words_of(about.output) <= MOST_WORDS and not tables.reads_changes(node)
            and all(footprint.is_identity for footprint in about.footprints)
            and all(edge.name in tables.markers and edge.mask_shape == about.output.mask_shape
                    for edge in about.inputs))


def scan_bytes(node: DeltaNode, threads: int) -> int:
    """Count the shared memory of `Found` in scan.cuh."""
    return 4 * (words_of(node.about.output) + threads + threads // WARP)
