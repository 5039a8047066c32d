"""Annotate: what a call makes of its inputs' values, without numbers where that can be told so.

Before: a call whose inputs have ``meta["value"]``.
After: it has one too, ``meta["constant"]`` and ``meta["multiply_adds"]``; see `infer`.

Part of `infer`, and of the passes behind it, for the calls that they make.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from deltaconvert.errors import FrameError, FrameShapeError, FrameTypeError, UnsupportedError
from deltaconvert.operators.conv2d import conv2d
from deltaconvert.operators.registry import Call
from deltaconvert.passes.emit import emit
from deltaconvert.passes.find_writes import settle_writes, versions

QUANTISED = frozenset({torch.quint8, torch.qint8, torch.qint32})
# Calls that ask one of their arguments, by its place, for its shape or type alone.
ASKED_FOR_SHAPE = {"expand_as": 1, "view_as": 1, "reshape_as": 1, "type_as": 1, "zeros_like": 0,
                   "ones_like": 0, "full_like": 0, "new_zeros": 0, "new_ones": 0, "new_full": 0}


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *rest: Any,
                     **settings: Any) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


# PyTorch's counter has the kernels of attention for GPUs alone.
UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


class NeedsNumbers(Exception):
    """A fake tensor was not enough."""


@torch.no_grad()
def annotate(graph_module: GraphModule, node: fx.Node) -> None:
    """Give a call its value, whether that is constant, and the multiply-adds it took.

    Args:
        graph_module: of the node, for its weights.
        node: whose inputs have theirs.
    """
    asked = _asked_for_shape(node)
    constant = all(n.meta["constant"] for n in node.all_input_nodes if n is not asked)
    written = versions(node)
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        value = _run(graph_module, node, None if constant else _mode(graph_module), asked)
    value = settle_writes(node, written, value)
    if isinstance(value, Tensor) and value.dtype in QUANTISED:
        raise UnsupportedError(
            f"{node.meta.get('path') or node.name} gives integers with a scale "
            f"({value.dtype}), which have no pixels to compare. Convert the model as it was before "
            "it was quantised; dtype='bfloat16' makes that faster.")
    if constant and asked is not None and not asked.meta["constant"]:  # all there is to know of it
        shape = tuple(asked.meta["value"].shape)
        node.args = tuple(shape if a is asked else a for a in node.args)
    constant = constant or not has_tensor(value)
    node.meta.update(value=value, constant=constant,
                     multiply_adds=counter.get_total_flops() // 2)


def write(graph_module: GraphModule, meaning: Call, before: fx.Node, like: fx.Node) -> fx.Node:
    """Write a call in front of a node with the metadata of another, and annotate it."""
    made: list[fx.Node] = []
    written: fx.Node = emit(graph_module.graph, before, meaning, like.meta, made)
    for node in made:
        annotate(graph_module, node)
    return written


def _mode(graph_module: GraphModule) -> FakeTensorMode | None:
    """Return that of the fake frames; nothing where the frames are real."""
    frame = next(n.meta["value"] for n in graph_module.graph.nodes if n.op == "placeholder")
    return frame.fake_mode if isinstance(frame, FakeTensor) else None


def _asked_for_shape(node: fx.Node) -> fx.Node | None:
    """Return the input of which a call reads no number, if there is one."""
    place = _place_of_asked(node)
    asked = None if place is None else node.args[place]
    others = [a for i, a in enumerate(node.args) if i != place]
    return asked if isinstance(asked, fx.Node) and asked not in others else None


def _place_of_asked(node: fx.Node) -> int | None:
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    known = node.op == "call_method" or node.target is getattr(torch, str(name), None)
    place = ASKED_FOR_SHAPE.get(str(name)) if known else None
    return None if place is None or place >= len(node.args) else place


def _with_asked(node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put a tensor in the place of the shape that `annotate` left of one."""
    place = _place_of_asked(node)
    if place is None or not isinstance(args[place], tuple):
        return args
    value = node.meta["value"]
    like = torch.zeros((), dtype=value.dtype, device=value.device).expand(args[place])
    return (*args[:place], like, *args[place + 1:])


