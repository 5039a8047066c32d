"""Trace: a module becomes a graph of what it calls.

Before: an ``nn.Module`` with Python code in ``forward``.
After: an ``fx.GraphModule`` over a private copy in eval mode, one node a call, each
with the user's own line in ``meta["source"]``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule

from deltaconvert.errors import TraceError
from deltaconvert.model_graph import autocast_of
from deltaconvert.passes.annotate import without_logging
from deltaconvert.passes.calls import Call
from deltaconvert.passes.functionalize import set_data
from deltaconvert.passes.tracing.attributes import Attributes, proxies
from deltaconvert.passes.tracing.explain import SHAPES_HELP, explain, explain_refusal
from deltaconvert.passes.tracing.find_numbers import with_numbers
from deltaconvert.passes.tracing.find_state import KeepsState, find_state
from deltaconvert.passes.tracing.private_copy import private_copy
from deltaconvert.passes.tracing.proxies import NeedsShapes, NotSupported, answering
from deltaconvert.passes.tracing.random_numbers import (
    draws_beside_frames,
    looks_at_drawn,
    numbers_drawn,
    random_numbers_kept,
)
from deltaconvert.passes.tracing.settings import changed_settings, restore_settings
from deltaconvert.passes.tracing.shape_tracer import ShapeTracer
from deltaconvert.passes.tracing.tracer import Tracer

# Methods that take numbers out of a tensor.
TAKEN = frozenset({"item", "tolist", "numpy", "__array__"})

# FX takes the place of nn.Module.__call__ while it traces, for all threads.
TRACING = threading.Lock()


def trace(model: nn.Module, frames: Sequence[Tensor] = (), hooks: bool = True) -> GraphModule:
    """Trace a copy of a model in eval mode; the model itself is not touched.

    Parameters of ``forward`` that are no inputs (`input_parameters`) keep their default. The graph
    returns a flat list; ``meta["out_spec"]`` is the tree it belongs into. Where the model's
    code branches on shapes, it is traced for frames of the given shapes, and no others:
    ``meta["traced_for"]`` has them, beside ``dtypes`` and ``autocast``, and ``meta["by_numbers"]``
    says whether the code went by the numbers in buffers. Without ``hooks`` those of the model
    itself are left to whoever calls it.

    Raises:
        TraceError: naming the user's own line, why it cannot be traced, and what to
            convert instead.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(f"{type(model).__name__} is TorchScript, which holds no Python to trace. "
                         "Convert the nn.Module that it was made from, or a program of "
                         "torch.export.")
    if taken := [n for n in ("graph", "code", "meta", "_graph", "_code") if n in {
            *model._modules, *model._parameters, *model._buffers}]:
        raise TraceError(f"{type(model).__name__}.{taken[0]} cannot keep its name, which torch.fx "
                         "takes for itself in every graph. Rename it, or convert the model as a "
                         "submodule of another.")
    copied = private_copy(model).eval()
    if watching := [path for path, m in copied.named_modules() if _moves_scale(m)]:
        raise TraceError(
            f"{type(model).__name__} cannot be converted whole: {watching[0]} observes each frame, "
            "in eval mode too, and rounds by what it saw. Say "
            "model.apply(torch.ao.quantization.disable_observer) before, or convert the model as "
            "it was before it was prepared for quantisation.")
    if isinstance(copied, nn.modules.batchnorm._NormBase):  # by itself it would be looked into
        copied._check_input_dim = lambda input: None  # type: ignore[method-assign]
    try:
        call = getattr(frames, "call", None)
        return _traced(lambda: Tracer(len(frames), call), copied, (), hooks, call)
    except (KeepsState, NotSupported) as reason:
        raise TraceError(explain_refusal(model, reason)) from reason
    except Exception as error:
        if not frames:
            raise TraceError(explain(model, error, SHAPES_HELP)) from error
    return trace_copy(copied, frames, hooks)


