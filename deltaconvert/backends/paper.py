"""The published form of delta networks in plain PyTorch: for study, and as a yardstick.

After DeltaCNN (CVPR 2022, arXiv 2203.03996), written from its equations. Where every other
backend re-evaluates a node from complete values, here an edge carries a delta ``dx`` and an
update mask, and what is known about the past is a sum of deltas:

- sparsify keeps the previous frame ``p``: ``dx = frame - p`` where that exceeds the threshold.
- A linear layer works on the delta alone, and its bias enters at the first frame only:
  ``dy = L(dx)``, at the first frame ``dy = L(x) + b``. Masks dilate by its receptive field.
- An activation keeps its accumulated input ``x`` and a truncation buffer ``t``. With the
  update ``u = t + dx`` that is due, ``dy = f(x + u) - f(x)``. Where the norm of ``dy`` over
  the channels exceeds the threshold, ``dy`` is sent on, ``x`` becomes ``x + u`` and ``t`` 0;
  elsewhere nothing is sent and ``t`` becomes ``u``: kept back until it has grown.
- Any other non-linear layer keeps its accumulated inputs: ``dy = f(x + dx) - f(x)``.
- densify accumulates: ``y = y + dy``.

At a lane's first frame all of it is zero before, and ``dy = f(x)``. Only sparsify and
activations truncate; the thresholds of other nodes are not used, as published.

An edge's ``value`` here is the densified map, the sum of its deltas. The method itself has it
only at the outputs; here it is everywhere, because observers and nodes that another backend
runs read it. `kept_maps` counts what the method keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.base import Backend, Buffers, Scratch, Step, Work
from deltaconvert.backends.reference import ReferenceSparsify, candidates, fresh_lanes
from deltaconvert.backends.rule import change_norm, nothing_changed
from deltaconvert.config import Config
from deltaconvert.nodes import DeltaNode, Description, EdgeSpec, Slot, fill, slots
from deltaconvert.operators.epilogue import activate
from deltaconvert.state import Edge, State

DELTA = "paper.delta"  # in an edge's cache, which is emptied whenever its mask is written

# Linear as they are: no numbers of their own are added.
_HOMOGENEOUS = frozenset({"avg_pool2d", "adaptive_avg_pool2d", "mean", "select", "pad_zero",
                          "resize", "resize_nearest", "pixel_shuffle", "pixel_unshuffle",
                          "reshape", "flatten"})
_CONVOLUTIONS = frozenset({"conv2d", "conv_transpose2d"})
_WITH_WEIGHTS = _CONVOLUTIONS | {"batch_norm", "linear"}
_MAX_POOLING = frozenset({"max_pool2d", "adaptive_max_pool2d"})
_ELEMENTWISE = frozenset({"add", "sub", "mul"})


class PaperBackend(Backend):
    """See the module. An instance belongs to one program and may serve many streams."""

    name = "paper"

    def __init__(self, config: Config) -> None:
        """Keep the configuration."""
        self.config = config
        self._producers: dict[str, DeltaNode] = {}

    def supports(self, node: DeltaNode) -> str | None:
        """Return nothing, or why this node must run by ``reference``.

        Every node of the program is asked about, so this is also where the backend learns who
        makes which edge: a reader needs to know where the delta of its input comes from.
        """
        self._producers[node.about.name] = node
        return _refusal(node.about)

    def fold_filters(self, node: DeltaNode) -> LinearPart | None:
        """Return the node's linear part; nothing where it has none."""
        return None if node.about.rule == "sparsify" else _linear_part(node.about)

    def plan(self, node: DeltaNode) -> list[Scratch]:
        """Return the node's accumulators, and the previous value of inputs without a delta."""
        if node.about.aliases:
            return []
        derived = [spec for spec in node.about.inputs for spec in self._without_delta(spec)]
        maps = {**_maps(node.about), **{_previous_name(spec): spec for spec in derived}}
        return [Scratch(name, _nbytes(spec)) for name, spec in maps.items()]

    def bind(self, node: DeltaNode, weights: LinearPart | None, buffers: Buffers) -> Step:
        """Return the step of a node; see `Backend.bind`."""
        if node.about.rule == "sparsify":
            return PaperSparsify(node, self.config, buffers)
        sources = [self._source(edge, buffers) for edge in buffers.inputs]
        return _PaperStep(node, buffers, sources, weights, _nonlinear_part(node, buffers))

    def _parts(self, spec: EdgeSpec) -> list[EdgeSpec] | None:
        """Return what an edge is made of where it is a concatenation written in place."""
        producer = self._producers.get(spec.name)
        return list(producer.about.inputs) if producer and producer.about.aliases else None

    def _has_delta(self, spec: EdgeSpec) -> bool:
        producer = self._producers.get(spec.name)
        return producer is not None and producer.backend == self.name

    def _without_delta(self, spec: EdgeSpec) -> list[EdgeSpec]:
        parts = self._parts(spec)
        if parts is not None:
            return [missing for part in parts for missing in self._without_delta(part)]
        return [] if self._has_delta(spec) else [spec]

    def _source(self, edge: Edge, buffers: Buffers) -> Source:
        parts = self._parts(edge.spec)
        if parts is not None:
            sources = [self._source(buffers.state.edges[part.name], buffers) for part in parts]
            return lambda: torch.cat([source() for source in sources], 1)
        if self._has_delta(edge.spec):
            return lambda: _kept_delta(edge)
        previous = _map(buffers, _previous_name(edge.spec), edge.spec)
        return lambda: _derived_delta(edge, previous, buffers.state)


