"""The delta nodes: what a lowered graph is made of.

A lowered graph calls delta nodes on edges: ``conv1 = self.conv1(state, x)``. A node
is a description, shared by all streams; what it does in a frame is a *step* that a
backend bound to the stream's buffers, kept in the state that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from deltaconvert.config import Norm
from deltaconvert.footprint import Footprint
from deltaconvert.operators.registry import Operator, Rule, Shapes

if TYPE_CHECKING:
    from deltaconvert.state import State


@dataclass(frozen=True)
class EdgeSpec:
    """What is known of an edge before it exists.

    Args:
        name: of the node that produces it.
        shape: of the value; ``None`` for what is not a tensor (*opaque*: a tuple, say).
        dtype: of the value.
        lanes: the batch size of the stream.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    lanes: int

    @property
    def is_map(self) -> bool:
        """Whether this is ``[N, C, H, W]`` with a lane a batch element."""
        return self.shape is not None and len(self.shape) == 4 and self.shape[0] == self.lanes

    @property
    def has_lanes(self) -> bool:
        """Whether dimension 0 counts the lanes; else one lane stands for all."""
        return self.shape is not None and len(self.shape) > 0 and self.shape[0] == self.lanes

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """``[N, H, W]`` for a map, ``[N]`` for anything else with lanes, ``[1]`` without."""
        if self.is_map:
            assert self.shape is not None
            return self.lanes, self.shape[2], self.shape[3]
        return (self.lanes,) if self.has_lanes else (1,)

    @property
    def pixels(self) -> int:
        """Pixels of one lane: what one lane of the mask holds."""
        return self.mask_shape[1] * self.mask_shape[2] if self.is_map else 1


Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides


@dataclass(frozen=True)
class Slot:
    """Stands in a node's arguments where the value of its ``index``-th input edge goes.

    Args:
        index: of the edge.
        layout: shape and strides of what goes there, where the function may mind.
    """

    index: int
    layout: Layout | None = None


@dataclass
class Description:
    """Everything about a node that does not depend on a backend or a stream.

    Args:
        name: unique in the graph.
        path: of the module that the user wrote (``layer1.0.conv1``), or of its caller.
        source: the user's line, as ``file:line: code``, where known.
        rule: ``"local"``, ``"global"``, ``"unknown"``, ``"sparsify"`` or ``"densify"``.
        reason: why an unknown node is unknown, or a local operator runs as a global one.
        advice: what would make it local, where that is known.
        function: on values: the canonical function, or the user's own.
        operator: what the function is, where it is known.
        args, params: the function's arguments, with a `Slot` for each edge's value.
        inputs, output: the edges.
        footprints: a local node's, one an input edge.
        multiply_adds: of a local node's output pixel; of a lane, for the other rules.
        threshold, norm: settled from the configuration.
        aliases: the value is a view of its inputs' buffers (a concatenation written in
            place): nothing to compute, the mask is the union of the inputs' masks.
        unknown: of nodes that run as one, those that are not known.
    """

    name: str
    path: str
    source: str
    rule: Rule | Literal["sparsify", "densify"]
    reason: str
    function: Callable[..., Any]
    operator: Operator | None
    args: tuple[Any, ...]
    params: dict[str, Any]
    inputs: tuple[EdgeSpec, ...]
    output: EdgeSpec
    footprints: tuple[Footprint, ...] = ()
    multiply_adds: int = 0
    threshold: float = 0.0
    norm: Norm = "max"
    aliases: bool = False
    shapes: Shapes | None = None
    constants: dict[str, Tensor] = field(default_factory=dict)
    advice: str = ""
    unknown: tuple[Description, ...] = ()

    @property
    def function_name(self) -> str:
        """The operator's name, or that of the model's own function or module."""
        return self.operator.name if self.operator else getattr(
            self.function, "__name__", type(self.function).__name__)


