"""The oracle: the rule in plain PyTorch, any dtype, any device. Slow is fine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.base import Backend, Buffers, Scratch, Step, Work
from deltaconvert.backends.rule import apply_rule, change_norm, nothing_changed, run_needed
from deltaconvert.config import Config
from deltaconvert.errors import NotFiniteError, UnsupportedError
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import Edge, State

BLOCK = 8


class ReferenceBackend(Backend):
    """See the module; an instance keeps only the configuration."""

    name = "reference"

    def __init__(self, config: Config) -> None:
        """Keep the configuration."""
        self.config = config

    def supports(self, node: DeltaNode) -> str | None:
        """Everything is supported."""
        return None

    def fold_filters(self, node: DeltaNode) -> Any:
        """No layout of its own: the constants are in the node's arguments."""
        return None

    def plan(self, node: DeltaNode) -> list[Scratch]:
        """No working memory of its own: PyTorch allocates as it goes."""
        return []

    def bind(self, node: DeltaNode, weights: Any, buffers: Buffers) -> Step:
        """Return the step of a node; see `Backend.bind`."""
        about = node.about
        if about.rule == "sparsify":
            return ReferenceSparsify(node, self.config, buffers)
        if about.output.shape is None:
            return lambda: _run_opaque(node, buffers)
        if about.rule == "local":
            return lambda: _run_local(node, buffers)
        return lambda: _run_whole(node, buffers)


def create(config: Config) -> ReferenceBackend:
    """Make the backend for one program."""
    return ReferenceBackend(config)


def fresh_lanes(state: State, device: torch.device) -> Tensor:
    """Return the lanes at their first frame, as bool ``[lanes]``."""
    return torch.tensor(state.fresh, device=device)


def candidates(node: DeltaNode, inputs: tuple[Edge, ...], fresh: Tensor) -> Tensor:
    """Derive a local node's candidates from its inputs' masks; fresh lanes are full."""
    found = torch.zeros(node.about.output.mask_shape, dtype=torch.bool, device=fresh.device)
    found |= fresh.view(-1, 1, 1)
    for edge, footprint in zip(inputs, node.about.footprints, strict=True):
        found |= footprint.candidates(edge.mask)  # a map without lanes broadcasts over them
    return found


def _run_local(node: DeltaNode, buffers: Buffers) -> Work:
    edge = buffers.output
    fresh = fresh_lanes(buffers.state, edge.mask.device)
    found = candidates(node, buffers.inputs, fresh)
    count = int(found.sum())
    if count == 0:
        return nothing_changed(edge)
    new = node.evaluate(*(e.value for e in buffers.inputs))
    apply_rule(edge, new, found, fresh, node.about.norm)
    scheduled = int(found.flatten(1).any(1).sum()) * node.dense_multiply_adds
    return Work(count, scheduled)


def _run_whole(node: DeltaNode, buffers: Buffers) -> Work:
    edge = buffers.output
    if not run_needed(buffers):
        return nothing_changed(edge)
    new = node.evaluate(*(e.value for e in buffers.inputs))
    if tuple(new.shape) != edge.spec.shape:
        raise UnsupportedError(
            f"{node.about.name}: the result's shape depends on the data: {edge.spec.shape} as it "
            f"was compiled, {tuple(new.shape)} now ({node.about.source}). Convert the part before "
            "it.")
    state = buffers.state
    fresh = fresh_lanes(state, edge.mask.device) if state.fresh.any() else None
    # All lanes, whichever changed: such an f may mix them (``x.flip(0)``, batch statistics).
    apply_rule(edge, new, None, fresh, node.about.norm)
    return Work(edge.mask.numel(), state.lanes * node.dense_multiply_adds)


def _run_opaque(node: DeltaNode, buffers: Buffers) -> Work:
    edge = buffers.output
    if not run_needed(buffers):
        return nothing_changed(edge)
    edge.value = node.evaluate(*(e.value for e in buffers.inputs))
    edge.mask.fill_(1)
    edge.publish([1])
    return Work(1, buffers.state.lanes * node.dense_multiply_adds)


class ReferenceSparsify:
    """The rule at the door: the frame is f."""

    def __init__(self, node: DeltaNode, config: Config, buffers: Buffers) -> None:
        """Keep the edge and the settings of the test."""
        self.node, self.config = node, config
        self.edge, self.state = buffers.output, buffers.state

    def examine(self, frame: Tensor) -> None:
        """Refuse NaN and infinity.

        Raises:
            NotFiniteError: naming the lane and how many numbers are not finite.
        """
        if frame.is_floating_point() and not frame.isfinite().all():
            refuse_not_finite(self.node, frame)

    def __call__(self, frame: Tensor) -> Work:
        """Compare the frame with the value and replace what changed."""
        edge = self.edge
        fresh = fresh_lanes(self.state, edge.mask.device)
        if edge.spec.is_map and self.config.input_test == "block" and self.config.input_threshold:
            self._replace_blocks(frame, fresh)
        else:
            apply_rule(edge, frame, None, fresh, self.node.about.norm)
        return Work(edge.mask.numel(), 0)

    def _replace_blocks(self, frame: Tensor, fresh: Tensor) -> None:
        edge, norm = self.edge, self.node.about.norm
        height, width = edge.mask.shape[1:]
        mean = block_mean(frame - edge.value)
        blocks = _norm_of(mean, norm) > self.config.input_threshold
        pixels = change_norm(frame, edge.value, norm, True, True) > self.config.cap
        blocks |= block_any(pixels)
        chosen = blocks.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, :height, :width]
        chosen = chosen & (frame != edge.value).any(1) | fresh.view(-1, 1, 1)
        edge.value.copy_(torch.where(chosen[:, None], frame, edge.value))
        edge.mask.copy_(chosen)
        edge.publish(chosen.flatten(1).sum(1).tolist())


def refuse_not_finite(node: DeltaNode, frame: Tensor) -> None:
    """Raise the error for a frame with NaN or infinity.

    Raises:
        NotFiniteError: always.
    """
    bad = ~frame.isfinite()
    lanes = bad.flatten(1).any(1).nonzero().flatten().tolist() if frame.dim() > 1 else [0]
    raise NotFiniteError(
        f"input {node.about.path!r} holds {int(bad.sum())} numbers that are NaN or infinite "
        f"(lanes {lanes}). The frame was refused and the stream is as it was; check the decoder "
        "and the normalisation, or skip the frame.")


def _norm_of(difference: Tensor, norm: str) -> Tensor:
    return difference.abs().amax(1) if norm == "max" else difference.square().mean(1).sqrt()


def block_mean(maps: Tensor) -> Tensor:
    """Average over 8x8 blocks, those cut by the border over the pixels they have."""
    return torch.nn.functional.avg_pool2d(
        maps, BLOCK, ceil_mode=True, count_include_pad=False)


def block_any(pixels: Tensor) -> Tensor:
    """Return which 8x8 blocks hold a set pixel; bool ``[N, H, W]`` in, blocks out."""
    return torch.nn.functional.max_pool2d(
        pixels[:, None].float(), BLOCK, ceil_mode=True)[:, 0] > 0