def trace_copy(copied: nn.Module, frames: Sequence[Tensor], hooks: bool = True) -> GraphModule:
    """Trace what is a private copy already, for frames of the given shapes; see `trace`.

    Raises:
        TraceError: as `trace` does.
    """
    try:
        return _traced(lambda: ShapeTracer(frames), copied, frames, hooks,
                       getattr(frames, "call", None))
    except (KeepsState, NotSupported) as reason:
        raise TraceError(explain_refusal(copied, reason)) from reason
    except Exception as error:
        raise TraceError(explain(copied, error)) from error


def _traced(make_tracer: Callable[[], Tracer], copied: nn.Module,
            frames: Sequence[Tensor], hooks: bool, call: Call | None) -> GraphModule:
    with TRACING, answering(copied):
        graph, out_spec, by_numbers = _run(make_tracer, copied, hooks)
    traced = GraphModule(copied, graph, class_name=type(copied).__name__)
    traced.meta.update(out_spec=out_spec, root=copied, by_numbers=by_numbers, call=call,
                       traced_for=[tuple(f.shape) for f in frames] or None,
                       dtypes=[f.dtype for f in frames] or None,
                       autocast=autocast_of(frames) if frames else ...)
    for node in graph.nodes:
        node.meta["path"] = _path(node)
        node.meta.pop("nn_module_stack", None)
        node.meta.pop("fake", None)
        node.meta.pop("result_type", None)
    return traced


def _run(make_tracer: Callable[[], Tracer], model: nn.Module, hooks: bool
         ) -> tuple[fx.Graph, Any, bool]:
    """Return the graph of a model, the tree of its outputs, and whether it goes by numbers.

    The model is left as it was. What is computed of buffers is recorded, so that it follows them:
    new weights, another dtype.
    Where the code goes by the numbers in them, it is computed at once.
    """
    tracers: list[Tracer] = []

    def run(record_buffers: bool) -> fx.Graph:
        tracers.append(make_tracer())
        tracers[-1].proxy_buffer_attributes = record_buffers
        tracers[-1].hooks = hooks
        with torch.no_grad(), tracers[-1].canvases:
            return tracers[-1].trace(model)
    before, known, by_numbers = Attributes(model), set(vars(model)), False
    try:
        with without_logging():
            graph = _trace_with_care(model, before, lambda: run(True))
    except NotSupported:
        raise
    except Exception:
        before.restore(lambda value: True)
        if not any(_reads_buffers(tracer, model) for tracer in tracers):
            raise  # it would fail in the same way
        tracers.clear()
        by_numbers = True
        with without_logging():
            graph = _trace_with_care(model, before, lambda: run(False))
    if changed := changed_settings(model, [tracer.settings for tracer in tracers]):
        raise KeepsState(changed)
    restore_settings(tracers[0].settings)
    _refuse_numbers(model, graph)
    _refuse_writes(graph)
    _refuse_gradients(graph)
    if any(tracer.hooks_failed for tracer in tracers) and _reads_constants(model, graph):
        raise NeedsShapes("a hook on a layer fails while it is traced, and what it keeps for the "
                          "forward would be of a frame before")
    attributes: dict[str, fx.Node] = {}
    for node in graph.nodes:
        # Of `torch.fx.wrap`: the generated code would register the function's name for the
        # whole process, whatever the node has become by then. Nothing is traced again.
        if node.meta.pop("is_wrapped", False):
            node.meta["whole"] = True
        if node.op == "get_attr":  # one node a tensor: what writes into it, all its readers see
            node.replace_all_uses_with(attributes.setdefault(str(node.target), node))
    for name in set(vars(model)) - known - set(attributes):
        if name.startswith("_tensor_constant"):  # of the forwards that were for comparison
            delattr(model, name)
    return graph, tracers[0].out_spec, by_numbers


