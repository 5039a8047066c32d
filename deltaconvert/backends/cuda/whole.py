"""Nodes that PyTorch evaluates whole on the device, with the rule applied behind it.

Global and unknown nodes, and local ones without a kernel. The function runs in every frame,
because only the device knows whether an input changed; the rule then looks at the candidates
alone, so that what need not be run changes nothing.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda import pixels, vectors
from deltaconvert.backends.cuda.candidates import Tables, candidates, list_scratch
from deltaconvert.backends.cuda.context import PACK_BYTES, Context
from deltaconvert.backends.cuda.kinds import Bound, Program
from deltaconvert.cuda.arguments import VectorArgs
from deltaconvert.cuda.launcher import Launch, launch_all
from deltaconvert.errors import UnsupportedError
from deltaconvert.nodes import DeltaNode


def prepare(node: DeltaNode, program: Program) -> None:
    """Return nothing: the function has its constants.

    Those that it takes elements by are put on the device: PyTorch would copy them there in each
    frame, which a CUDA graph does not allow.
    """
    about = node.about
    if about.function in (operator.getitem, Tensor.__getitem__):
        about.args = pytree.tree_map_only(
            Tensor, lambda index: index.to(program.device) if index.dim() else index, about.args)


def plan(node: DeltaNode, data: None, program: Program) -> tuple[list[Scratch], int]:
    """Return the memory for the new value, and for what the comparison needs."""
    spec = node.about.output
    assert spec.shape is not None
    assert spec.dtype is not None
    size = spec.dtype.itemsize * torch.Size(spec.shape).numel()
    given = Scratch("cuda.given", size)
    if vectors.suits(node):
        return [given, *vectors.plan(node)], 1
    return [given, list_scratch(node, program.tables)], 1


def bind(node: DeltaNode, data: None, buffers: Buffers, context: Context,
         program: Program) -> Bound:
    """Return the step, which counts lanes of one pixel, or else pixels."""
    step = WholeStep(node, buffers, context, program.tables)
    return Bound(step, step.candidates, scheduled=False)


class WholeStep:
    """Evaluates a node's function on the values and compares."""

    def __init__(self, node: DeltaNode, buffers: Buffers, context: Context,
                 tables: Tables) -> None:
        """Settle the launches."""
        self.node, self.buffers, self.context = node, buffers, context
        self.given = _like(buffers.output.value, buffers.scratch["cuda.given"])
        self.before: list[Launch] = []
        given = self.given.data_ptr()
        if vectors.suits(node):
            self.candidates = [context.count()]
            self.behind = vectors.bind_given(node, given, buffers, context, self.candidates[0])
        else:
            made, self.before = candidates(node, buffers, context, tables)
            self.candidates = made.counters
            self.behind = [pixels.compare_given(node, given, buffers, context, made)]

    @property
    def launches(self) -> list[Launch]:
        """All that it launches itself."""
        return [*self.before, *self.behind]

    def __call__(self) -> None:
        """Run once.

        Raises:
            UnsupportedError: the result's shape depends on the data.
        """
        launch_all(self.context.launcher, self.before)
        new = checked(self.node.evaluate(*(edge.value for edge in self.buffers.inputs)), self.node)
        if not _lies_like(new, self.given):
            new = self.given.copy_(new)
        for launch in self.behind:
            if isinstance(launch.args, VectorArgs):
                launch.args.given = new.data_ptr()
            else:
                launch.args.source[0].data = new.data_ptr()
        launch_all(self.context.launcher, self.behind)


def checked(new: Tensor, node: DeltaNode) -> Tensor:
    """Return a result.

    Raises:
        UnsupportedError: its shape is not that of the first frame's.
    """
    if tuple(new.shape) != node.about.output.shape:
        raise UnsupportedError(
            f"{node.about.name}: the result's shape depends on the data: "
            f"{node.about.output.shape} in the first frame, {tuple(new.shape)} now "
            f"({node.about.source}). Convert the part before it.")
    return new


def _lies_like(new: Tensor, given: Tensor) -> bool:
    """Whether a result can be read in the place of a copy: laid out and aligned like one."""
    return (new.dtype == given.dtype and new.data_ptr() % PACK_BYTES == 0
            and all(size == 1 or ours == theirs for size, ours, theirs in zip(
                new.shape, new.stride(), given.stride(), strict=True)))


def _like(value: Tensor, scratch: Tensor) -> Tensor:
    """View scratch memory as a value without gaps, channels-last where it is a map."""
    flat = scratch[:value.numel() * value.element_size()].view(value.dtype)
    if value.dim() != 4:
        return flat.view(value.shape)
    n, c, h, w = value.shape
    return flat.view(n, h, w, c).permute(0, 3, 1, 2)
