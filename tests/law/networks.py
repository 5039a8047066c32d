"""Random networks and clips for the property tests."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.law.steps import MOST_CHANNELS, STEPS, Draw, Shape, number, one_of

LARGEST_SIDE = 18


class Generated(NamedTuple):
    """A network, what its steps are called, and the shape of its input."""

    model: nn.Module
    names: list[str]
    shape: Shape

    def __repr__(self) -> str:
        return f"{' > '.join(self.names)} on {self.shape}: {self.model}"


class Network(nn.Module):
    """Steps that read earlier values by their position; 0 is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.reads: list[tuple[int, ...]] = []
        self.outputs: list[int] = []

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for module, reads in zip(self.steps, self.reads, strict=True):
            values.append(module(*(values[i] for i in reads)))
        return [values[i] for i in self.outputs]


@st.composite
def networks(draw: Draw, using: Sequence[str] = (), most_steps: int = 6) -> Generated:
    """Draw a network; every name in ``using`` is tried at least once."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    shape = (number(draw, 1, 3), number(draw, 1, 4), number(draw, 4, 11), number(draw, 4, 11))
    network, shapes, names = Network().eval(), [shape], []
    chosen = [*using, *draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=0 if using else 2,
                                     max_size=most_steps))]
    for name in draw(st.permutations(chosen)) if using else chosen:
        function = STEPS[name]
        takes = len(inspect.signature(function).parameters) - 1
        # One map is mostly the last; the second is any that there is.
        reads = tuple(number(draw, max(0, len(shapes) - 1 - 2 * (i + 1) * i - i), len(shapes) - 1)
                      for i in range(takes))
        if any(len(shapes[i]) != 4 for i in reads):
            reads = tuple(max(i for i, s in enumerate(shapes) if len(s) == 4) for _ in reads)
        module = function(draw, *(shapes[i] for i in reads))
        made = None if module is None else shape_of(module.eval(), [shapes[i] for i in reads])
        if made is None:
            continue
        network.steps.append(module)
        network.reads.append(reads)
        shapes.append(made)
        names.append(name)
    middle = draw(st.sets(st.integers(0, len(shapes) - 1), max_size=2))
    network.outputs = [*sorted(middle), len(shapes) - 1]
    return Generated(network, names, shape)


@torch.no_grad()
def shape_of(module: nn.Module, shapes: Sequence[Shape]) -> Shape | None:
    """Return the shape that a module makes of these; nothing where it refuses, or of extremes.

    Nor where a window of a maximum holds nothing but padding, which is minus infinity.
    """
    try:
        result = module(*(torch.zeros(s) for s in shapes))
    except (RuntimeError, ValueError):
        return None
    made = tuple(result.shape)
    if not result.isfinite().all():
        return None
    if 0 in made or (len(made) == 4 and (max(made[2:]) > LARGEST_SIDE or made[1] > MOST_CHANNELS)):
        return None
    return made


class Frame(NamedTuple):
    """A frame, and the lanes that were reset just before it."""

    pixels: Tensor
    reset: list[int]

    def __repr__(self) -> str:
        return f"<frame, resets {self.reset}>"


@st.composite
def clips(draw: Draw, shape: Shape, frames: int = 4) -> list[Frame]:
    """Draw frames of which each lane changes nowhere, in a place, by a little, or everywhere."""
    pixels = torch.randn(shape)
    made = [Frame(pixels, [])]
    for _ in range(frames - 1):
        pixels = pixels.clone()
        for lane in range(shape[0]):
            change(draw, pixels[lane])
        reset = draw(st.sets(st.integers(0, shape[0] - 1), max_size=1)) if number(
            draw, 0, 4) == 0 else []
        made.append(Frame(pixels, sorted(reset)))
    return made


def change(draw: Draw, lane: Tensor) -> None:
    kind = one_of(draw, "place", "place", "pixel", "nothing", "noise", "everything")
    top, left = number(draw, 0, lane.shape[1] - 1), number(draw, 0, lane.shape[2] - 1)
    side = {"place": 3, "pixel": 1}.get(kind, 0)
    lane[:, top:top + side, left:left + side] += torch.randn(1)
    if kind in ("noise", "everything"):
        lane += torch.randn(lane.shape) * (0.01 if kind == "noise" else 1)
