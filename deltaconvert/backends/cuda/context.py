"""What a stream keeps on its device beside values and masks: flags, counters, thresholds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cuda.functions import NOTHING, applied
from deltaconvert.cuda.arguments import Rule
from deltaconvert.cuda.launcher import Launcher
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import Edge, State

PACK_BYTES = 16


def activation_of(node: DeltaNode) -> tuple[object, ...] | None:
    """Return what is applied last: what is fused behind the operator, or the operator itself."""
    about = node.about
    if about.operator is not None and about.operator.is_activation:
        return (about.operator.name, *about.args[1:], *about.params.values())
    fused: tuple[object, ...] | None = about.params.get("activation")
    return fused


@dataclass
class Tally:
    """Where a node's work is counted, as indices into the counters.

    Args:
        changed: set pixels of its output's mask.
        candidates: one a phase of its list.
        candidates_are_scheduled: the work is done at the candidates, not for whole maps.
    """

    changed: int
    candidates: list[int]
    candidates_are_scheduled: bool = True


@dataclass
class Lists:
    """A list of candidates that nodes with equal footprints share in a frame.

    Args:
        pixels: address of the list.
        counts: index of its first counter; one a phase.
        phases: how many.
    """

    pixels: int
    counts: int
    phases: int

    @property
    def counters(self) -> list[int]:
        """Indices of its counters."""
        return list(range(self.counts, self.counts + self.phases))


@dataclass
class Context:
    """One stream's flags and counters; see the module.

    Args:
        state: of the stream.
        device: of its buffers.
        launcher: what runs kernels.
        capacity: counters, and edges, to make room for.
        bits: words of the edges whose masks are kept as bits too.
    """

    state: State
    device: torch.device
    launcher: Launcher
    capacity: int
    bits: Mapping[str, int] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    lists: dict[str, Lists] = field(default_factory=dict)
    scans: dict[str, Lists] = field(default_factory=dict)
    unions: dict[str, Edge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Allocate."""
        lanes = self.state.lanes
        self.counters = self._ints(-(-self.capacity // 4) * 4)
        self.grains = torch.ones_like(self.counters)
        self.words = self._ints(sum(self.bits.values()))
        places = itertools.accumulate(self.bits.values(), initial=0)
        self._places = dict(zip(self.bits, places, strict=False))
        # What the sparse way costs a candidate, and what the dense way counts without looking.
        self.costs = torch.zeros(len(self.counters), device=self.device)
        self.wholes = torch.zeros_like(self.counters)
        self.doors = torch.zeros(len(self.counters), dtype=torch.uint8, device=self.device)
        self.cost_of_all = 0.0
        self.work = torch.zeros(8, device=self.device)  # `Work` in work.cuh
        self.totals = torch.zeros(len(self.counters), 2, dtype=torch.int64, device=self.device)
        self.fresh, self.pending, self.bad = self._ints(lanes + 2), self._ints(lanes), (
            self._ints(lanes))
        # Read by the host at any time, without asking the device.
        self.told = torch.zeros(lanes, dtype=torch.int32, device="cpu")
        if self.device.type == "cuda":
            self.told = self.told.pin_memory()
        self.one = torch.ones(1, dtype=torch.int32, device=self.device)
        self.thresholds = torch.zeros(self.capacity, lanes, device=self.device)
        self._rows: dict[str, int] = {}
        self._counted = 0

    def _ints(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int32, device=self.device)

    def count(self, size: int = 1, grain: int = 1) -> int:
        """Reserve counters, and return the index of the first."""
        start, self._counted = self._counted, self._counted + size
        self.grains[start:start + size] = grain
        return start

    def weigh(self, counters: Sequence[int], cost: float, pixels: int) -> None:
        """Say what a node that has less to do by the dense way costs the sparse one, a candidate.

        Args:
            counters: of its candidates; nodes with the same list share them.
            cost: in any unit.
            pixels: of all counters, if all are candidates.
        """
        self.costs[list(counters)] += cost
        self.cost_of_all += cost * pixels

    @property
    def counted(self) -> int:
        """How many counters are in use."""
        return self._counted

    def counter(self, index: int) -> int:
        """Return a counter's address."""
        return self.counters.data_ptr() + 4 * index

    def bits_of(self, edge: Edge) -> int | None:
        """Return the address of an edge's mask as bits, if a reader wants them."""
        place = self.place_of(edge)
        return None if place is None else self.words.data_ptr() + 4 * place

    def place_of(self, edge: Edge) -> int | None:
        """Return the first of an edge's words, if a reader wants its mask as bits."""
        return self._places.get(edge.spec.name)

    def changed_counter(self, edge: Edge) -> int:
        """Return where readers see whether an edge changed: always, if another backend's."""
        tally = self.tallies.get(edge.spec.name)
        return self.one.data_ptr() if tally is None else self.counter(tally.changed)

    def fresh_flags(self, has_lanes: bool = True) -> int:
        """Return the address of a flag a lane, and of all together behind them."""
        return self.fresh.data_ptr() + (0 if has_lanes else 4 * self.state.lanes)

    def threshold_row(self, edge: Edge) -> int:
        """Return the address of an edge's thresholds."""
        row = self._rows.setdefault(edge.spec.name, len(self._rows))
        return self.thresholds.data_ptr() + 4 * row * self.thresholds.shape[1]

    def set_break_even(self, share: float) -> None:
        """Say from which share of the sparse way's work on a frame goes the dense way."""
        self.work[5] = share

    def upload_thresholds(self, edges: Mapping[str, Edge]) -> None:
        """Copy the edges' thresholds to the device."""
        table = torch.zeros(self.thresholds.shape, dtype=torch.float32, device="cpu")
        for name, row in self._rows.items():
            threshold = torch.from_numpy(edges[name].threshold)
            table[row, :len(threshold)] = threshold
        self.thresholds.copy_(table)

    def rule(self, node: DeltaNode, buffers: Buffers) -> Rule:
        """Describe how a node decides, and where it lists what it changed if a reader asks."""
        about, edge = node.about, buffers.output
        listed = buffers.scratch.get(changes_name(about.name))
        tally = self.tallies[about.name]
        made = applied(activation_of(node)) or NOTHING
        return Rule(
            thresholds=self.threshold_row(edge), fresh=self.fresh_flags(edge.spec.has_lanes),
            mask=edge.mask.data_ptr(), changed=self.counter(tally.changed),
            list=None if listed is None else listed.data_ptr(), bits=self.bits_of(edge),
            plane=edge.spec.pixels, channels=channels_of(edge), rms=about.norm == "rms",
            y=made.settings[0], z=made.settings[1], least=made.least, most=made.most,
            width=size_of(edge)[1])


def changes_name(edge: str) -> str:
    """Name the list of what changed of an edge."""
    return f"cuda.changes.{edge}"


def channels_of(edge: Edge) -> int:
    """Return how many numbers a pixel of the mask stands for."""
    assert edge.spec.shape is not None
    if edge.spec.is_map:
        return edge.spec.shape[1]
    return int(edge.value.numel()) // edge.mask.numel()


def size_of(edge: Edge) -> tuple[int, int]:
    """Return height and width; what is no map is one pixel a lane."""
    assert edge.spec.shape is not None
    return (edge.spec.shape[2], edge.spec.shape[3]) if edge.spec.is_map else (1, 1)


def pixel_step(edge: Edge) -> int:
    """Return the numbers from a pixel to the next: the channels, or more in a concatenation."""
    if not edge.spec.is_map:
        return channels_of(edge)
    value = edge.value
    for dim in (3, 2, 0):
        if value.shape[dim] > 1:
            inner = 1 if dim == 3 else value.shape[3] if dim == 2 else (
                value.shape[2] * value.shape[3])
            return int(value.stride(dim)) // inner
    return channels_of(edge)


def widest(itemsize: int, *numbers: int, addresses: tuple[int, ...] = ()) -> int:
    """Return how many numbers one instruction may move: steps and addresses are multiples."""
    wide = PACK_BYTES // itemsize
    while wide > 1 and (any(n % wide for n in numbers)
                        or any(a % (wide * itemsize) for a in addresses)):
        wide //= 2
    return wide