def create(config: Config) -> PaperBackend:
    """Make the backend for one program."""
    return PaperBackend(config)


def kept_maps(node: DeltaNode) -> int:
    """Count the maps that the published method keeps from frame to frame for a node.

    One for sparsify (the previous frame), densify (the sum of deltas) and max pooling (its
    accumulated input); two for an activation, alone or fused (accumulated input, truncation
    buffer); one an input for a product. Linear layers, average pooling among them, keep none.
    """
    if node.about.rule in ("sparsify", "densify"):
        return 1
    return len(_maps(node.about))


# What runs here, and what it keeps.


def _name(about: Description) -> str:
    return about.operator.name if about.operator else ""


def _is_activation(about: Description) -> bool:
    return about.operator is not None and (
        about.operator.is_activation or about.operator.name == "softmax")


def _is_product(about: Description) -> bool:
    """Whether two values that change are multiplied; times a constant is linear."""
    return _name(about) == "mul" and len(list(slots(about.args))) > 1


def _refusal(about: Description) -> str | None:
    name = _name(about)
    if about.rule != "sparsify" and not (
            name in _HOMOGENEOUS | _WITH_WEIGHTS | _MAX_POOLING | _ELEMENTWISE | {"cat"}
            or _is_activation(about)):
        what = name or getattr(about.function, "__name__", type(about.function).__name__)
        return f"the published method has no {what}"
    for spec in (*about.inputs, about.output):
        if not spec.has_lanes:
            return f"{spec.name} has no lanes (its shape is {spec.shape})"
        if spec.dtype is None or not spec.dtype.is_floating_point:
            return f"{spec.name} is {spec.dtype}: there are no deltas of it"
        if spec.dtype != about.output.dtype:
            return f"{spec.name} is {spec.dtype}, the result is {about.output.dtype}"
    if any(slots(about.params)) or (name in _WITH_WEIGHTS and any(slots(_weights(about)))):
        return "its weights or settings depend on the frame"
    return _mixes_lanes(about, name) if about.rule == "global" else None


def _weights(about: Description) -> tuple[Any, ...]:
    """Return the arguments behind the map, without a convolution's residual."""
    return about.args[1:3] if _name(about) in _CONVOLUTIONS else about.args[1:]


