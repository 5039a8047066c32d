"""Plan state: which buffers a stream needs, in bytes, before anything is allocated.

Before: delta nodes with shapes.
After: a `Plan`: a value and a mask an edge, a concatenation's inputs as slices of its own
buffer (so that writing them is the concatenation), and working memory shared by all nodes.

An edge is written in place into a concatenation where that is along the channels, all its
inputs are maps of other nodes' making, and none is in another concatenation already; larger ones
choose first. What another one joins is often a run of a larger one's inputs (a dense block joins
all that it has made so far, again and again): then it is a slice of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from deltaconvert.backends.base import Backend
from deltaconvert.nodes import DeltaNode, EdgeSpec
from deltaconvert.operators.cat import cat
from deltaconvert.passes.fold_filters import delta_nodes

# Value and mask by edge, scratch by name, and the memory that all masks are slices of.
Allocated = tuple[dict[str, tuple[Tensor | None, Tensor]], dict[str, Tensor], Tensor]
MASK_ALIGNMENT = 64  # bytes: a cache line, and what a GPU clears at once is a part of it


@dataclass
class Plan:
    """The buffers of one stream.

    Args:
        edges: what the nodes produce, in order of execution.
        inside: an edge's place in a concatenation: ``(its name, first channel)``.
        scratch: bytes of working memory, by name.
    """

    edges: list[EdgeSpec]
    inside: dict[str, tuple[str, int]] = field(default_factory=dict)
    scratch: dict[str, int] = field(default_factory=dict)

    @property
    def value_bytes(self) -> int:
        """Bytes of all values; a slice of a concatenation costs nothing of its own."""
        return sum(_value_bytes(e) for e in self.edges if e.name not in self.inside)

    @property
    def nbytes(self) -> int:
        """Bytes of the stream's state and working memory."""
        return self.value_bytes + self.mask_bytes + sum(self.scratch.values())

    @property
    def mask_bytes(self) -> int:
        """Bytes of all masks, each beginning at a multiple of `MASK_ALIGNMENT`."""
        return sum(_mask_bytes(e) for e in self.edges)

    def allocate(self, device: torch.device) -> Allocated:
        """Make the buffers on a device; what others lie in first."""
        made: dict[str, tuple[Tensor | None, Tensor]] = {}
        masks = torch.zeros(self.mask_bytes, dtype=torch.uint8, device=device)
        at = 0
        for spec in sorted(self.edges, key=self._depth):
            mask = masks[at:at + math.prod(spec.mask_shape)].view(spec.mask_shape)
            made[spec.name] = self._value(spec, made, device), mask
            at += _mask_bytes(spec)
        scratch = {name: torch.empty(nbytes, dtype=torch.uint8, device=device)
                   for name, nbytes in self.scratch.items()}
        return made, scratch, masks

    def _depth(self, spec: EdgeSpec) -> int:
        """Count the concatenations that an edge lies in."""
        depth, name = 0, spec.name
        while name in self.inside:
            depth, name = depth + 1, self.inside[name][0]
        return depth

    def _value(self, spec: EdgeSpec, made: Mapping[str, tuple[Tensor | None, Tensor]],
               device: torch.device) -> Tensor | None:
        if spec.shape is None:
            return None
        if spec.name in self.inside:
            outer, first = self.inside[spec.name]
            whole = made[outer][0]
            assert whole is not None
            return whole[:, first:first + spec.shape[1]]
        last = torch.channels_last if len(spec.shape) == 4 else torch.contiguous_format
        return torch.zeros(spec.shape, dtype=spec.dtype, device=device).contiguous(
            memory_format=last)


def plan_state(graph_module: GraphModule, backends: Mapping[str, Backend]) -> Plan:
    """Plan the buffers; marks the concatenations that are written in place."""
    nodes = delta_nodes(graph_module)
    plan = Plan([n.about.output for n in nodes])
    made = {n.about.name: n for n in nodes}
    for node in sorted(filter(_joins_maps, nodes), key=lambda n: -_value_bytes(n.about.output)):
        place = _place_inside(node, plan)
        if place:
            plan.inside[node.about.name] = place
        elif _can_hold(node, made, plan):
            for spec, first in _first_channels(node):
                plan.inside[spec.name] = (node.about.name, first)
        else:
            continue
        node.about.aliases = True
    for node in nodes:
        for want in backends[node.backend].plan(node):
            plan.scratch[want.name] = max(want.nbytes, plan.scratch.get(want.name, 0))
    return plan


def _joins_maps(node: DeltaNode) -> bool:
    """Whether this is a concatenation of different maps along their channels, and of nothing else.
    """
    about = node.about
    if about.function is not cat or about.rule != "local":
        return False
    names = {spec.name for spec in about.inputs}
    return len(about.args[0]) == len(about.inputs) == len(names) and all(
        spec.dtype == about.output.dtype for spec in about.inputs)


def _can_hold(node: DeltaNode, made: Mapping[str, DeltaNode], plan: Plan) -> bool:
    return all(made[spec.name].about.rule != "sparsify" and spec.name not in plan.inside
               for spec in node.about.inputs)


def _place_inside(node: DeltaNode, plan: Plan) -> tuple[str, int] | None:
    """Return where all inputs lie one behind the other in a concatenation already, if they do."""
    if node.about.name in plan.inside:
        return None
    outer, start = plan.inside.get(node.about.inputs[0].name, ("", 0))
    together = outer and all(plan.inside.get(spec.name) == (outer, start + first)
                             for spec, first in _first_channels(node))
    return (outer, start) if together else None


def _first_channels(node: DeltaNode) -> Iterator[tuple[EdgeSpec, int]]:
    """Yield each input of a concatenation and the first of its channels in the output."""
    first = 0
    for spec in node.about.inputs:
        assert spec.shape is not None
        yield spec, first
        first += spec.shape[1]


def _mask_bytes(spec: EdgeSpec) -> int:
    return -(-math.prod(spec.mask_shape) // MASK_ALIGNMENT) * MASK_ALIGNMENT


def _value_bytes(spec: EdgeSpec) -> int:
    if spec.shape is None or spec.dtype is None:
        return 0
    return math.prod(spec.shape) * spec.dtype.itemsize
