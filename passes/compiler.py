"""The one list of passes, with each constraint on the order.

`compile_graph` is free of shapes and happens once a model; `specialize` happens once an input
signature.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx, nn
from torch.fx import GraphModule

from deltaconvert.backends.base import create
from deltaconvert.config import Config
from deltaconvert.exported import ExportedModel
from deltaconvert.model_graph import ModelGraph
from deltaconvert.operators.conv2d import conv2d
from deltaconvert.passes.channels_first import channels_first
from deltaconvert.passes.find_convolutions import find_convolutions
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
from deltaconvert.passes.plan_state import plan_state
from deltaconvert.passes.rejoin_maps import rejoin_maps
from deltaconvert.passes.share_weights import share_weights
from deltaconvert.passes.store_as import store_as
from deltaconvert.passes.trace import trace, trace_copy
from deltaconvert.program import Program


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
    - `find_convolutions` behind `store_as`: what it derives is a view, of weights as they are kept.
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
    - `share_weights` behind `lower`, when all weights are derived, and before `fold_filters`, which
      finds by them what was made of them.
    - `fold_filters` behind `lower`: the backend is asked about delta nodes.
    - `plan_state` last: it needs to know which backend runs what.

    Raises:
        FrameError: where the model does not take such frames.
        ConfigError: for settings of a node that is not there, or a dtype that the model's
            operators do not take.
    """
    graph_module = GraphModule(root, _copy(traced.graph))
    device = frames[0].device
    chosen, fallback = create(config.backend, config, device), create("reference", config, device)
    results = [fold_batch_norm(graph_module), infer(graph_module, frames)]
    lanes = _lanes(graph_module, frames)
    results = [*results, store_as(graph_module, config.dtype), find_convolutions(graph_module),
               rejoin_maps(graph_module, lanes),
               channels_first(graph_module, lanes), fold_factors(graph_module),
               fold_squares(graph_module, chosen.squares), fuse(graph_module, chosen.unfused),
               partition(graph_module, lanes), join_whole(graph_module, lanes)]
    lowered = lower(graph_module, lanes, config)
    config.check_nodes([(n.about.name, n.about.path) for n in delta_nodes(lowered)]
                       + [(n.name, n.meta.get("path", "")) for n in joined(graph_module)]
                       + [named for result in results for named in result.gone])
    backends = {fallback.name: fallback, chosen.name: chosen}
    share_weights(lowered, graph_module.graph, root)
    weights = fold_filters(lowered, chosen, fallback)
    plan = plan_state(lowered, backends)
    return Program(lowered, traced.out_spec, delta_nodes(lowered), weights, plan, backends, config,
                   lanes, device, results, traced.input_names)


def _lanes(graph_module: GraphModule, frames: Sequence[Tensor]) -> int:
    """Return the batch size: 1 for a picture that is convolved as it comes, ``[C, H, W]``."""
    alone = frames[0].dim() == 3 and any(
        node.args[0].meta["value"].dim() == 3  # type: ignore[union-attr]
        for node in graph_module.graph.find_nodes(op="call_function", target=conv2d))
    return 1 if alone else len(frames[0])


def _copy(graph: fx.Graph) -> fx.Graph:
    """Copy nodes, arguments and metadata, so that one normalised graph serves all signatures."""
    copied = fx.Graph()
    output = copied.graph_copy(graph, {})
    copied.output(output)
    for old, new in zip(graph.nodes, copied.nodes, strict=True):
        new.name = old.name
    return copied
