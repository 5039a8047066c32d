"""The one rule in plain PyTorch, for whole maps; every backend answers to it."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers, Work
from deltaconvert.config import Norm
from deltaconvert.state import Edge


def change_norm(new: Tensor, old: Tensor, norm: Norm, is_map: bool, has_lanes: bool) -> Tensor:
    """Return the norm over channels of ``new - old``, in the shape of the mask.

    For maps the channels are dimension 1; anything else is one pixel a lane, and all
    its numbers are that pixel's channels. Numbers without a difference (integers,
    booleans) count 1 where they differ.
    """
    if not (new.is_floating_point() or new.is_complex()):
        return _size((new != old).float(), norm, is_map, has_lanes)
    size = _size(new - old, norm, is_map, has_lanes)
    if size.isnan().any():  # maybe of two infinities that are the same
        size = _size((new - old).masked_fill_(new == old, 0), norm, is_map, has_lanes)
    return size


def _size(difference: Tensor, norm: Norm, is_map: bool, has_lanes: bool) -> Tensor:
    """Return the norm of a difference."""
    if not is_map:
        difference = difference.reshape(difference.shape[0] if has_lanes else 1, -1)
    if difference.is_complex():
        difference = difference.abs()
    if difference.shape[1] == 0:
        return difference.new_zeros(difference.shape[:1] + difference.shape[2:])
    if norm == "max":
        return difference.abs().amax(1)
    return difference.square().mean(1).sqrt()


def differs(new: Tensor, old: Tensor, is_map: bool, has_lanes: bool) -> Tensor:
    """Return where the norm of ``new - old`` is not 0, in the shape of the mask."""
    unlike = new != old
    if not is_map:
        unlike = unlike.reshape(new.shape[0] if has_lanes else 1, -1)
    return unlike.any(1)


def apply_rule(edge: Edge, new: Tensor, candidates: Tensor | None, fresh: Tensor | None,
               norm: Norm) -> None:
    """Compare ``new`` with the edge's value at the candidates; write value, mask and counts.

    Args:
        edge: what is written.
        new: f of the inputs' values, as large as the value.
        candidates: bool, as the mask; nothing where all pixels are.
        fresh: bool, one a lane: propagate everything; nothing where no lane is.
        norm: over channels.

    A difference that is not a number (an overflow that came or went) propagates.
    """
    spec = edge.spec
    if edge.threshold.any():
        size = change_norm(new, edge.value, norm, spec.is_map, spec.has_lanes)
        limit = torch.from_numpy(edge.threshold).to(size)
        changed = ~(size <= limit.view((-1,) + (1,) * (size.dim() - 1)))
    else:
        changed = differs(new, edge.value, spec.is_map, spec.has_lanes)
    if candidates is not None:
        changed &= candidates
    if fresh is not None:
        lanes = fresh if spec.has_lanes else fresh.any().reshape(1)
        changed |= lanes.view((-1,) + (1,) * (changed.dim() - 1))
    if changed.all():
        edge.value.copy_(new)
        edge.mask.fill_(1)
        edge.publish([spec.pixels] * len(edge.mask))
        return
    where = changed[:, None] if spec.is_map else changed.view(
        (-1,) + (1,) * (new.dim() - 1)) if spec.has_lanes else changed.reshape(())
    edge.value.copy_(torch.where(where, new, edge.value))
    edge.mask.copy_(changed)
    edge.publish(changed.reshape(changed.shape[0], -1).sum(1).tolist())


def run_needed(buffers: Buffers) -> bool:
    """Whether a node that runs whole must: an input changed, or a lane is fresh."""
    return any(buffers.state.fresh) or any(e.changed for e in buffers.inputs)


def unite_masks(buffers: Buffers) -> Work:
    """Do all the work of a concatenation written in place: the mask of its inputs together."""
    edge = buffers.output
    if not run_needed(buffers):
        return nothing_changed(edge)
    edge.mask.copy_(buffers.inputs[0].mask)
    for source in buffers.inputs[1:]:
        edge.mask |= source.mask
    edge.publish(edge.mask.flatten(1).sum(1).tolist())
    return Work(sum(edge.counts), 0)


def nothing_changed(edge: Edge) -> Work:
    """Leave the value, empty the mask."""
    if edge.changed:
        edge.mask.zero_()
    edge.publish([0] * len(edge.counts))
    return Work(0, 0)
