"""A model compiled for one input signature, and the list of passes that made it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from deltaconvert.backends.base import Backend, Buffers, Step, create
from deltaconvert.config import Config
from deltaconvert.errors import UnsupportedError, lacks_memory
from deltaconvert.exported import ExportedModel
from deltaconvert.model_graph import ModelGraph
from deltaconvert.nodes import DeltaNode
from deltaconvert.passes.channels_first import channels_first
from deltaconvert.passes.fold_batch_norm import fold_batch_norm
from deltaconvert.passes.fold_factors import fold_factors
from deltaconvert.passes.fold_filters import delta_nodes, fold_filters
from deltaconvert.passes.fold_squares import fold_squares
from deltaconvert.passes.fuse import fuse
from deltaconvert.passes.infer import infer
from deltaconvert.passes.join_whole import join_whole, joined
from deltaconvert.passes.lower import lower
from deltaconvert.passes.normalize import normalize
from deltaconvert.passes.partition import partition
from deltaconvert.passes.plan_state import Allocated, Plan, plan_state
from deltaconvert.passes.rejoin_maps import rejoin_maps
from deltaconvert.passes.result import PassResult
from deltaconvert.passes.store_as import store_as
from deltaconvert.passes.trace import trace, trace_copy
from deltaconvert.state import Edge, State


@dataclass
class Program:
    """Delta nodes, derived weights and the plan of a stream, for one input signature.

    Args:
        graph_module: called as ``(state, *frames)``; ``print(graph_module.code)`` reads well.
        out_spec: the tree that what it returns, a flat list, belongs into.
        nodes: those with a step, in order of execution.
        weights: in the backend's layout, by node name.
        plan: the buffers that a stream needs.
        backends: by name.
        config: what was settled.
        lanes: the batch size.
        results: what each pass said it did.
        input_names: of the tensors that it takes, in order.
    """

    graph_module: GraphModule
    out_spec: pytree.TreeSpec
    nodes: list[DeltaNode]
    weights: dict[str, Any]
    plan: Plan
    backends: dict[str, Backend]
    config: Config
    lanes: int
    device: torch.device
    results: list[PassResult]
    input_names: list[str]

    def new_state(self) -> State:
        """Allocate a stream's buffers and bind a step to each node.

        Raises:
            UnsupportedError: they do not fit into the device's memory.
        """
        buffers, scratch, masks = self._allocate()
        state = State(self.lanes, np.ones(self.lanes, np.bool_),
                      self.config.threshold_unit == "std", masks)
        # What the state keeps does not keep it: a stream's memory is free with the stream, not
        # when the garbage collector comes by.
        bound: State = weakref.proxy(state)
        for node in self.nodes:
            spec = node.about.output
            value, mask = buffers[spec.name]
            edge = Edge(spec, value, mask, node.about.threshold)
            state.edges[spec.name] = edge
            inputs = tuple(state.edges[e.name] for e in node.about.inputs)
            state.steps[spec.name] = self._bind(node, Buffers(inputs, edge, bound, scratch))
        for backend in self.backends.values():
            state.runner = backend.runner(self.graph_module, self.nodes, bound) or state.runner
        return state

    def as_stored(self, frames: Mapping[str, Any]) -> list[Any]:
        """Return frames by the inputs' names in the precision of the doors that they come to."""
        doors = self._doors
        return [frame if doors.get(name, frame.dtype) == frame.dtype else frame.to(doors[name])
                for name, frame in frames.items()]

    @cached_property
    def _doors(self) -> dict[str, torch.dtype | None]:
        return {n.about.name: n.about.output.dtype for n in self.nodes
                if n.about.rule == "sparsify"}

    def _allocate(self) -> Allocated:
        try:
            return self.plan.allocate(self.device)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            raise UnsupportedError(
                f"a stream of {self.lanes} lanes needs {self.plan.nbytes / 1e6:.0f} MB on "
                f"{self.device} ({self.plan.value_bytes / 1e6:.0f} MB of values), and they are not "
                "free. Run fewer lanes or smaller frames, go to half precision with model.half(), "
                "or drop other streams.") from error

    def _bind(self, node: DeltaNode, buffers: Buffers) -> Step:
        backend = self.backends[node.backend]
        if node.about.aliases:
            return backend.bind_union(node, buffers)
        return backend.bind(node, self.weights[node.about.name], buffers)


