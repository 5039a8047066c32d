"""A stream's frames on the device: begin, the nodes, end; one CUDA graph where that can be."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import GraphModule

from deltaconvert.backends.base import Step
from deltaconvert.backends.cuda.branches import (
    MOST_BRANCHES,
    Turn,
    longest_chain,
    needs_of,
    run_branches,
    turns_of,
)
from deltaconvert.backends.cuda.break_even import by_events, measured
from deltaconvert.backends.cuda.candidates import THREADS, WARP, blocks
from deltaconvert.backends.cuda.context import PACK_BYTES, Context
from deltaconvert.backends.cuda.dense import dense_of, estimated, foresee
from deltaconvert.backends.cuda.kinds import Program
from deltaconvert.backends.cuda.library import LibraryStep
from deltaconvert.backends.cuda.sparsify import CudaSparsify
from deltaconvert.backends.exits import exits
from deltaconvert.cuda.arguments import MOST_SOURCES, BeginArgs, ConditionArgs, DenseArgs, EndArgs
from deltaconvert.cuda.launcher import Launch, current_stream, own_stream
from deltaconvert.cuda.loader import kernel
from deltaconvert.errors import FrameError
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import NodeStats, State

if TYPE_CHECKING:
    from deltaconvert.cuda.graph import FrameGraph

# Another thread that waits for the whole device ends a capture; so it is tried again.
MOST_CAPTURES = 3
# To begin a capture, PyTorch waits for the device, which must not be within another one.
_capturing = threading.Lock()
# What captures run on, by device and by the stream on which their graphs are to run. For each
# stream of a capture cuBLAS keeps working memory, 32 MB on some cards, for as long as the process
# lives: so they are few, and shared by graphs that run one after the other.
_streams: dict[tuple[int, int], list[torch.cuda.Stream]] = {}


class Runner:
    """See `FrameRunner`.

    A frame with a fresh lane, or with an observer, is launched kernel by kernel, and so is the
    first that is neither. Any other is one graph, and the doors out. What follows the doors in is
    there twice, at the candidates and for all pixels (`dense`): the device chooses one by what
    there was to do in the last frame, and neither where the doors let nothing in.
    """

    def __init__(self, graph_module: GraphModule, nodes: list[DeltaNode], state: State,
                 context: Context, program: Program,
                 scratch: Mapping[str, Sequence[str]] | None = None) -> None:
        """Bind the kernels around a frame; compile all that it needs.

        Args:
            graph_module: called as ``(state, *frames)``.
            nodes: those with a step, in order.
            state: whose steps are all bound.
            context: of the stream.
            program: of the stream; says whether to use CUDA graphs, where no node asks the host
                anything.
            scratch: names of the working memory that each node uses.
        """
        self.graph_module, self.nodes = graph_module, nodes
        self.state, self.context, self.scratch = state, context, scratch or {}
        self.program = program
        self.frames = self.captures = 0
        self.told = context.told.numpy()  # the same memory; every frame looks at it
        self.places: list[tuple[object, ...]] = []  # of the frames that the graph points to
        self.graph: FrameGraph | None = None
        self.no_graph = _why_no_graph(nodes, context, program.config.graphs)
        self.exits = exits(graph_module)
        self.doors = [step for step in state.steps.values() if isinstance(step, CudaSparsify)]
        self.plain = False
        for door in self.doors:
            door.runner = self
        self.begin = self._begin()
        self.in_chain = 0.0  # nodes by which the way is chosen, one behind the other
        self.dense = self._dense()
        self.end = self._end()
        self.everything = self._everything()
        launches = [self.begin, self.end, self.everything, *(
            launch for step in [*state.steps.values(), *self.dense.values()]
            for launch in getattr(step, "launches", ()))]
        context.launcher.prepare({launch.kernel for launch in launches})

    def _begin(self) -> Launch:
        context, masks = self.context, self.state.masks
        args = BeginArgs(
            masks=masks.data_ptr(), mask_packs=masks.numel() // PACK_BYTES,
            counters=context.counters.data_ptr(),
            counter_packs=4 * context.counters.numel() // PACK_BYTES,
            bits=context.words.data_ptr(), bit_packs=4 * context.words.numel() // PACK_BYTES,
            bad=context.bad.data_ptr(), pending=context.pending.data_ptr(),
            fresh=context.fresh.data_ptr(), told=context.told.data_ptr(),
            work=context.work.data_ptr(), lanes=self.state.lanes)
        grid = blocks(context, masks.numel() // PACK_BYTES, THREADS)
        return Launch(kernel("masks.cu", "begin_frame", torch.float32), args, (grid, 1), THREADS)

    def _dense(self) -> dict[str, Step]:
        """Return the dense way of each step, by node; none where frames have but one way."""
        steps, context = self.state.steps, self.context
        if self.no_graph or len(self.doors) > MOST_SOURCES or not any(
                getattr(step, "dense", None) for step in steps.values()):
            return {}
        inner = [node for node in self.nodes if node.about.rule != "sparsify"]
        weighed = sum(foresee(node, steps[node.about.name], context) for node in inner)
        if not weighed:
            return {}  # no node has less to do by it
        chain = longest_chain(needs_of(inner, self.scratch))
        self.in_chain = weighed * chain / len(inner)
        return {node.about.name: dense_of(steps[node.about.name]) for node in inner}

    def _end(self) -> Launch:
        context = self.context
        if context.cost_of_all:
            context.costs /= context.cost_of_all
        args = EndArgs(
            counters=context.counters.data_ptr(), grains=context.grains.data_ptr(),
            costs=context.costs.data_ptr(),
            doors=context.doors.data_ptr(), totals=context.totals.data_ptr(),
            bad=context.bad.data_ptr(), work=context.work.data_ptr(),
            counted=context.counted, lanes=self.state.lanes)
        return Launch(kernel("masks.cu", "end_frame", torch.float32), args, (1, 1), THREADS,
                      8 * THREADS // WARP)

    def _everything(self) -> Launch:
        context, masks = self.context, self.state.masks
        args = DenseArgs(
            masks=masks.data_ptr(), mask_packs=masks.numel() // PACK_BYTES,
            counters=context.counters.data_ptr(), wholes=context.wholes.data_ptr(),
            fresh=context.fresh.data_ptr(), counted=context.counted, lanes=self.state.lanes)
        return Launch(kernel("masks.cu", "change_everything", torch.float32), args,
                      self.begin.grid, THREADS)

    def __call__(self, frames: list[Any]) -> list[Any]:
        """Run a frame that was examined; return the outputs, as copies."""
        fresh, context = any_set(self.state.fresh), self.context
        if fresh:
            wanted = torch.tensor(self.state.fresh, dtype=torch.int32, device="cpu")
            context.pending.copy_(torch.maximum(context.pending, wanted.to(context.device)))
        if self.frames == 0:
            context.upload_thresholds(self.state.edges)
        self.frames += 1
        if self.replays:
            return self._replay(frames)
        context.launcher.launch(self.begin)
        leaves: list[Any] = self.graph_module(self.state, *frames)
        context.launcher.launch(self.end)
        if fresh:  # those in units of a standard deviation are known now
            context.upload_thresholds(self.state.edges)
        elif self.state.observer is None and not self.no_graph:
            self._capture()
        return leaves

    @property
    def replays(self) -> bool:
        """Whether the next frame is run by the graph, the doors in included."""
        return (self.graph is not None and self.state.observer is None
                and not any_set(self.state.fresh))

    def _replay(self, frames: list[Any]) -> list[Any]:
        assert self.graph is not None
        # Each door was pointed to its frame when that was to be examined.
        places = [door.place for door in self.doors]
        if places != self.places:
            self.places = places
            for door in self.doors:
                self.graph.update(door.examination)
                self.graph.update(door.replacement)
        self.graph.replay()
        return [leaf.take(self.state) for leaf in self.exits]

    def _capture(self) -> None:
        """Make the graph of the frames to come; nothing of it runs."""
        self.captures += 1
        try:
            with _capturing, torch.cuda.device(self.context.device):
                self.graph = self._captured()
            if self.graph.ways > 1:
                self._settle_break_even(self.graph)
        except RuntimeError as error:
            self.graph = None
            if self.captures == MOST_CAPTURES:
                self.no_graph = f"could not be captured: {str(error).splitlines()[0]}"
                warnings.warn(f"no CUDA graph for this stream, {self.no_graph}", stacklevel=2)

    def _captured(self) -> FrameGraph:
        nodes = [n for n in self.nodes if n.about.rule != "sparsify"]
        steps: list[Step] = [self.state.steps[n.about.name] for n in nodes]
        turns, launcher = turns_of(needs_of(nodes, self.scratch)), self.context.launcher
        before = [door.examination for door in self.doors] + [self.begin] + [
            door.replacement for door in self.doors]
        streams = _streams_for(torch.cuda.current_device())
        bodies = [captured(partial(run_branches, steps, turns, launcher, streams), streams[0])]
        if self.dense:
            dense = [self.dense[n.about.name] for n in nodes]
            for step in dense:
                if isinstance(step, LibraryStep):
                    step.prepare()
            bodies.append(captured(partial(self._run_dense, dense, turns, streams), streams[0],
                                   bodies[0]))
        return self._graph_of(before, bodies)

    def _settle_break_even(self, graph: FrameGraph) -> None:
        """Measure it, if no stream of the program has.

        Estimate it where runs must be alike, or memory is short.
        """
        context, program = self.context, self.program
        share = program.break_even
        if share is None and not torch.are_deterministic_algorithms_enabled():
            with suppress(torch.cuda.OutOfMemoryError):
                share = measured(context, self.doors, graph, by_events)
        if share is None:
            share = estimated(context.cost_of_all, self.in_chain)
        program.break_even = share
        context.set_break_even(share)

    def _run_dense(self, steps: list[Step], turns: list[Turn],
                   streams: list[torch.cuda.Stream]) -> None:
        launcher = self.context.launcher
        launcher.launch(self.everything)
        run_branches(steps, turns, launcher, streams)

    def _graph_of(self, before: list[Launch], bodies: list[torch.cuda.CUDAGraph]) -> FrameGraph:
        """Put the frame's graph together, as far as driver and compiler know how to."""
        from deltaconvert.cuda.graph import FrameGraph

        launcher = self.context.launcher
        if len(self.doors) <= MOST_SOURCES:
            for ways in range(len(bodies), 0, -1):
                try:
                    return FrameGraph(launcher, before, bodies[:ways], [self.end],
                                      self._condition(ways))
                except Exception:  # CuPy's own errors differ; older drivers and compilers
                    continue
        return FrameGraph(launcher, before, bodies[:1], [self.end], None)

    def _condition(self, ways: int) -> Launch:
        """Return the kernel that decides what follows the doors, if anything."""
        context = self.context
        args = ConditionArgs(fresh=context.fresh_flags(), work=context.work.data_ptr(),
                             bad=context.bad.data_ptr(), lanes=self.state.lanes,
                             doors=len(self.doors), ways=ways)
        for i, door in enumerate(self.doors):
            args.changed[i] = context.changed_counter(door.buffers.output)
        return Launch(kernel("condition.cu", "decide", torch.float32), args, (1, 1), 32)

    def raise_refusals(self) -> None:
        """Raise if the device has told of a refused frame; never wait for it.

        Raises:
            FrameError: naming the lanes.
        """
        if not any_set(self.told):
            return
        told = self.context.told
        refused = told.nonzero().flatten().tolist()
        for lane in refused:
            if int(told[lane]) == 2:
                self.state.fresh[lane] = True
        told.zero_()
        raise FrameError(
            f"an earlier frame held numbers that are NaN or infinite (lanes {refused}). Those "
            "lanes kept their values for that frame; check the decoder and the normalisation. "
            "This call was not run: give its frame again.")

    def check(self) -> None:
        """Wait for the device, and raise if a frame was refused.

        Raises:
            FrameError: see `raise_refusals`.
        """
        if self.context.device.type == "cuda":
            torch.cuda.current_stream(self.context.device).synchronize()
        self.raise_refusals()

    def last(self) -> dict[str, NodeStats]:
        """Return the last frame's work of the nodes that ran here; waits for the device."""
        counters = self.context.counters[:self.context.counted]
        grains = self.context.grains[:self.context.counted]
        tiled = (counters + grains - 1) // grains * grains
        if float(self.context.work[2]):  # it went the dense way
            tiled = counters
        return self._stats(torch.stack([counters, tiled], 1).tolist(), min(self.frames, 1),
                           self.state.counted)

    def totals(self) -> dict[str, NodeStats]:
        """Return the work of all frames; waits for the device."""
        return self._stats(self.context.totals.tolist(), self.frames, self.state.added)

    def _stats(self, counts: list[list[int]], frames: int,
               others: dict[str, NodeStats]) -> dict[str, NodeStats]:
        return {node.about.name: self._node_stats(node, counts, frames, others)
                for node in self.nodes if node.about.name in self.context.tallies}

    def _node_stats(self, node: DeltaNode, counts: list[list[int]], frames: int,
                    others: dict[str, NodeStats]) -> NodeStats:
        about, tally = node.about, self.context.tallies[node.about.name]
        edge = self.state.edges[about.name]
        sources = [self.state.edges[spec.name] for spec in about.inputs]
        pixels_in = 0
        for source in sources:
            known = self.context.tallies.get(source.spec.name)
            pixels_in += counts[known.changed][0] if known else (
                others.get(source.spec.name, NodeStats()).pixels_out)
        found = sum(counts[i][0] for i in tally.candidates)
        work = sum(counts[i][1] for i in tally.candidates)
        if about.rule == "sparsify":
            found = frames * edge.mask.numel()
        per_pixel = node.dense_multiply_adds // about.output.pixels
        dense = frames * self.state.lanes * node.dense_multiply_adds
        return NodeStats(
            frames, pixels_in, frames * sum(e.mask.numel() for e in sources), found,
            counts[tally.changed][0], frames * edge.mask.numel(), found * per_pixel,
            work * per_pixel if tally.candidates_are_scheduled else dense, dense)


def any_set(flags: np.ndarray) -> bool:
    """Whether any flag of a few is set: at a tenth of what `any` takes."""
    return bool(flags.tobytes().strip(b"\0"))


def captured(run: Callable[[], None], stream: torch.cuda.Stream,
             other: torch.cuda.CUDAGraph | None = None) -> torch.cuda.CUDAGraph:
    """Capture a run; with another graph, which never runs beside this one, in its memory.

    Threads beside this one may go on, and allocate memory.
    """
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, pool=other.pool() if other else None, stream=stream,
                          capture_error_mode="thread_local"):
        run()
    return graph


def _streams_for(device: int) -> list[torch.cuda.Stream]:
    """Return what graphs are captured on that are to run on the current stream."""
    key = device, current_stream(device)
    if key not in _streams:
        _streams[key] = [own_stream(device) for _ in range(MOST_BRANCHES)]
    return _streams[key]


def _why_no_graph(nodes: list[DeltaNode], context: Context, graphs: bool) -> str:
    if not graphs:
        return "graphs=False"
    if context.device.type != "cuda":
        return "not on a GPU"
    others = [n.about.name for n in nodes if n.about.name not in context.tallies]
    return f"{', '.join(others)} run by another backend" if others else ""
