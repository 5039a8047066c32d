"""Trace: a module becomes a graph of what it calls.

Before: an ``nn.Module`` with Python code in ``forward``.
After: an ``fx.GraphModule`` over a private copy in eval mode, one node a call, each
with the user's own line in ``stack_trace``.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import linecache
import logging
import pickle
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule, Proxy
from torch.fx._symbolic_trace import _orig_module_call
from torch.utils import _pytree as pytree

from deltaconvert.errors import TraceError, lacks_memory
from deltaconvert.model_graph import autocast_of
from deltaconvert.passes.attributes import Attributes
from deltaconvert.passes.find_state import KeepsState, find_state, with_numbers
from deltaconvert.passes.find_weight import SpectralNorm, WeightNorm
from deltaconvert.passes.input_parameters import input_parameters
from deltaconvert.passes.proxies import MutableProxy, NeedsShapes, answering
from deltaconvert.passes.result_types import result_type

# Methods that take numbers out of a tensor.
TAKEN = frozenset({"item", "tolist", "numpy", "__array__"})

# FX takes the place of nn.Module.__call__ while it traces, for all threads.
TRACING = threading.Lock()


class NotSupported(Exception):
    """Raised for what can be traced, but means something that no graph says."""


class Tracer(fx.Tracer):
    """FX's tracer, keeping lines, in-place operators, and what kind of thing was returned."""

    def __init__(self, given: int = 0) -> None:
        """Keep the stack of each call; ``given`` is how many inputs are given, if that is known."""
        super().__init__()
        self.given = given
        self.record_stack_traces = True
        self.autocast: str | None = None
        self.hooks, self.hooks_failed = True, False
        self.out_spec: pytree.TreeSpec | None = None
        self.thread = threading.get_ident()

    def proxy(self, node: fx.Node) -> Proxy:
        node.meta["result_type"] = result_type(self.root, node)  # type: ignore[arg-type]
        return MutableProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep TorchScript as a call: there is no Python in it to follow.

        A layer of PyTorch's with somebody's own method in it is no leaf: it is not what its type
        says.
        """
        return isinstance(m, torch.jit.ScriptModule) or (
            super().is_leaf_module(m, module_qualified_name) and not _is_patched(m))

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call what a wrapper wraps in its place; leave the modules of other threads alone."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        inner = unwrapped(m)
        if inner is not m:
            return inner(*args, **kwargs)
        if not self._holds(m):  # `nn.Softmax(1)(x)`
            return forward(*args, **kwargs)
        made = super().call_module(m, forward, args, kwargs)
        if self.is_leaf_module(m, self.path_of_module(m)):
            try:
                _tell_hooks(m, args, kwargs, made)
            except Exception:  # it may be one that logs numbers, and keeps nothing for the model
                self.hooks_failed = True
        return made

    def _holds(self, m: nn.Module) -> bool:
        """Whether a module is one of the model's, or one with weights, which had to be."""
        try:
            self.path_of_module(m)
        except NameError:
            return bool([*m.parameters(), *m.buffers()])
        return True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Record the reading of a weight, but not another thread's."""
        return attr_val if threading.get_ident() != self.thread else super().getattr(
            attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool,
                             concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Make a placeholder of each input; other arguments keep their default.

        FX would make a proxy of ``mask=None`` too, and ``mask is None`` would be false.
        The result is flattened, so that an ``OrderedDict`` or a named tuple is one again.
        """
        bound = own_forward(self.root)
        inputs = input_parameters(bound, self.given)
        if not inputs:
            raise TypeError(f"forward{inspect.signature(root_fn)} names no input; wrap the model "
                            "in one whose forward names each")
        proxies = {p.name: self.create_proxy("placeholder", p.name, (), {}) for p in inputs}
        by_place = [proxies.pop(p.name) for p in _leading(bound, inputs)]

        def flat(root: nn.Module) -> list[Any]:
            # FX calls a root's forward; its hooks are run by `nn.Module.__call__` itself.
            hooked = is_module and self.hooks and (root._forward_hooks or root._forward_pre_hooks)
            made = (partial(_orig_module_call, root) if hooked else bound)(*by_place, **proxies)
            leaves, self.out_spec = pytree.tree_flatten(made)
            for leaf in leaves:
                if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
                    raise NotSupported(
                        f"it returns a {type(leaf).__name__}, of which PyTorch does not know the "
                        f"parts. Say torch.export.register_dataclass({type(leaf).__name__}) before")
            return leaves
        return flat, [self.root]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a call, unless it would be computed in another precision than the graph's."""
        device = next((k for k in ("cuda", "cpu") if torch.is_autocast_enabled(k)), "")
        if self.autocast is None:
            self.autocast = device  # what the caller has on is not of the model
        if device != self.autocast:
            raise NotSupported(
                "its forward switches autocast on, which a graph does not keep. Switch it off "
                "there (enabled=False), and say convert(model, dtype='bfloat16') for speed")
        return super().create_node(*args, **kwargs)


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
    if isinstance(copied, nn.modules.batchnorm._NormBase):  # by itself it would be looked into
        copied._check_input_dim = lambda input: None  # type: ignore[method-assign]
    try:
        return _traced(lambda: Tracer(len(frames)), copied, (), hooks)
    except (KeepsState, NotSupported) as reason:
        raise TraceError(_explain_refusal(model, reason)) from reason
    except Exception as error:
        if not frames:
            raise TraceError(_explain(model, error, SHAPES_HELP)) from error
    return trace_copy(copied, frames, hooks)


def trace_copy(copied: nn.Module, frames: Sequence[Tensor], hooks: bool = True) -> GraphModule:
    """Trace what is a private copy already, for frames of the given shapes; see `trace`.

    Raises:
        TraceError: as `trace` does.
    """
    try:
        return _traced(lambda: _with_shapes(frames), copied, frames, hooks)
    except (KeepsState, NotSupported) as reason:
        raise TraceError(_explain_refusal(copied, reason)) from reason
    except Exception as error:
        raise TraceError(_explain(copied, error)) from error


def _traced(make_tracer: Callable[[], Tracer], copied: nn.Module,
            frames: Sequence[Tensor], hooks: bool) -> GraphModule:
    with TRACING, answering(copied):
        graph, out_spec, by_numbers = _run(make_tracer, copied, hooks)
    traced = GraphModule(copied, graph, class_name=type(copied).__name__)
    traced.meta.update(out_spec=out_spec, root=copied, by_numbers=by_numbers,
                       traced_for=[tuple(f.shape) for f in frames] or None,
                       dtypes=[f.dtype for f in frames] or None,
                       autocast=autocast_of(frames) if frames else ...)
    for node in graph.nodes:
        node.meta["source"] = source_line(node.stack_trace)
        node.meta.pop("stack_trace", None)  # long, and said in "source"
        node.meta["path"] = _path(node)
        node.meta.pop("nn_module_stack", None)
        node.meta.pop("fake", None)
        node.meta.pop("result_type", None)
    return traced


def _is_patched(module: nn.Module) -> bool:
    """Whether a module of PyTorch's has a method of somebody's own in it."""
    kind = type(module)
    return not kind.forward.__module__.startswith("torch.") or any(
        inspect.isfunction(getattr(kind, name, None)) for name in vars(module))


def _tell_hooks(module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
    """Run the hooks of a leaf, so that what they keep of a call is a proxy of this trace.

    What they return is the call's own, which runs them.
    """
    for hooks, named, given in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, ()),
            (module._forward_hooks, module._forward_hooks_with_kwargs, (made,))):
        for key, hook in hooks.items():
            if not isinstance(hook, (WeightNorm, SpectralNorm)):
                hook(module, args, *((kwargs,) if key in named else ()), *given)


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a module's dense ``forward``, which somebody may have put into it, not its class."""
    forward = vars(module).get("forward") or types.MethodType(type(module).forward, module)
    return getattr(forward, "dense", forward)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model in ``torch.compile``, ``DataParallel``, ``AveragedModel`` and the like."""
    while (type(model).__module__.startswith("torch.") and isinstance(model, nn.Module)
           and not isinstance(model, torch.jit.ScriptModule)
           and list(model._modules) in (["_orig_mod"], ["module"])):
        model, = model.children()
    return model


def private_copy(model: nn.Module) -> nn.Module:
    """Copy a model, with what ``torch.nn.utils.weight_norm`` leaves in it.

    That is a computed weight as an attribute, and PyTorch copies no tensors with a gradient. A
    function of TorchScript is not copied either, and need not be: it holds no weights.

    Raises:
        TraceError: where something in it cannot be copied.
    """
    held = [value for module in model.modules() for value in vars(module).values()]
    copies: dict[int, Any] = {id(value): value.detach().clone() for value in held
                              if isinstance(value, Tensor) and not value.is_leaf}
    copies |= {id(value): value for value in held if isinstance(value, torch.jit.ScriptFunction)}
    try:
        return copy.deepcopy(model, copies)
    except (TypeError, RuntimeError, AttributeError, pickle.PickleError) as error:
        if lacks_memory(error):
            raise
        raise TraceError(f"{type(model).__name__} cannot be copied ({error}), and the original is "
                         "to stay as it is. Make what cannot be copied where it is used, or take "
                         "it out of the model's attributes before.") from error


def _run(make_tracer: Callable[[], Tracer], model: nn.Module, hooks: bool
         ) -> tuple[fx.Graph, Any, bool]:
    """Return the graph of a model, the tree of its outputs, and whether it goes by numbers.

    The model is left as it was. What is computed of buffers is recorded, so that it follows them:
    new weights, another dtype.
    Where the code goes by the numbers in them, it is computed at once.
    """
    tracers = []

    def run(record_buffers: bool) -> fx.Graph:
        tracers.append(make_tracer())
        tracers[-1].proxy_buffer_attributes = record_buffers
        tracers[-1].hooks = hooks
        with torch.no_grad():
            return tracers[-1].trace(model)
    before, known, by_numbers = Attributes(model), set(vars(model)), False
    try:
        with without_logging():
            graph = find_state(model, lambda: run(True))
    except NotSupported:
        raise
    except Exception:
        before.restore(lambda value: True)
        if not any(_reads_buffers(tracer, model) for tracer in tracers):
            raise  # it would fail in the same way
        tracers.clear()
        by_numbers = True
        with without_logging():
            graph = find_state(model, lambda: run(False))
    _refuse_numbers(model, graph)
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


def _refuse_numbers(model: nn.Module, graph: fx.Graph) -> None:
    """Refuse what takes numbers out of a frame: a graph would keep those of the first.

    Raises:
        NotSupported: naming the line.
    """
    of_frames = with_numbers(model, graph, [])
    for node in graph.nodes:
        if node.op == "call_method" and node.target in TAKEN and node in of_frames and node.users:
            raise NotSupported(f"it takes numbers out of a tensor by .{node.target}() at "
                               f"{source_line(node.stack_trace)}. Where it can, let it compute "
                               "with tensors there")


def _reads_buffers(tracer: fx.Tracer, model: nn.Module) -> bool:
    """Whether buffers are read in a tracer's graph, be it half a one."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return any(node.op == "get_attr" and node.target in buffers for node in tracer.graph.nodes)