def _mixes_lanes(about: Description, name: str) -> str | None:
    """Say why a node that runs whole would mix the lanes, or why its lanes are not known."""
    rank = len(about.inputs[0].shape or ())
    ranks = {len(spec.shape or ()) for spec in (*about.inputs, about.output)}
    dims = about.params.get("dim", ())
    dims = (dims,) if isinstance(dims, int) else dims
    if (any(d % rank == 0 for d in dims) or rank < 2 or name in _CONVOLUTIONS
            or (name in _ELEMENTWISE and len(ranks) > 1)):
        return f"it may mix the lanes ({about.reason or name})"
    return None


def _maps(about: Description) -> dict[str, EdgeSpec]:
    """Return the accumulators that a node keeps beside its edge, by the name of the scratch."""
    if about.rule == "sparsify":
        return {}  # the previous frame is the edge's value
    if _is_activation(about) or about.params.get("activation"):
        return {f"paper.{about.name}.input": about.output,
                f"paper.{about.name}.held": about.output}
    if _name(about) in _MAX_POOLING or _is_product(about):
        return {f"paper.{about.name}.input{i}": spec for i, spec in enumerate(about.inputs)}
    return {}


def _previous_name(spec: EdgeSpec) -> str:
    return f"paper.{spec.name}.previous"


def _nbytes(spec: EdgeSpec) -> int:
    assert spec.shape is not None
    assert spec.dtype is not None
    return math.prod(spec.shape) * spec.dtype.itemsize


def _map(buffers: Buffers, name: str, spec: EdgeSpec) -> Tensor:
    """View a node's own scratch as a map in channels-last memory, or as what it is."""
    assert spec.shape is not None
    assert spec.dtype is not None
    numbers = buffers.scratch[name][:_nbytes(spec)].view(spec.dtype)
    if len(spec.shape) != 4:
        return numbers.view(spec.shape)
    lanes, channels, height, width = spec.shape
    return numbers.view(lanes, height, width, channels).permute(0, 3, 1, 2)


# Linear layers.


@dataclass(frozen=True)
class LinearPart:
    """A linear layer ``L(x) + b``.

    Args:
        apply: ``L``, on the deltas of the node's inputs.
        whole: ``L(x) + b``, for a lane's first frame.
    """

    apply: Callable[..., Tensor]
    whole: Callable[..., Tensor]

    def __call__(self, deltas: Sequence[Tensor], fresh: Tensor) -> Tensor:
        """Return ``L(deltas)``, and in fresh lanes ``L(deltas) + b``."""
        if not fresh.any():
            return self.apply(*deltas)
        y = self.whole(*deltas)
        return y if fresh.all() else torch.where(_lanes(fresh, y), y, self.apply(*deltas))


def _linear_part(about: Description) -> LinearPart | None:
    """Take a node's linear part, without the activation that may be fused behind it."""
    name = _name(about)
    if _is_activation(about) or name in _MAX_POOLING or _is_product(about):
        return None
    params = dict(about.params)
    params.pop("activation", None)

    def whole(*deltas: Tensor) -> Tensor:
        return about.function(*fill(about.args, deltas), **params)

    if name in _WITH_WEIGHTS:
        silent = _silence_weights(about, name)
    elif name in ("add", "sub"):
        silent = _silence(about.args)
    elif name == "cat":
        silent = (_silence(about.args[0]), *about.args[1:])
    else:
        return LinearPart(whole, whole)
    return LinearPart(lambda *deltas: about.function(*fill(silent, deltas), **params), whole)


def _silence_weights(about: Description, name: str) -> tuple[Any, ...]:
    """Return the arguments without what is added.

    A bias is left out. A norm loses its mean and its offset: ``L(x) = s x`` with
    ``s = gamma / sqrt(var + eps)``, ``b = beta - mean s``.
    """
    if name == "batch_norm":
        x, mean, var, gamma, _ = about.args
        return x, torch.zeros_like(mean), var, gamma, None
    x, weight, *rest = about.args
    return x, weight, None, *rest[1:]


