"""Nodes whose values no kernel compares: in a frame in which they run, all of them has changed.

What is no tensor (the pair that an attention returns), whole numbers and booleans, and what has
more inputs than a kernel takes. PyTorch evaluates them, and nothing asks the host, so that a frame
with them is one graph like any other. What reads them compares again.
"""

from __future__ import annotations

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda.context import Context
from deltaconvert.backends.cuda.kinds import Bound, Program, Unfit
from deltaconvert.backends.cuda.whole import checked
from deltaconvert.cuda.arguments import MOST_SOURCES
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import NUMBERS
from deltaconvert.nodes import DeltaNode
from deltaconvert.operators.cat import cat


def prepare(node: DeltaNode, program: Program) -> None:
    """Return nothing: the function has its constants.

    Raises:
        Unfit: the kernels take its inputs and its output.
    """
    about = node.about
    too_many = len(about.inputs) > MOST_SOURCES and about.function is not cat
    if not too_many and about.output.dtype in NUMBERS and about.inputs and all(
            edge.shape is not None for edge in about.inputs):
        raise Unfit


def plan(node: DeltaNode, data: None, program: Program) -> tuple[list[Scratch], int]:
    """Return no memory, and one counter."""
    return [], 1


def bind(node: DeltaNode, data: None, buffers: Buffers, context: Context,
         program: Program) -> Bound:
    """Return the step, which counts all pixels as evaluated and as changed."""
    counter = context.count()
    return Bound(UncomparedStep(node, buffers, context, counter), [counter], scheduled=False)


class UncomparedStep:
    """Evaluates a node's function on the values and writes all of the result."""

    launches: tuple[Launch, ...] = ()  # all that it does is PyTorch's

    def __init__(self, node: DeltaNode, buffers: Buffers, context: Context, counter: int) -> None:
        """Find the node's counters: of what changed, and right behind of the candidates."""
        self.node, self.buffers = node, buffers
        changed = context.tallies[node.about.name].changed
        assert counter == changed + 1
        self.counters = context.counters[changed:counter + 1]

    def __call__(self) -> None:
        """Run once.

        Raises:
            UnsupportedError: the result's shape depends on the data.
        """
        edge = self.buffers.output
        new = self.node.evaluate(*(source.value for source in self.buffers.inputs))
        if edge.spec.shape is None:
            edge.value = new
        else:
            edge.value.copy_(checked(new, self.node))
        edge.mask.fill_(1)
        self.counters.fill_(edge.mask.numel())