def _reads_constants(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether a graph reads tensors that are neither parameters nor buffers."""
    known = {name for named in (model.named_parameters, model.named_buffers)
             for name, _ in named(remove_duplicate=False)}
    return any(node.op == "get_attr" and node.target not in known for node in graph.nodes)


@contextmanager
def without_logging() -> Iterator[None]:
    """Keep PyTorch from printing the stack of what fails on fake tensors: it is tried again."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _with_shapes(frames: Sequence[Tensor]) -> Tracer:
    from deltaconvert.passes.trace_shapes import ShapeTracer  # builds on this file

    return ShapeTracer(frames)


def _leading(forward: Callable[..., Any], inputs: list[inspect.Parameter]
             ) -> list[inspect.Parameter]:
    """Return the inputs that are given by their place: all before the first that is not one."""
    parameters = inspect.signature(forward).parameters.values()
    return [p for p, chosen in itertools.takewhile(
        lambda pair: pair[0].name == pair[1].name and pair[0].kind is not pair[0].KEYWORD_ONLY,
        zip(parameters, inputs, strict=False))]


def _path(node: fx.Node) -> str:
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] if isinstance(entry, tuple) else str(entry) for entry in stack.values()]
    return paths[-1] if paths else ""


def source_line(stack_trace: str | None) -> str:
    """Return the innermost line of a stack trace that is the user's, as ``file:line: code``."""
    lines = [line.strip() for line in (stack_trace or "").splitlines() if line.strip()]
    found = ""
    for position, line in enumerate(lines):
        file, _, rest = line[6:].partition('", line ')
        if line.startswith('File "') and not _is_ours(file):
            code = lines[position + 1] if position + 1 < len(lines) else ""
            found = f"{file}:{rest.partition(',')[0]}: {code}"
    return found


