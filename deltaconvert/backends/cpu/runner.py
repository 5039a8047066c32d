"""A stream's frames: the doors, then runs of compiled steps, with what is not compiled between."""

from __future__ import annotations

import ctypes
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.frame import ALL_FOUND, ALL_WRITTEN, FOUND, FRAMES, WRITTEN
from deltaconvert.backends.cpu.frames.steps import CompiledStep
from deltaconvert.backends.cpu.frames.team import shares_with_pytorch
from deltaconvert.backends.cpu.sparsify import CpuSparsify
from deltaconvert.backends.exits import exits
from deltaconvert.nodes import DeltaNode, copy_value
from deltaconvert.state import NodeStats, State

_SMALL = 1 << 20  # numbers, that NumPy widens before PyTorch's threads are awake


class Runner:
    """See `FrameRunner`.

    A frame with a fresh lane, whose thresholds may have to be settled, or with an observer,
    goes step by step.
    """

    def __init__(self, graph_module: GraphModule, nodes: list[DeltaNode], state: State) -> None:
        """Find the runs of compiled steps.

        Args:
            graph_module: called as ``(state, *frames)``.
            nodes: those with a step, in order.
            state: whose steps are all bound.
        """
        self.graph_module, self.state = graph_module, state
        self.exits = exits(graph_module)
        self.doors = _doors(graph_module)
        self.compiled = {n.about.name: n for n in nodes
                         if isinstance(state.steps[n.about.name], CompiledStep | CpuSparsify)}
        inner = [n for n in nodes if n.about.rule != "sparsify"]
        self.runs = [list(run) for _, run in
                     groupby(inner, key=lambda n: n.about.name in self.compiled)]
        self.joined = self._joined()
        if isinstance(state.context, Engine):
            others = [n for n in inner if n.about.name not in self.compiled]
            state.context.with_pytorch = shares_with_pytorch(others, state.context.workers.threads)
        self._join_door()
        self.plain = all(n.about.name in self.compiled for n in nodes) and all(
            leaf.door for leaf in self.exits)

    def __call__(self, frames: list[Any]) -> list[Any]:
        """Run a frame that was examined; return the outputs, as copies."""
        state = self.state
        if state.observer is not None or True in state.fresh.tolist():
            leaves: list[Any] = self.graph_module(state, *frames)
            for name in self.compiled:  # these are counted in their ledgers
                state.counted.pop(name, None)
            return leaves
        joined = (self.joined,) if self.joined else ()
        for door, place in self.doors:
            step = state.steps[door.about.name]
            if isinstance(step, CpuSparsify):
                step(frames[place], *joined)
            else:
                state.run(door, frames[place])
        runs = self.runs[len(joined):]
        changed = bool(runs) and any(
            state.edges[door.about.name].changed for door, _ in self.doors)
        for run in runs:
            first, last = (state.steps[run[i].about.name] for i in (0, -1))
            if isinstance(first, CompiledStep) and isinstance(last, CompiledStep):
                first.engine.run(first.place, last.place + 1, share=changed)
            else:
                for node in run:
                    state.run(node)
        return self._outputs()

    def _join_door(self) -> None:
        """Have the only door run the steps behind it, where nothing of Python's is in them."""
        door = self.state.steps[self.doors[0][0].about.name] if self.joined else None
        if isinstance(door, CpuSparsify) and not door.engine.calls_python:
            door.last = self.joined

    def _joined(self) -> int:
        """Return where the steps end that run with the only door, in one call; else 0."""
        if len(self.doors) != 1 or not self.runs:
            return 0
        door = self.state.steps[self.doors[0][0].about.name]
        first, last = (self.state.steps[self.runs[0][i].about.name] for i in (0, -1))
        if not (isinstance(door, CpuSparsify) and isinstance(first, CompiledStep)
                and isinstance(last, CompiledStep) and first.place == door.place + 2):
            return 0
        return last.place + 1

    def _outputs(self) -> list[Any]:
        """Copy the outputs on this thread.

        PyTorch's others take long to wake, and then keep the cores of the next frame's helpers.
        How many it has is not changed for that: threads that begin meanwhile would keep it.
        """
        return [leaf.take(self.state, copy) for leaf in self.exits]

    def check(self) -> None:
        """Return at once: on a CPU a bad frame is refused before it is run."""

    def last(self) -> dict[str, NodeStats]:
        """Return the last frame's work in compiled steps."""
        return self._stats((FOUND, WRITTEN), None, self.state.counted)

    def totals(self) -> dict[str, NodeStats]:
        """Return the work of all frames in compiled steps."""
        return self._stats((ALL_FOUND, ALL_WRITTEN), FRAMES, self.state.added)

    def _stats(self, columns: tuple[int, int], frames: int | None,
               others: dict[str, NodeStats]) -> dict[str, NodeStats]:
        stats: dict[str, NodeStats] = {}
        for name, node in self.compiled.items():
            step = self.state.steps[name]
            assert isinstance(step, CompiledStep | CpuSparsify)
            ledger = step.ledger
            found, written = (int(ledger[column]) for column in columns)
            count = 1 if frames is None else int(ledger[frames])
            sources = [self.state.edges[spec.name] for spec in node.about.inputs]
            before = (stats.get(e.spec.name) or others.get(e.spec.name) or NodeStats()
                      for e in sources)
            dense = count * self.state.lanes * node.dense_multiply_adds
            work = found * node.about.multiply_adds
            scheduled = work
            if isinstance(step, CompiledStep) and found:
                beyond = int(step.beyond[0 if frames is None else 1])
                scheduled += beyond * node.about.multiply_adds
            stats[name] = NodeStats(
                count, sum(b.pixels_out for b in before),
                count * sum(e.mask.numel() for e in sources), found, written,
                count * self.state.edges[name].mask.numel(), work, scheduled, dense)
        return stats


def _doors(graph_module: GraphModule) -> list[tuple[DeltaNode, int]]:
    """Return the doors in, and the place of the frame that each takes."""
    frames = [n for n in graph_module.graph.nodes if n.op == "placeholder"][1:]
    doors = [graph_module.get_submodule(str(n.target)) for n in graph_module.graph.nodes
             if n.op == "call_module"]
    places = {f.name.removesuffix("_frame"): i for i, f in enumerate(frames)}
    return [(door, places[door.about.name]) for door in doors
            if isinstance(door, DeltaNode) and door.about.rule == "sparsify"]


def copy(value: Any, dtype: torch.dtype | None) -> Any:
    """Do as `copy_value`, without PyTorch's threads for most tensors."""
    if not isinstance(value, Tensor):
        return copy_value(value, dtype)
    if dtype in (None, value.dtype) or not value.is_floating_point():
        if value.is_contiguous() or (value.dim() == 4 and value.is_contiguous(
                memory_format=torch.channels_last)):
            copied = value.new_empty_strided(value.shape, value.stride())  # `empty_like` asks more
            ctypes.memmove(copied.data_ptr(), value.data_ptr(), value.nbytes)
            return copied
    elif value.dtype == torch.bfloat16 and dtype == torch.float32 and value.numel() < _SMALL:
        halves = value.view(torch.uint16).numpy()
        wide = np.asarray(np.left_shift(halves, 16, dtype=np.uint32))  # of one number: no array
        return torch.from_numpy(wide).view(dtype)
    return copy_value(value, dtype)
