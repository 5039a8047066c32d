"""Which pixels a frame recomputed, by resolution: for overlays."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.nodes import DeltaNode
from deltaconvert.state import Edge
from deltaconvert.work import OTHER, scale_order, scales

INPUT = "input"


class Recomputed:
    """An observer of a stream that keeps the masks of its last frame.

    It copies one byte a pixel and node; what follows from them is worked out when asked.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._nodes: list[DeltaNode] = []
        self._masks: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Forget the frame before."""
        self._nodes.clear()
        self._masks.clear()

    def __call__(self, node: DeltaNode, edge: Edge) -> None:
        """Keep the mask of one node."""
        self._nodes.append(node)
        self._masks[node.about.name] = edge.mask.to("cpu", copy=True)

    def by_scale(self, lane: int) -> dict[str, Tensor]:
        """Return how much of each pixel was recomputed, in one lane.

        Returns:
            By resolution, the largest first, ``[H, W]`` from 0 to 1: the share of the nodes
            of that resolution that evaluated the pixel again. Under ``"input"``: the pixels
            that changed in the frame.
        """
        groups: dict[str, list[Tensor]] = {}
        for node, scale in zip(self._nodes, scales(self._nodes), strict=True):
            if scale == OTHER or node.about.aliases:
                continue
            is_input = node.about.rule == "sparsify"
            found = self._masks[node.about.name] if is_input else self._candidates(node)
            groups.setdefault(INPUT if is_input else scale, []).append(found[lane].float())
        ordered = sorted(groups, key=lambda s: (s != INPUT, s != INPUT and scale_order(s)))
        return {scale: _mean_of_largest(groups[scale]) for scale in ordered}

    def _candidates(self, node: DeltaNode) -> Tensor:
        about = node.about
        found = torch.zeros(about.output.mask_shape, dtype=torch.bool)
        inputs = [self._masks[edge.name] for edge in about.inputs]
        if about.rule == "local":
            for mask, footprint in zip(inputs, about.footprints, strict=True):
                found |= footprint.candidates(mask)
        elif any(bool(mask.any()) for mask in inputs):
            found.fill_(True)
        return found


def _mean_of_largest(maps: list[Tensor]) -> Tensor:
    """Average maps of one size; odd sizes are halved to two sizes, and the last one counts."""
    return torch.stack([m for m in maps if m.shape == maps[-1].shape]).mean(0)
