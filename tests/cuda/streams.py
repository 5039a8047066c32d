"""A node run by the cuda backend's kernels, and by the reference, side by side.

On the host, unless a launcher for a GPU is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends import reference
from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cuda import CudaBackend
from deltaconvert.backends.cuda.context import Tally
from deltaconvert.backends.cuda.dense import NEEDLESS, dense_of, foresee
from deltaconvert.backends.cuda.scan import as_words, words_of
from deltaconvert.backends.rule import change_norm
from deltaconvert.config import Config
from deltaconvert.cuda.launcher import Launcher
from deltaconvert.nodes import DeltaNode, EdgeSpec
from deltaconvert.state import Edge, State
from tests.cuda.host.launcher import HostLauncher

# Of sums of up to 1152 products of unit normals, in another order and precision than the oracle's.
CLOSE = {torch.float32: 2e-4, torch.float16: 6e-2, torch.bfloat16: 5e-1}
TF32 = 5e-3  # of sums about as large as unit normals, in float32 multiplied as tf32
CANARY = 7.0


def make_edge(spec: EdgeSpec, threshold: float = 0.0, beside: int = 0,
              device: Any = "cpu") -> Edge:
    """Make an edge; ``beside`` channels lie on either side, as in a concatenation."""
    if not spec.is_map:
        value = torch.zeros(spec.shape, dtype=spec.dtype, device=device)
        mask = torch.zeros(spec.mask_shape, dtype=torch.uint8, device=device)
        return Edge(spec, value, mask, threshold)
    n, c, h, w = spec.shape
    whole = torch.full((n, h, w, c + 2 * beside), CANARY, dtype=spec.dtype, device=device)
    whole = whole.permute(0, 3, 1, 2)
    value = whole[:, beside:beside + c]
    value.zero_()
    pixels = math.prod(spec.mask_shape)
    # Words are read, as far as the next multiple of 4.
    mask = torch.full((pixels + 3,), CANARY, dtype=torch.uint8, device=device)[:pixels]
    return Edge(spec, value, mask.zero_().view(spec.mask_shape), threshold)


class KernelStream:
    """A node and what it is bound to; see the module."""

    def __init__(self, node: DeltaNode, *, order: int = 0, told: dict[str, Any] | None = None,
                 beside: int = 0, change: tuple[str, str, str] | None = None,
                 tolerance: float | None = None, launcher: Launcher | None = None,
                 device: Any = "cpu", processors: int = 2, dense: bool = False) -> None:
        self.node, self.beside, self.device = node, beside, torch.device(device)
        lanes = node.about.output.lanes
        self.state = State(lanes, [True] * lanes)
        self.launcher = launcher or HostLauncher(order, change, processors)
        self.backend = CudaBackend(Config(), self.device, self.launcher, told or {})
        assert self.backend.supports(node) is None
        # As where they have producers, which keep masks as bits.
        self.backend.tables.markers.update(spec.name for spec in node.about.inputs)
        if node.about.output.is_map:  # as if a reader wanted them
            self.backend.tables.bits["y"] = words_of(node.about.output)
        self.inputs = [make_edge(spec, 0.0, beside, device) for spec in node.about.inputs]
        self.output, self.expected = (
            make_edge(node.about.output, node.about.threshold, beside, device) for _ in range(2))
        self.step = self._bind()
        self.context, self.dense = self.state.context, dense
        if dense:
            foresee(node, self.step, self.context)
            self.step = dense_of(self.step)
        self.context.upload_thresholds({"y": self.output})
        self.oracle = reference.create(Config()).bind(
            node, None, Buffers(tuple(self.inputs), self.expected, self.state))
        self.random = torch.Generator(device).manual_seed(0)
        self.tolerance = tolerance or CLOSE[node.about.output.dtype]

    def _bind(self) -> Any:
        weights = self.backend.fold_filters(self.node)
        self.kind = weights.kind
        scratch: dict[str, Tensor] = {}
        for want in self.backend.plan(self.node):
            size = max(want.nbytes, len(scratch.get(want.name, ())))
            # Not a number in any dtype, and far outside as an index.
            scratch[want.name] = torch.full((size,), 0xFF, dtype=torch.uint8, device=self.device)
        self.backend.counters["inputs"] = len(self.inputs)
        context = self.backend.context(self.state)
        for edge in self.inputs:
            context.tallies[edge.spec.name] = Tally(context.count(), [])
        return self.backend.bind(self.node, weights,
                                 Buffers(tuple(self.inputs), self.output, self.state, scratch))

    def change(self, share: float, lanes: Sequence[int], size: float = 1.0) -> None:
        """Change a share of the inputs' pixels in some lanes."""
        for edge in self.inputs:
            mask = torch.zeros(edge.mask.shape, dtype=torch.bool, device=self.device)
            where = {"generator": self.random, "device": self.device}
            chosen = torch.rand(edge.mask.shape, **where) < share
            mask[list(lanes)] = chosen[list(lanes)]
            noise = size * torch.randn(edge.value.shape, **where)
            edge.value.copy_(torch.where(mask[:, None], edge.value + noise, edge.value))
            edge.mask.copy_(mask)
            edge.publish(mask.reshape(len(mask), -1).sum(1).tolist())

    def _mark_bits(self, edge: Edge) -> None:
        """Keep a mask as bits, as a producer would, where the node wants that."""
        words = self.bits_of(edge)
        if words is not None:
            words.copy_(as_words(edge.mask))

    def bits_of(self, edge: Edge) -> Tensor | None:
        place = self.context.place_of(edge)
        return None if place is None else self.context.words[place:place + words_of(edge.spec)]

    def begin(self) -> None:
        """Do what begins a frame: empty masks and counters, tell which lanes are fresh."""
        lanes = self.state.lanes
        self.output.mask.zero_()
        self.context.counters.zero_()
        for edge in self.inputs:
            changed = self.context.tallies[edge.spec.name].changed
            self.context.counters[changed] = int(edge.mask.sum())
        for edge in (*self.inputs, self.output):
            self._mark_bits(edge)
        if self.dense:
            self._change_everything()
        self.context.fresh[:lanes] = torch.tensor(self.state.fresh, dtype=torch.int32)
        self.context.fresh[lanes:] = int(any(self.state.fresh))

    def _change_everything(self) -> None:
        """Do what begins the dense way of a frame."""
        self.state.fresh[:] = [True] * self.state.lanes
        for edge in (*self.inputs, self.output):
            edge.mask.fill_(1)
            self._mark_bits(edge)
        wholes = self.context.wholes
        self.context.counters.copy_(torch.where(wholes > 0, wholes, self.context.counters))

    def check(self) -> int:
        """Run one frame by both and compare everything; return how many candidates there were."""
        before = self.output.value.clone()
        self.expected.value.copy_(before)
        self.begin()
        assert self.step() is None
        self.output.publish(None)
        expected = self.oracle()
        found = self.found()
        self.check_found(found, expected.candidates)
        new = self.node.evaluate(*(e.value for e in self.inputs))
        self.check_value(before, new)
        changed = self.context.tallies["y"].changed
        assert int(self.context.counters[changed]) == int(self.output.mask.sum())
        bits = self.bits_of(self.output)
        assert bits is None or torch.equal(bits, as_words(self.output.mask))
        self.check_canaries()
        return found

    def check_found(self, found: int, expected: int) -> None:
        assert found == expected

    def found(self) -> int:
        """Return how many candidates there were."""
        return int(self.context.counters[self.context.tallies["y"].candidates].sum())

    def check_value(self, before: Tensor, new: Tensor) -> None:
        norm, threshold = self.node.about.norm, self.node.about.threshold
        mask, spec = self.output.mask.bool(), self.output.spec
        size = change_norm(new, before, norm, spec.is_map, spec.has_lanes).float()
        # Where the norm is within rounding of the threshold, either answer is right.
        exempt = (size - threshold).abs() < self.tolerance
        wrong = (mask != self.expected.mask.bool()) & ~exempt
        assert not wrong.any(), f"masks differ at {wrong.nonzero()[:5].tolist()}"
        written = (mask[:, None] if spec.is_map else mask.view(
            (-1,) + (1,) * (before.dim() - 1))).expand_as(before)
        torch.testing.assert_close(self.output.value[written], new[written], equal_nan=True,
                                   rtol=self.tolerance, atol=self.tolerance)
        assert torch.equal(self.output.value[~written], before[~written])
        left = change_norm(new, self.output.value, norm, spec.is_map, spec.has_lanes)
        assert not (left > threshold + self.tolerance).any(), f"{left.max()} > {threshold}"

    def check_canaries(self) -> None:
        """Nothing beside the output's channels was written."""
        if not self.beside or not self.output.spec.is_map:
            return
        n, c, h, w = self.output.value.shape
        step = c + 2 * self.beside
        whole = self.output.value.as_strided((n * h * w - 1, step), (step, 1))
        assert (whole[:, c:] == CANARY).all(), "a neighbour in the concatenation was overwritten"

    def run(self) -> None:
        """Some frames of every kind, the dense way or the other."""
        if self.dense:
            self.run_dense()
        else:
            self.run_sparse()

    def run_dense(self) -> None:
        """Frames of which everything is written, however little changed."""
        lanes = range(self.state.lanes)
        for share in (1.0, 0.3, 0.0):
            self.change(share, lanes)
            self.check()
            assert self.output.mask.all(), "everything counts as changed"
        assert not any(kernel.entry in NEEDLESS for kernel in getattr(self.launcher, "ran", ()))

    def run_sparse(self) -> None:
        """A first frame, then small and large changes, in some lanes and in all, and none."""
        lanes = range(self.state.lanes)
        self.change(1.0, lanes)
        self.check()
        self.state.fresh[:] = [False] * len(lanes)
        for share, some in ((0.05, lanes[1:2]), (0.3, lanes[::2]), (0.0, []), (0.1, lanes)):
            self.change(share, some)
            self.check()
        self.state.fresh[0] = True
        self.change(0.05, lanes[1:])
        self.check()
        assert int(self.output.mask[0].sum()) == self.output.spec.pixels
        self.state.fresh[0] = False
        self.change(0.0, [])
        assert self.check() == 0