def _is_ours(file: str) -> bool:
    return Path(file).parent == Path(__file__).parent or "/torch/" in file


SHAPES_HELP = (" If it branches on shapes alone, give convert its example_inputs (on the command "
               "line --size).")


def _explain_refusal(model: nn.Module, reason: Exception) -> str:
    whole = f"{type(model).__name__} cannot be converted whole: {reason}"
    if isinstance(reason, KeepsState):
        return (f"{whole}, and a converted model has only a past of its own. Take that as an input "
                "and return it, forward(x, state), or convert the parts that have none: "
                "modules='auto', or their paths.")
    return f"{whole}; or convert its parts: modules='auto', or their paths."


def _explain(model: nn.Module, error: Exception, more: str = "") -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_ours(f.filename)]
    place = ""
    if frames:
        last = frames[-1]
        code = last.line or linecache.getline(last.filename, last.lineno or 0).strip()
        place = f" at {last.filename}:{last.lineno}: {code}"
    children = [name for name, child in model.named_children()
                if next(child.parameters(), None) is not None]
    advice = (f"convert its parts, modules='auto', or a submodule instead, for instance "
              f"model.{children[0]} (of {', '.join(children[:8])})" if children
              else "rewrite that line")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (f"{type(model).__name__} cannot be traced{place}: {reason}. Its forward depends on the "
            f"numbers in a tensor, or on code that tracing cannot follow; {advice}.{more}")