def _trace_with_care(model: nn.Module, before: Attributes, run: Callable[[], fx.Graph]
                     ) -> fx.Graph:
    """Trace a forward that keeps no state, nor goes by random numbers that it draws for itself.

    Raises:
        KeepsState: naming the state.
        NotSupported: random numbers.
    """
    with random_numbers_kept():
        drawn = numbers_drawn()
        try:
            graph = find_state(model, run)
            goes_by_them = draws_beside_frames(model, graph) or (
                numbers_drawn() != drawn and looks_at_drawn(run))
        except KeepsState as reason:
            if reason.names or numbers_drawn() == drawn:
                raise
            goes_by_them = True
        finally:
            before.restore(proxies)
    if goes_by_them:
        raise NotSupported("it draws random numbers, and a graph would keep the first of them. "
                           "Take them as an input, or draw them where self.training is set")
    return graph


def _refuse_numbers(model: nn.Module, graph: fx.Graph) -> None:
    """Refuse what takes numbers out of a frame: a graph would keep those of the first.

    Raises:
        NotSupported: naming the line.
    """
    of_frames = with_numbers(model, graph, [])
    for node in graph.nodes:
        if node.op == "call_method" and node.target in TAKEN and node in of_frames and node.users:
            raise NotSupported(f"it takes numbers out of a tensor by .{node.target}() at "
                               f"{node.meta['source']}. Where it can, let it compute "
                               "with tensors there")


def _refuse_gradients(graph: fx.Graph) -> None:
    """Refuse what takes gradients: a converted model computes none, and would hand out nothing.

    Raises:
        NotSupported: naming the line.
    """
    for node in graph.nodes:
        if node.target in (torch.autograd.grad, torch.autograd.backward) or (
                node.op == "call_method" and node.target == "backward"):
            raise NotSupported(f"it computes gradients at {node.meta['source']}, and a converted "
                               "model has none. Leave that to the dense model")


def _refuse_writes(graph: fx.Graph) -> None:
    """Refuse what writes into several tensors, or gives one another's memory, or another size.

    A graph would not show it to later readers.

    Raises:
        NotSupported: naming the line.
    """
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "")
        if isinstance(node.kwargs.get("out"), (tuple, list)) or (
                name.startswith("_foreach_") and name.endswith("_")):
            raise NotSupported(f"{name} writes into several tensors at "
                               f"{node.meta['source']}. Let it return them there")
        if "set_" in (node.target, name) or (
                node.target is set_data and node.args[1].op == "get_attr"):
            raise NotSupported("it gives a tensor the memory of another at "
                               f"{node.meta['source']}. Let it copy the numbers there: x.copy_(y)")
        if node.op == "call_method" and node.target in ("resize_", "resize_as_"):
            raise NotSupported(f"it gives a tensor another size by .{node.target}() at "
                               f"{node.meta['source']}. Let it make one there: x.new_zeros(size)")


def _reads_buffers(tracer: fx.Tracer, model: nn.Module) -> bool:
    """Whether buffers are read in a tracer's graph, be it half a one."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return any(node.op == "get_attr" and node.target in buffers for node in tracer.graph.nodes)


def _reads_constants(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether a graph reads tensors that are neither parameters nor buffers."""
    known = {name for named in (model.named_parameters, model.named_buffers)
             for name, _ in named(remove_duplicate=False)}
    return any(node.op == "get_attr" and node.target not in known for node in graph.nodes)


def _moves_scale(module: nn.Module) -> bool:
    """Whether a module is a fake quantisation of ``torch.ao`` whose observer is on."""
    on = [getattr(module, name, None) for name in ("observer_enabled", "fake_quant_enabled")]
    return all(isinstance(flag, Tensor) and bool(flag.any()) for flag in on)


def _path(node: fx.Node) -> str:
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] if isinstance(entry, tuple) else str(entry) for entry in stack.values()]
    return paths[-1] if paths else ""
