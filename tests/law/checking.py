"""The law as an observer, and what its rounding may be.

For every node, lane and frame: ``norm(f(values of the inputs) - value) <= threshold``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltaconvert.nodes import DeltaNode, fill
from deltaconvert.passes.lower import Joined
from deltaconvert.state import Edge


def at_double(value: Any) -> Any:
    """The same numbers in double precision, in whatever container; modules and dtypes too."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, torch.dtype):  # a conversion among joined calls
        return torch.float64 if value.is_floating_point else value
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Joined):
        return Joined(at_double(value.calls))
    if isinstance(value, (tuple, list)):
        return type(value)(at_double(v) for v in value)
    if isinstance(value, dict):
        return {k: at_double(v) for k, v in value.items()}
    return value


def evaluate_at_double(node: DeltaNode, values: Sequence[Any]) -> Any:
    """Compute a node's f of these values in double precision."""
    about = node.about
    values = tuple(at_double(v) for v in values)
    args, params = fill(at_double(about.args), values), fill(at_double(about.params), values)
    return at_double(about.function)(*args, **params)


def over_channels(difference: Tensor, edge: Edge, norm: str) -> Tensor:
    """Return the norm of a difference, in the shape of the mask."""
    spec = edge.spec
    if not spec.is_map:
        difference = difference.reshape(spec.lanes if spec.has_lanes else 1, -1)
    if difference.shape[1] == 0:
        return torch.zeros(edge.mask.shape, dtype=torch.float64)
    return difference.abs().amax(1) if norm == "max" else difference.square().mean(1).sqrt()


def rounding_of(node: DeltaNode, values: Sequence[Any], exact: Tensor, edge: Edge) -> float:
    """What the rounding of one evaluation of f may amount to.

    In double precision 1e-9 of the largest number. In single precision four times the
    difference between one evaluation and the double one, anywhere in the map, but no less
    than four units in the last place of the largest number that goes in or comes out (a map
    of a few numbers may round well by luck).
    """
    numbers = [exact, *(v for v in values if isinstance(v, Tensor) and v.is_floating_point())]
    scale = max((float(n.abs().max()) for n in numbers if n.numel()), default=0.0)
    if edge.value.dtype == torch.float64:
        return 1e-9 * scale
    single = node.evaluate(*values)
    once = float(over_channels(single.double() - exact, edge, "max").max())
    return 4 * max(once, torch.finfo(edge.value.dtype).eps * scale)


def column(numbers: Any, like: Tensor) -> Tensor:
    """One number a lane, to compare a mask-shaped tensor with."""
    return torch.as_tensor(np.asarray(numbers)).reshape(-1, *[1] * (like.dim() - 1))


class Law:
    """An observer that asserts the law, and the mask's own promises, at every node.

    Tell it what comes with `expect` before each frame.
    """

    def __init__(self, norm: str = "max", input_threshold: float = 0.0) -> None:
        self.norm, self.input_threshold = norm, input_threshold
        self.edges: dict[str, Edge] = {}
        self.before: dict[str, Tensor] = {}
        self.checked = 0

    def expect(self, frames: dict[str, Tensor], fresh: Sequence[bool]) -> None:
        """The frames by input name, and which lanes are at their first frame."""
        self.frames, self.fresh = frames, list(fresh)

    def __call__(self, node: DeltaNode, edge: Edge) -> None:
        name = node.about.name
        self.edges[name] = edge
        if not isinstance(edge.value, Tensor):
            return
        self.assert_mask(name, edge)
        if edge.value.is_floating_point():
            self.assert_law(node, edge)
        self.before[name] = edge.value.clone()
        self.checked += 1

    def assert_law(self, node: DeltaNode, edge: Edge) -> None:
        about = node.about
        if about.rule == "sparsify":
            exact, rounding = node.evaluate(self.frames[about.name]).double(), 0.0
        else:
            values = [self.edges[spec.name].value for spec in about.inputs]
            exact = evaluate_at_double(node, values)
            rounding = rounding_of(node, values, exact, edge)
        size = over_channels(exact - edge.value.double(), edge, about.norm)
        fresh = self.fresh if edge.spec.has_lanes else [any(self.fresh)]
        held = np.where(fresh, 0.0, edge.threshold)
        limit = column(held * (1 + 1e-6), size) + rounding
        assert bool((size <= limit).all()), _explain(node, edge, size, limit, rounding)

    def assert_mask(self, name: str, edge: Edge) -> None:
        mask = edge.mask.bool()
        fresh = self.fresh if edge.spec.has_lanes else [any(self.fresh)]
        full = mask | ~column(fresh, mask)
        assert full.all(), f"{name}: a lane's first frame has a full mask"
        assert edge.mask.flatten(1).sum(1).tolist() == list(edge.counts) if mask.dim() > 1 else (
            edge.mask.tolist() == list(edge.counts)), f"{name}: counts differ from the mask"
        if name in self.before and self.before[name].shape == edge.value.shape:
            moved = self.before[name] != edge.value
            if not edge.spec.is_map:
                moved = moved.reshape(mask.shape[0], -1)
            outside = moved.any(1) & ~mask
            assert not outside.any(), (f"{name}: the value changed outside the mask at "
                                       f"{outside.nonzero().tolist()[:5]}")


def _explain(node: DeltaNode, edge: Edge, size: Tensor, limit: Tensor, rounding: float) -> str:
    over = (size > limit).nonzero()
    worst = size.flatten().argmax()
    return (f"{node.about.name} ({node.about.function.__name__}, {node.about.rule}, "
            f"{node.backend}) breaks the law at {len(over)} of {size.numel()} pixels, first "
            f"{over[0].tolist()}; largest {float(size.max()):.3g} at {int(worst)}, thresholds "
            f"{edge.threshold.tolist()}, rounding {rounding:.3g}, mask {list(edge.counts)}")
