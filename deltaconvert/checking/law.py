"""The law, checked: every value within its threshold of what its inputs give.

For every node, lane and frame, at every pixel::

    norm over channels of ( f(values of the inputs) - value )  <=  threshold + slack

`LawChecker` evaluates f densely, in plain PyTorch, and compares. The slack is the
rounding of one evaluation, measured where it matters: a node that exceeds its threshold
by more than a few units in the last place is evaluated in float64 as well.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deltaconvert.backends.rule import change_norm
from deltaconvert.errors import FrameTypeError, InputError
from deltaconvert.nodes import DeltaNode, fill
from deltaconvert.state import Edge
from deltaconvert.summary import operator_name
from deltaconvert.words import a_kind

if TYPE_CHECKING:
    from deltaconvert.islands import IslandsModule
    from deltaconvert.module import DeltaModule

BLOCK = 8  # pixels a side, of the block test at the input

# One evaluation against another differs by at most twice what each differs from the exact
# result; four times leaves room for maps so small that their largest rounding is luck.
ROUNDINGS = 4.0
FLOAT64_SLACK = 1e-9


@dataclass(frozen=True)
class TensorStats:
    """What a failure message says of a tensor; numbers that are not finite are only counted."""

    minimum: float
    maximum: float
    mean: float
    std: float
    not_finite: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> TensorStats:
        """Measure a tensor of any kind."""
        numbers = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        numbers = numbers.detach().double().flatten()
        finite = numbers[numbers.isfinite()]
        lost = numbers.numel() - finite.numel()
        if finite.numel() == 0:
            return cls(math.nan, math.nan, math.nan, math.nan, lost)
        return cls(float(finite.min()), float(finite.max()), float(finite.mean()),
                   float(finite.std(correction=0)), lost)

    def __str__(self) -> str:
        """Return one line."""
        lost = f", {self.not_finite} not finite" if self.not_finite else ""
        return (f"min {self.minimum:.6g}, max {self.maximum:.6g}, mean {self.mean:.6g}, "
                f"std {self.std:.6g}{lost}")


@dataclass(frozen=True)
class Breach:
    """One node that broke the law in one frame.

    Args:
        node, path, source, operator, rule, backend: which node, and who ran it.
        frame: index, counted from 0.
        where: of the largest breach: ``(lane, y, x)`` in a map, else ``(lane,)``.
        change: the norm of ``f(values of the inputs) - value`` there.
        norm: over the channels, ``"max"`` or ``"rms"``.
        threshold, slack: what was allowed there, in the same units.
        pixels: how many pixels break the law.
        expected, value: statistics of ``f(values of the inputs)`` and of the value.
    """

    node: str
    path: str
    source: str
    operator: str
    rule: str
    backend: str
    frame: int
    where: tuple[int, ...]
    change: float
    norm: str
    threshold: float
    slack: float
    pixels: int
    expected: TensorStats
    value: TensorStats

    def __str__(self) -> str:
        """Say which node, where, how much, and both tensors' statistics."""
        place = ", ".join(f"{axis} {i}" for axis, i in zip(("lane", "y", "x"), self.where,
                                                           strict=False))
        module = f", module {self.path}" if self.path and self.path != self.node else ""
        source = f"\n  source    {self.source}" if self.source else ""
        return (f"{self.node} ({self.operator}, {self.rule}, run by {self.backend}{module}) "
                f"breaks the law in frame {self.frame}{source}\n"
                f"  largest   {self.change:.6g} at {place}; allowed {self.threshold:.6g} "
                f"+ {self.slack:.3g} for rounding ({self.norm} over channels), "
                f"{self.pixels} pixels exceed it\n"
                f"  expected  {self.expected}\n"
                f"  value     {self.value}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self) | {"where": list(self.where)}


class LawChecker:
    """An observer that checks the law at every node it sees.

    ::

        checker = LawChecker(delta)
        stream.observe(checker)
        for frame in frames:
            checker.begin(frame)
            stream(frame)
        assert not checker.breaches, checker.breaches[0]

    With ``each=False`` it only takes note of what passes, and `check` checks the frame that
    was run last, afterwards: then nothing but a note is in the time of a frame.

    Args:
        delta: the converted model.
        each: check every node as soon as it has run.
    """

    def __init__(self, delta: DeltaModule | IslandsModule, *, each: bool = True) -> None:
        """Start without breaches, before frame 0."""
        self.breaches: list[Breach] = []
        self.frame = -1
        self._delta = delta
        self._each = each
        self._inputs: dict[str, Tensor] = {}
        self._edges: dict[str, Edge] = {}
        self._nodes: list[DeltaNode] = []

    def begin(self, *frames: Any) -> None:
        """Tell the frame that the stream is about to be given: it is f at the door in."""
        self._inputs = self._delta.named_inputs(frames)
        self._edges.clear()
        self._nodes.clear()
        self.frame += 1

    def enter(self, door: str, frame: Tensor) -> None:
        """Tell what is about to come in at the door of an island, which only its call shows."""
        self._inputs[door] = frame

    def __call__(self, node: DeltaNode, edge: Edge) -> None:
        """Take note of a node's edge, and check it."""
        self._edges[node.about.name] = edge
        self._nodes.append(node)
        if self._each:
            self.breaches += self._check(node, edge)

    def check(self) -> list[Breach]:
        """Return the breaches of the last frame, in order of execution; they are kept too."""
        found = [breach for node in self._nodes
                 for breach in self._check(node, self._edges[node.about.name])]
        self.breaches += found
        return found

    @property
    def nodes_seen(self) -> int:
        """How many nodes ran in the last frame."""
        return len(self._nodes)

    def _check(self, node: DeltaNode, edge: Edge) -> list[Breach]:
        with torch.no_grad():
            if node.about.rule == "sparsify":
                frame = self._inputs.get(node.about.name)
                return [] if frame is None else self._check_door(node, edge, frame)
            values = [self._edges[spec.name].value for spec in node.about.inputs]
            expected = node.evaluate(*values)
            if not isinstance(edge.value, Tensor):
                return self._check_leaves(node, edge, expected)
            return self._compare(node, edge, expected, values)

    def _check_door(self, node: DeltaNode, edge: Edge, given: Tensor) -> list[Breach]:
        """Check the door in, whose f is the frame; its block test bounds means and pixels."""
        config = self._delta.config
        frame = node.evaluate(given).to(edge.value.dtype)
        if not (config.input_test == "block" and config.input_threshold and edge.spec.is_map):
            return self._compare(node, edge, frame, [given])
        pixels = change_norm(frame, edge.value, node.about.norm, True, True)
        mean = F.avg_pool2d(frame - edge.value, BLOCK, ceil_mode=True, count_include_pad=False)
        blocks = change_norm(mean, torch.zeros_like(mean), node.about.norm, True, True)
        slack = _ulps(frame.dtype, 4 + BLOCK) * _magnitude(frame, edge.value)
        for sizes, limit in ((pixels, config.cap), (blocks, config.input_threshold)):
            limits = sizes.new_full(sizes.shape, limit)
            if _exceeds(sizes, limits, slack):
                return [self._breach(node, sizes, limits, slack, frame, edge.value)]
        return []

    def _check_leaves(self, node: DeltaNode, edge: Edge, expected: Any) -> list[Breach]:
        """Check what is not one tensor: it is taken over whole, so it is equal to the bit."""
        for wanted, found in zip(pytree.tree_leaves(expected), pytree.tree_leaves(edge.value),
                                 strict=True):
            if isinstance(wanted, Tensor):
                sizes = change_norm(*_without_common_nan(wanted, found), "max", False, False)
                limits = torch.zeros_like(sizes)
                if _exceeds(sizes, limits, 0.0):
                    return [self._breach(node, sizes, limits, 0.0, wanted, found)]
        return []

    def _compare(self, node: DeltaNode, edge: Edge, expected: Tensor,
                 values: Sequence[Any]) -> list[Breach]:
        spec = edge.spec
        wanted, found = _without_common_nan(expected, edge.value)
        sizes = change_norm(wanted, found, node.about.norm, spec.is_map, spec.has_lanes)
        limits = torch.from_numpy(edge.threshold).to(sizes)
        limits = limits.view((-1,) + (1,) * (sizes.dim() - 1)).expand(sizes.shape)
        magnitude = _magnitude(wanted, found) + float(limits.max())
        slack = _ulps(wanted.dtype, 4) * magnitude
        if not _exceeds(sizes, limits, slack):
            return []
        magnitude = max(magnitude, _magnitude(*values, *_biases(node)))
        slack += _rounding(node, values, wanted, magnitude)
        if not _exceeds(sizes, limits, slack):
            return []
        return [self._breach(node, sizes, limits, slack, expected, edge.value)]

    def _breach(self, node: DeltaNode, sizes: Tensor, limits: Tensor, slack: float,
                expected: Tensor, value: Tensor) -> Breach:
        about = node.about
        excess = torch.where(sizes.isnan(), math.inf, sizes - limits)
        worst = int(excess.argmax())
        where = tuple(int(i) for i in np.unravel_index(worst, tuple(excess.shape)))
        return Breach(
            about.name, about.path, about.source, operator_name(node), about.rule,
            "in place" if about.aliases else node.backend, self.frame, where,
            float(sizes.flatten()[worst]), about.norm, float(limits.flatten()[worst]), slack,
            int((~(excess <= slack)).sum()), TensorStats.of(expected), TensorStats.of(value))


def check_law(delta: DeltaModule | IslandsModule,
              frames: Iterable[Tensor | Sequence[Tensor]]) -> list[Breach]:
    """Run a new stream over frames and check every node in every frame.

    Args:
        delta: the converted model.
        frames: each what the model takes: one tensor, or a tuple of them.

    Returns:
        The breaches of the first frame that has any, in order of execution: the first is
        the culprit, what follows may be its consequence. Empty where the law holds.
    """
    stream, checker = delta.new_stream(), LawChecker(delta)
    stream.observe(checker)
    for inputs in inputs_of(frames):
        checker.begin(*inputs)
        stream(*inputs)
        if checker.breaches:
            break
    return checker.breaches


def inputs_of(frames: Iterable[Tensor | Sequence[Tensor]]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the inputs of each call for the frames of a clip.

    Raises:
        InputError: what is given is no clip.
        FrameTypeError: see `as_inputs`.
    """
    if isinstance(frames, Tensor) and frames.dim() < 5:  # of [T, N, C, H, W] each part is a frame
        raise InputError(f"frames is one tensor of {tuple(frames.shape)}: give a list of what the "
                         "model takes; of a video T x C x H x W that is frames.split(1).")
    try:
        clip = None if isinstance(frames, str) else iter(frames)
    except TypeError:
        clip = None
    if clip is None:
        raise InputError(f"frames is {a_kind(frames)}: give a list of what the model takes.")
    yield from map(as_inputs, clip)


def as_inputs(frame: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the inputs of one call: a frame is one tensor, or several.

    Raises:
        FrameTypeError: it is neither.
    """
    if not isinstance(frame, Iterable):
        raise FrameTypeError(f"a frame is a {type(frame).__name__}, not a tensor, nor a tuple of "
                             "the model's inputs.")
    return (frame,) if isinstance(frame, Tensor) else tuple(frame)


def _exceeds(sizes: Tensor, limits: Tensor, slack: float) -> bool:
    return not bool((sizes <= limits + slack).all())


def _without_common_nan(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Put zeros where both are NaN: that is no difference."""
    if one.shape != other.shape or not (one.is_floating_point() or one.is_complex()):
        return one, other
    both = one.isnan() & other.isnan()
    return (one.masked_fill(both, 0), other.masked_fill(both, 0)) if both.any() else (one, other)


def _magnitude(*values: Any) -> float:
    """Return the largest finite magnitude in the tensors among some values."""
    return max((_largest(t) for t in values if isinstance(t, Tensor) and t.numel()
                and (t.is_floating_point() or t.is_complex())), default=0.0)


def _largest(tensor: Tensor) -> float:
    """Return the largest finite magnitude; 0 where nothing is finite."""
    sizes = tensor.abs()
    largest = float(sizes.max())
    if math.isfinite(largest):  # nearly always: numbers are picked out one by one only otherwise
        return largest
    return float(torch.where(sizes.isfinite(), sizes, 0.0).max())


def _biases(node: DeltaNode) -> list[Tensor]:
    """Return the constants that are added a channel: a sum may cancel against a large one."""
    return [a for a in node.about.args if isinstance(a, Tensor) and a.dim() == 1]


def _ulps(dtype: torch.dtype, number: float) -> float:
    """Return that many roundings of a dtype, relative; exact dtypes have none."""
    if dtype == torch.float64:
        return FLOAT64_SLACK
    exact = not (dtype.is_floating_point or dtype.is_complex)
    return 0.0 if exact else number * torch.finfo(dtype).eps


def _rounding(node: DeltaNode, values: Sequence[Any], result: Tensor, magnitude: float) -> float:
    """Return what two evaluations of a node in its own precision may differ by.

    Measured against float64; and at least what a sum of so many products comes to, since
    of a few numbers even the worst may be rounded well by chance.
    """
    if result.dtype == torch.float64 or not result.is_floating_point():
        return 0.0
    channels = result.shape[1] if node.about.output.is_map else result[0].numel()
    floor = _ulps(result.dtype, math.sqrt(max(node.about.multiply_adds, 1) / max(channels, 1)))
    try:
        exact = _evaluate_in_float64(node, values)
        error = float((exact - result.double()).abs().nan_to_num().max())
    except (RuntimeError, TypeError):  # an unknown function may insist on its dtype
        return _ulps(result.dtype, 64) * magnitude
    return ROUNDINGS * error + floor * magnitude


def _evaluate_in_float64(node: DeltaNode, values: Sequence[Any]) -> Tensor:
    about = node.about
    function = about.function
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function).double()
    raised = tuple(pytree.tree_map(_raised, v) for v in values)
    args = pytree.tree_map(_raised, fill(about.args, raised))
    params = pytree.tree_map(_raised, fill(about.params, raised))
    result: Tensor = function(*args, **params)
    return result.double()


def _raised(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