class DeltaNode(nn.Module):
    """A node of the lowered graph: a `Description` that is called with a state."""

    def __init__(self, description: Description) -> None:
        """Keep the description; a node holds no parameters of its own."""
        super().__init__()
        self.about = description
        self.backend = ""
        self.fallback_reason = ""

    def forward(self, state: State, *inputs: Any) -> Any:
        """Run this node's step on the state's buffers and return its edge."""
        return state.run(self, *inputs)

    def evaluate(self, *values: Any) -> Any:
        """Compute the function densely on the values of the input edges."""
        args, params = fill(self.about.args, values), fill(self.about.params, values)
        return self.about.function(*args, **params)

    @property
    def dense_multiply_adds(self) -> int:
        """Multiply-adds of one lane, evaluated whole."""
        per = self.about.output.pixels if self.about.rule == "local" else 1
        return self.about.multiply_adds * per

    def extra_repr(self) -> str:
        """Say in one line what the node is, for ``print(graph_module)``."""
        about = self.about
        activation = about.params.get("activation")
        fused = ["residual"] * ("residual" in about.constants or _has_residual(about))
        fused += [str(activation[0])] if activation else []
        return ", ".join([" + ".join([about.function_name, *fused]), about.rule,
                          f"threshold={about.threshold:g}", about.norm, self.backend])


def _has_residual(about: Description) -> bool:
    return bool(about.operator and "residual" in about.operator.fuses
                and len(about.args) > 3 and isinstance(about.args[3], Slot))


class SparsifyNode(DeltaNode):
    """The door in: the rule with the frame as f. Its step is called with the frame."""


class DensifyNode(DeltaNode):
    """The door out: a copy of a value, so that outputs alias nothing.

    Args:
        description: of the node.
        dtype: what the model returns, where floating-point values are kept in another.
    """

    def __init__(self, description: Description, dtype: torch.dtype | None = None) -> None:
        """Keep both."""
        super().__init__(description)
        self.dtype = dtype

    def forward(self, state: State, *inputs: Any) -> Any:
        """Copy the value of an edge; what is not a tensor is copied container by container."""
        (edge,) = inputs
        return copy_value(edge.value, self.dtype)


def copy_value(value: Any, dtype: torch.dtype | None = None) -> Any:
    """Copy the tensors in a value, dense and in their own memory format.

    With ``dtype``, what is floating-point is copied into that.
    """
    if isinstance(value, Tensor):
        return value.to(dtype if value.is_floating_point() else None, copy=True)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(copy_value(v, dtype) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(copy_value(v, dtype) for v in value)
    if isinstance(value, dict):
        return {k: copy_value(v, dtype) for k, v in value.items()}
    return value


def fill(template: Any, values: tuple[Any, ...]) -> Any:
    """Put values where a template of nested containers has a `Slot`."""
    if isinstance(template, Slot):
        value = values[template.index]
        return value if template.layout is None else _laid_out(value, *template.layout)
    if isinstance(template, (tuple, list)):
        return type(template)(fill(t, values) for t in template)
    if isinstance(template, dict):
        return {k: fill(t, values) for k, t in template.items()}
    if isinstance(template, slice):
        return slice(*(fill(t, values) for t in (template.start, template.stop, template.step)))
    return template


def filler(template: Any) -> Callable[[Sequence[Any]], Any]:
    """Return what does as `fill` with a template, prepared for one that is filled in each frame."""
    if not any(slots(template)):
        return lambda values: template
    pairs = template.items() if isinstance(template, dict) else enumerate(template)
    places = [(place, part) for place, part in pairs if any(slots(part))]
    if not isinstance(template, tuple) or not all(
            isinstance(part, Slot) and part.layout is None for _, part in places):
        return lambda values: fill(template, tuple(values))
    plain, taken = list(template), [(place, slot.index) for place, slot in places]

    def filled(values: Sequence[Any]) -> list[Any]:
        arguments = plain.copy()
        for place, index in taken:
            arguments[place] = values[index]
        return arguments
    return filled


def _laid_out(value: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """Copy a tensor of this shape that lies otherwise."""
    if not isinstance(value, Tensor) or value.shape != shape or value.stride() == strides:
        return value
    return torch.empty_strided(shape, strides, dtype=value.dtype,
                               device=value.device).copy_(value)


def slots(template: Any) -> Iterator[Slot]:
    """Yield every `Slot` in a template of nested containers."""
    if isinstance(template, Slot):
        yield template
    elif isinstance(template, (tuple, list)):
        for part in template:
            yield from slots(part)
    elif isinstance(template, dict):
        yield from slots(list(template.values()))
    elif isinstance(template, slice):
        yield from slots([template.start, template.stop, template.step])