def compile_graph(model: nn.Module, frames: Sequence[Tensor] = (),
                  hooks: bool = True) -> GraphModule:
    """Trace a model and give every operator its one canonical form.

    Free of shapes, unless the model's code branches on them and frames are given.

    Raises:
        TraceError: where the model cannot be traced.
    """
    graph_module = model.traced() if isinstance(model, ExportedModel) else trace(
        model, frames, hooks)
    graph_module.meta["results"] = [normalize(graph_module)]
    return graph_module


def recompile_graph(root: nn.Module, frames: Sequence[Tensor]) -> GraphModule:
    """Trace the copy that `compile_graph` made of a model once more, for the shapes of frames.

    Raises:
        TraceError: where it cannot be traced for them.
    """
    graph_module = trace_copy(root, frames)
    normalize(graph_module)
    return graph_module


def specialize(root: nn.Module, traced: ModelGraph, frames: Sequence[Tensor],
               config: Config) -> Program:
    """Run the passes that need shapes, for frames like these.

    The order, and why:

    - `fold_batch_norm` first: it needs no shapes, and what it derives is computed by `infer`.
    - `store_as` behind `infer`, which derives weights in the model's own precision and drops
      conversions that do nothing; before all that looks at types.
    - `rejoin_maps` behind `infer`, which tells a map from its tokens, and before
      `channels_first`, which makes local nodes of what it brings back to the map.
    - `channels_first` behind `infer`, which finds out where channels are moved, and before
      `fuse`: what is written as a matrix product takes activations as a convolution.
    - `fold_factors` behind `channels_first`, which makes convolutions, and before `fuse`, for
      which what is scaled has another reader.
    - `fold_squares` behind `infer`, which finds selections, and before `fuse`, as a convolution
      takes what is behind it along.
    - `infer` before `fuse`: only shapes tell a residual from a number that is broadcast.
    - `partition` behind `fuse`: a fused node is asked once, for all that it holds.
    - `join_whole` behind `partition`, which settles the rule of each node, and before `lower`.
    - `fold_filters` behind `lower`: the backend is asked about delta nodes.
    - `plan_state` last: it needs to know which backend runs what.

    Raises:
        FrameError: where the model does not take such frames.
        ConfigError: for settings of a node that is not there, or a dtype that the model's
            operators do not take.
    """
    graph_module = GraphModule(root, _copy(traced.graph))
    lanes, device = frames[0].shape[0], frames[0].device
    chosen, fallback = create(config.backend, config, device), create("reference", config, device)
    results = [fold_batch_norm(graph_module), infer(graph_module, frames),
               store_as(graph_module, config.dtype), rejoin_maps(graph_module, lanes),
               channels_first(graph_module, lanes), fold_factors(graph_module),
               fold_squares(graph_module, chosen.squares), fuse(graph_module, chosen.unfused),
               partition(graph_module, lanes), join_whole(graph_module, lanes)]
    lowered = lower(graph_module, lanes, config)
    config.check_nodes([(n.about.name, n.about.path) for n in delta_nodes(lowered)]
                       + [(n.name, n.meta.get("path", "")) for n in joined(graph_module)]
                       + [named for result in results for named in result.gone])
    backends = {fallback.name: fallback, chosen.name: chosen}
    weights = fold_filters(lowered, chosen, fallback)
    plan = plan_state(lowered, backends)
    return Program(lowered, traced.out_spec, delta_nodes(lowered), weights, plan, backends, config,
                   lanes, device, results, traced.input_names)


def _copy(graph: fx.Graph) -> fx.Graph:
    """Copy nodes, arguments and metadata, so that one normalised graph serves all signatures."""
    copied = fx.Graph()
    output = copied.graph_copy(graph, {})
    copied.output(output)
    for old, new in zip(graph.nodes, copied.nodes, strict=True):
        new.name = old.name
    return copied
