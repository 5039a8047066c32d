"""A model compiled for one input signature."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from deltaconvert.backends.base import Backend, Buffers, Step
from deltaconvert.config import Config
from deltaconvert.errors import UnsupportedError, lacks_memory
from deltaconvert.nodes import DeltaNode
from deltaconvert.passes.plan_state import Plan
from deltaconvert.passes.result import PassResult
from deltaconvert.state import Edge, State

_SHARED = 1 << 15  # numbers: for more, PyTorch calls its threads


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
        try:
            return self._new_state()
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            raise self.too_large() from error

    def too_large(self) -> UnsupportedError:
        """Say what a stream needs, where the device's memory is not enough for it."""
        return UnsupportedError(
            f"a stream of {self.lanes} lanes needs {self.plan.nbytes / 1e6:.0f} MB on "
            f"{self.device} ({self.plan.value_bytes / 1e6:.0f} MB of values) and what operators "
            "work with for a moment, and that is not free. Run fewer lanes or smaller frames, go "
            "to half precision with model.half(), or drop other streams.")

    def _new_state(self) -> State:
        buffers, scratch, masks = self.plan.allocate(self.device)
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

    @property
    def nbytes(self) -> int:
        """Bytes of derived weights and of other constants; about as many as it takes at least."""
        return sum(self.memory.values())

    @cached_property
    def memory(self) -> dict[int, int]:
        """The same for each piece of memory, by what names it; programs share many of them."""
        seen: dict[int, int] = {}
        _weigh([self.weights, *(node.about for node in self.nodes)], seen)
        return seen

    def as_stored(self, frames: Mapping[str, Any]) -> list[Any]:
        """Return frames by the inputs' names as their doors take them: precision and dimensions."""
        turned = self._turned
        if turned:
            frames = {name: turned[name].evaluate(frame) if name in turned else frame
                      for name, frame in frames.items()}
        doors = self._doors
        return [converted(frame, doors.get(name)) for name, frame in frames.items()]

    @cached_property
    def _doors(self) -> dict[str, torch.dtype | None]:
        return {n.about.name: n.about.output.dtype for n in self.nodes
                if n.about.rule == "sparsify"}

    @cached_property
    def _turned(self) -> dict[str, DeltaNode]:
        return {n.about.name: n for n in self.nodes if n.about.rule == "sparsify"
                and n.about.params}

    def _bind(self, node: DeltaNode, buffers: Buffers) -> Step:
        backend = self.backends[node.backend]
        if node.about.aliases:
            return backend.bind_union(node, buffers)
        return backend.bind(node, self.weights[node.about.name], buffers)


def converted(frame: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a frame in a precision, itself if it has that.

    For milliseconds behind an operator, PyTorch's other threads watch for the next one, on the
    cores that the helpers of a compiled frame need. So on a CPU it is given less than it shares at
    a time, unless there are gaps between the numbers.
    """
    if dtype in (None, frame.dtype):
        return frame
    if frame.device.type != "cpu":
        return frame.to(dtype)
    made = torch.empty_like(frame, dtype=dtype)
    if frame.stride() != made.stride():
        return made.copy_(frame)
    for part, of in zip(_flat(made).split(_SHARED), _flat(frame).split(_SHARED), strict=True):
        part.copy_(of)
    return made


def _flat(frame: Tensor) -> Tensor:
    return frame.as_strided((frame.numel(),), (1,))


def _weigh(value: Any, seen: dict[int, int]) -> None:
    """Note the bytes of each array and tensor in containers and records, by its memory."""
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided:
            seen[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
    elif isinstance(value, np.ndarray):
        base = value
        while isinstance(base.base, np.ndarray):
            base = base.base
        seen[id(base)] = base.nbytes
    elif isinstance(value, Mapping):
        _weigh(list(value.values()), seen)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _weigh(part, seen)
    elif is_dataclass(value) and not isinstance(value, type):
        _weigh([getattr(value, f.name) for f in fields(value)], seen)