def _silence(terms: Sequence[Any]) -> tuple[Any, ...]:
    """Replace what is constant among the terms of a sum, or the parts of a map, by zeros."""
    return tuple(t if isinstance(t, Slot) else
                 torch.zeros_like(t) if isinstance(t, Tensor) else 0 for t in terms)


# Non-linear layers.


class _Activation:
    """``dy = f(x + u) - f(x)`` with ``u = t + dx``, truncated; see the module."""

    def __init__(self, function: Callable[[Tensor], Tensor], node: DeltaNode,
                 buffers: Buffers) -> None:
        """Take the accumulated input ``x`` and the truncation buffer ``t``."""
        self.function, self.edge, self.norm = function, buffers.output, node.about.norm
        self.input, self.held = (_map(buffers, name, spec)
                                 for name, spec in _maps(node.about).items())

    def __call__(self, deltas: Sequence[Tensor], found: Tensor,
                 fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Return the delta and its mask, bool."""
        spec, (delta,) = self.edge.spec, deltas
        first = _lanes(fresh, delta)
        old = torch.where(first, torch.zeros_like(self.input), self.input)
        update = torch.where(first, delta, self.held + delta)
        before, after = self.function(old), self.function(old + update)
        size = change_norm(after, before, self.norm, spec.is_map, spec.has_lanes)
        limit = torch.from_numpy(self.edge.threshold).to(size)
        sent = found & ~(size <= _lanes(limit, size)) | _lanes(fresh, found)
        where = _pixels(sent, spec)
        self.input.copy_(torch.where(where, old + update, old))
        self.held.copy_(torch.where(where, torch.zeros_like(update), update))
        return torch.where(first, after, after - before), sent


class _Accumulated:
    """``dy = f(x + dx) - f(x)`` for a function of one or more inputs; sends all of it."""

    def __init__(self, function: Callable[..., Tensor], node: DeltaNode, buffers: Buffers) -> None:
        """Take the accumulated inputs."""
        self.function = function
        self.inputs = [_map(buffers, name, spec) for name, spec in _maps(node.about).items()]

    def __call__(self, deltas: Sequence[Tensor], found: Tensor,
                 fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Return the delta and its mask, bool."""
        before = self.function(*self.inputs)
        for x, delta in zip(self.inputs, deltas, strict=True):
            x.copy_(torch.where(_lanes(fresh, x), delta, x + delta))
        after = self.function(*self.inputs)
        return torch.where(_lanes(fresh, after), after, after - before), found


def _nonlinear_part(node: DeltaNode, buffers: Buffers) -> _Activation | _Accumulated | None:
    about = node.about
    fused = about.params.get("activation")
    if fused:
        return _Activation(lambda x: activate(x, fused), node, buffers)
    if _is_activation(about):
        return _Activation(node.evaluate, node, buffers)
    return _Accumulated(node.evaluate, node, buffers) if _maps(about) else None


# A frame.


class PaperSparsify(ReferenceSparsify):
    """``dx = frame - p`` where it is more than is held back; ``p`` is the edge's value."""

    def __call__(self, frame: Tensor) -> Work:
        """Replace what changed, and leave the difference as the edge's delta."""
        before = self.edge.value.clone()
        work = super().__call__(frame)
        if self.edge.changed:
            fresh = fresh_lanes(self.state, self.edge.mask.device)
            self.edge.cache[DELTA] = _difference(self.edge, before, fresh)
        return work


class _PaperStep:
    """One node in one frame: the linear part of it, the non-linear part, accumulation."""

    def __init__(self, node: DeltaNode, buffers: Buffers, sources: Sequence[Source],
                 linear: LinearPart | None, nonlinear: _Activation | _Accumulated | None) -> None:
        """Keep what `PaperBackend.bind` resolved."""
        self.node, self.buffers, self.sources = node, buffers, sources
        self.linear, self.nonlinear = linear, nonlinear

    def __call__(self) -> Work:
        """Turn the inputs' deltas into the output's; see the module for the equations."""
        edge, fresh = self.buffers.output, fresh_lanes(self.buffers.state,
                                                       self.buffers.output.mask.device)
        found = self._candidates(fresh)
        count = int(found.sum())
        if count == 0:
            return nothing_changed(edge)
        deltas = [source() for source in self.sources]
        if self.linear is not None:
            deltas = [_masked(self.linear(deltas, fresh), found, edge.spec)]
        delta, mask = deltas[0], found
        if self.nonlinear is not None:
            delta, mask = self.nonlinear(deltas, found, fresh)
        _accumulate(edge, delta, mask, fresh)
        lanes = int(found.flatten(1).any(1).sum()) if found.dim() > 1 else count
        return Work(count, lanes * self.node.dense_multiply_adds)

    def _candidates(self, fresh: Tensor) -> Tensor:
        """Return the dilated mask; of a node that reads whole lanes, the lanes that changed."""
        if self.node.about.rule == "local":
            return candidates(self.node, self.buffers.inputs, fresh)
        touched = fresh.clone()
        for source in self.buffers.inputs:
            touched |= torch.tensor(list(source.counts), device=fresh.device) > 0
        mask = self.buffers.output.mask
        return _lanes(touched, mask).expand(mask.shape)


def _accumulate(edge: Edge, delta: Tensor, mask: Tensor, fresh: Tensor) -> None:
    """Add the masked delta to the value, ``y = y + dy``, and publish both."""
    delta = _masked(delta, mask, edge.spec)
    edge.value.copy_(torch.where(_lanes(fresh, delta), delta, edge.value + delta))
    edge.mask.copy_(mask)
    edge.publish(mask.reshape(mask.shape[0], -1).sum(1).tolist())
    edge.cache[DELTA] = delta


Source = Callable[[], Tensor]


def _kept_delta(edge: Edge) -> Tensor:
    """Return what the producer left in this frame; nothing left is zero."""
    delta: Any = edge.cache.get(DELTA)
    return torch.zeros_like(edge.value) if delta is None else delta


def _derived_delta(edge: Edge, previous: Tensor, state: State) -> Tensor:
    """Return ``value - previous value`` for an edge that another backend writes."""
    delta = edge.cache.get(DELTA)
    if delta is None:  # the first reader in this frame
        delta = _difference(edge, previous, fresh_lanes(state, edge.mask.device))
        previous.copy_(edge.value)
        edge.cache[DELTA] = delta
    return delta


def _difference(edge: Edge, before: Tensor, fresh: Tensor) -> Tensor:
    """Return the value's change at the masked pixels; the value itself in fresh lanes."""
    change = torch.where(_lanes(fresh, before), edge.value, edge.value - before)
    return _masked(change, edge.mask.bool(), edge.spec)


def _masked(delta: Tensor, mask: Tensor, spec: EdgeSpec) -> Tensor:
    """Zero outside the mask; also what a fast convolution leaves there by rounding."""
    return torch.where(_pixels(mask, spec), delta, torch.zeros_like(delta))


def _pixels(mask: Tensor, spec: EdgeSpec) -> Tensor:
    """View a mask so that it broadcasts over the channels of a value."""
    assert spec.shape is not None
    return mask[:, None] if spec.is_map else mask.view((-1,) + (1,) * (len(spec.shape) - 1))


def _lanes(numbers: Tensor, like: Tensor) -> Tensor:
    """View one number a lane so that it broadcasts over ``like``."""
    return numbers.view((-1,) + (1,) * (like.dim() - 1))