def with_values(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> tuple[Any, dict[str, Any]]:
    """Return a call's arguments with values for nodes, in lists and dicts that may be written to.

    FX's own refuse that, and functions that it does not look into may well do it.
    """
    def plain(argument: Any) -> Any:
        if isinstance(argument, (tuple, list)) and not hasattr(argument, "_fields"):
            parts = [plain(part) for part in argument]
            return tuple(parts) if isinstance(argument, tuple) else parts
        if isinstance(argument, dict):
            return {key: plain(part) for key, part in argument.items()}
        return fx.map_arg(argument, value_of)
    args, kwargs = plain(tuple(node.args)), plain(dict(node.kwargs))
    return args, kwargs


@torch.no_grad()
def computed(graph_module: GraphModule, node: fx.Node) -> Any:
    """Compute a constant from the model's weights, in their precision."""
    if node.op == "get_attr":
        return attribute(graph_module, str(node.target))
    args, kwargs = with_values(node, lambda n: computed(graph_module, n))
    args = _with_asked(node, args)
    return _call(graph_module, node, args, kwargs)


def attribute(graph_module: torch.nn.Module, path: str) -> Any:
    """Return a parameter or buffer by its dotted path."""
    value: Any = graph_module
    for name in path.split("."):
        value = getattr(value, name)
    return value.detach() if isinstance(value, Tensor) else value


def _run(graph_module: GraphModule, node: fx.Node, mode: FakeTensorMode | None,
         asked: fx.Node | None) -> Any:
    """Make a call; without a mode the numbers are real, but for those it is not asked for."""
    def value_of(n: fx.Node) -> Any:
        value = n.meta["value"]
        return _like(value) if mode is None and n is asked and isinstance(
            value, FakeTensor) else value
    args, kwargs = with_values(node, value_of)
    args = _with_asked(node, args)  # of a run on fake tensors that was not enough
    try:
        if mode is None:
            return _call(graph_module, node, args, kwargs)
        with mode:
            return _call(graph_module, node, args, kwargs)
    except Exception as error:
        if mode is not None:
            raise NeedsNumbers from error
        raise _refused(node, args, error) from error


def _like(fake: FakeTensor) -> Tensor:
    """Return a real tensor of one number that stands for all of a fake one's."""
    return torch.zeros((), dtype=fake.dtype, device=fake.fake_device).expand(fake.shape)


def _refused(node: fx.Node, args: tuple[Any, ...], error: Exception) -> FrameError:
    """Say which call fails on such frames, and what of them to look at."""
    shapes = [tuple(n.meta["value"].shape) for n in node.all_input_nodes
              if not n.meta["constant"] and isinstance(n.meta["value"], Tensor)]
    source = f" ({node.meta['source']})" if node.meta.get("source") else ""
    where = f"module {node.meta['path']}" if node.meta.get("path") else node.name
    text = (f"{where} fails on inputs of the shapes {shapes}: "
            f"{(str(error).splitlines() or [type(error).__name__])[0].rstrip('.')}{source}. ")
    weights = [n.meta["value"] for n in node.all_input_nodes
               if n.meta["constant"] and isinstance(n.meta["value"], Tensor)]
    types = {w.dtype for w in weights}
    dtypes = {a.dtype for a in args if isinstance(a, Tensor)}
    if len(types) == 1 and dtypes - types:
        return FrameTypeError(f"{text}The weights are {types.pop()}: give the frames that dtype, "
                              "normalised as for the dense model.")
    if node.target is conv2d and node.kwargs["groups"] == 1 and shapes[0][1:2] == (3,) and (
            weights[0].shape[1:2] == (1,)):
        return FrameShapeError(f"{text}Frames for it are gray (on the command line "
                               "--channel-order gray).")
    return FrameShapeError(f"{text}Check the size and the channels of the frames against what the "
                           "model takes.")


def _call(graph_module: GraphModule, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_module":
        return graph_module.get_submodule(str(node.target))(*args, **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def has_tensor(value: Any) -> bool:
    """Whether there is a tensor in a value of nested containers."""
    if isinstance(value, (tuple, list)):
        return any(has_tensor(v) for v in value)
    if isinstance(value, dict):
        return any(has_tensor(v) for v in value.values())
    return isinstance(value, Tensor)


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
