"""Which node is the first to break the law, and where errors come in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltaconvert.checking.law import Breach, LawChecker, inputs_of
from deltaconvert.checking.report import jsonable
from deltaconvert.module import DeltaModule
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import Edge
from deltaconvert.summary import operator_name
from deltaconvert.words import count, text_table
from deltaconvert.work import ratio

MOST_LISTED = 8


@dataclass(frozen=True)
class NodeError:
    """One node's value against that of a dense evaluation of the whole graph.

    Args:
        node, operator: which.
        relative_rms: RMS of the difference over that of the dense value; the largest of all
            frames.
        grown: by how much that exceeds the largest of the node's inputs.
        frame: where it is largest.
    """

    node: str
    operator: str
    relative_rms: float
    grown: float
    frame: int


@dataclass(frozen=True)
class Bisection:
    """What `bisect` found.

    Args:
        frames, nodes: how many were checked.
        breach: the first node that breaks the law; None where all keep it.
        errors: every node, in order of execution.
    """

    frames: int
    nodes: int
    breach: Breach | None
    errors: list[NodeError]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain: dict[str, Any] = jsonable({
            "frames": self.frames, "nodes": self.nodes,
            "breach": self.breach and self.breach.to_dict(),
            "errors": [dataclasses.asdict(error) for error in self.errors]})
        return plain

    def __str__(self) -> str:
        """Say which node it is, or where errors come in."""
        if self.breach is not None:
            return f"bisect: the first node that breaks the law\n{self.breach}"
        worst = sorted(self.errors, key=lambda e: -e.grown)[:MOST_LISTED]
        rows = [("node", "operator", "error", "of which new", "frame")]
        rows += [(e.node, e.operator, f"{e.relative_rms:.2e}", f"{e.grown:.2e}", str(e.frame))
                 for e in worst if e.grown > 0]
        head = (f"bisect: all {self.nodes} nodes keep the law in all "
                f"{count(self.frames, 'frame')}")
        if not rows[1:]:
            return f"{head}, and no node differs from dense"
        return f"{head}; where errors against dense come in:\n{text_table(rows)}"


def bisect(delta: DeltaModule, frames: Iterable[Tensor | Sequence[Tensor]]) -> Bisection:
    """Run a new stream and check every node of every frame, up to the first that breaks the law.

    Args:
        delta: the converted model.
        frames: each what the model takes.

    Returns:
        The node, or each node's error against a dense evaluation of the same graph.
    """
    stream, checker, watcher = delta.new_stream(), LawChecker(delta), _Watcher()

    def observe(node: DeltaNode, edge: Edge) -> None:
        if not checker.breaches:  # what follows the first may be its consequence
            checker(node, edge)
        watcher(node, edge)

    stream.observe(observe)
    number = 0
    for inputs in inputs_of(frames):
        checker.begin(*inputs)
        watcher.begin(number, delta.named_inputs(inputs))
        stream(*inputs)
        number += 1
        if checker.breaches:
            break
    first = checker.breaches[0] if checker.breaches else None
    return Bisection(number, checker.nodes_seen, first, list(watcher.errors.values()))


class _Watcher:
    """An observer that evaluates the graph densely beside the stream, node by node."""

    def __init__(self) -> None:
        self.errors: dict[str, NodeError] = {}

    def begin(self, frame: int, inputs: dict[str, Tensor]) -> None:
        """Take the inputs of the next frame."""
        self.frame, self.inputs = frame, inputs
        self.dense: dict[str, Any] = {}
        self.now: dict[str, float] = {}

    def __call__(self, node: DeltaNode, edge: Edge) -> None:
        about = node.about
        sources = [spec.name for spec in about.inputs]
        if about.rule == "sparsify":
            dense: Any = node.evaluate(self.inputs[about.name])
        else:
            dense = node.evaluate(*(self.dense[name] for name in sources))
        self.dense[about.name] = dense
        error = _relative_rms(edge.value, dense)
        grown = error - max((self.now[name] for name in sources), default=0.0)
        self.now[about.name] = error
        before = self.errors.get(about.name)
        if before is None or error > before.relative_rms:
            self.errors[about.name] = NodeError(about.name, operator_name(node), error,
                                                max(0.0, grown), self.frame)


def _relative_rms(value: Any, dense: Any) -> float:
    if not (isinstance(value, Tensor) and isinstance(dense, Tensor) and dense.numel()
            and value.is_floating_point()):
        return 0.0
    one, other = value.double(), dense.double()
    finite = torch.isfinite(one) & torch.isfinite(other)
    error = torch.where(finite, one - other, 0.0).square().mean()
    return ratio(math.sqrt(float(error)), math.sqrt(float(torch.where(finite, other, 0.0)
                                                          .square().mean())))
