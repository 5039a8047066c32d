"""What a synthetic clip shows: things that move over a background, drawn frame by frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.clips.clip import Size, hxw, size_of
from deltaconvert.errors import InputError

# Above this share, objects that stay clear of each other no longer fit; the background
# itself moves instead.
MOST_OBJECTS_SHARE = 0.6
SHARE_PER_OBJECT = 0.025
LEAST_OBJECT_PX = 12
_BACKGROUND_STEP = 3  # px a frame


@dataclass(frozen=True)
class _Thing:
    """One moving object; its cell is the part of the picture that it keeps to."""

    texture: Tensor  # [3, h, w]
    shape: Tensor  # bool [h, w]
    corner: tuple[int, int]  # of the cell
    room: tuple[int, int]  # px that the object can travel in its cell
    step: tuple[int, int]  # px a frame
    phase: tuple[int, int]

    def draw(self, frame: Tensor, time: int) -> None:
        top, left = (
            corner + _bounce(phase + time * step, room)
            for corner, room, step, phase in zip(
                self.corner, self.room, self.step, self.phase, strict=True
            )
        )
        height, width = self.shape.shape
        window = frame[:, top : top + height, left : left + width]
        window.copy_(torch.where(self.shape, self.texture, window))


def _bounce(distance: int, room: int) -> int:
    """Position after travelling `distance` to and fro between 0 and `room`."""
    there = distance % (2 * room)
    return min(there, 2 * room - there)


@dataclass(frozen=True)
class Scene:
    """What a static camera sees, at any moment."""

    background: Tensor  # [3, H, W]
    things: tuple[_Thing, ...]
    moving_rows: int  # rows of the background that move
    noise: float
    seed: int

    @staticmethod
    def make(
        size: Size, active_share: float, objects: int | None, noise: float, seed: int
    ) -> Scene:
        rng = _rng(seed)
        background = _background(size, rng)
        if active_share > MOST_OBJECTS_SHARE:
            return Scene(background, (), round(active_share * size[0]), noise, seed)
        number = objects or max(1, round(active_share / SHARE_PER_OBJECT))
        cells = _cells(size, number) if active_share else []
        pixels = active_share * size[0] * size[1] / number
        things = tuple(_thing(cell, pixels, rng) for cell in cells)
        return Scene(background, things, 0, noise, seed)

    def frame(self, time: int) -> Tensor:
        frame = self.background.clone()
        if self.moving_rows:
            moved = self.background[:, : self.moving_rows].roll(_BACKGROUND_STEP * time, 2)
            frame[:, : self.moving_rows] = moved
        for thing in self.things:
            thing.draw(frame, time)
        if self.noise:
            # A generator a frame: any frame can be made without those before it.
            grain = torch.randn(frame.shape, generator=_rng(self.seed, time + 1))
            frame.add_(grain, alpha=self.noise).clamp_(0, 1)
        return frame


def _rng(seed: int, part: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + part) % 2**63)


def _integer(below: int, rng: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=rng))


def _grain(size: Size, cell_px: int, rng: torch.Generator) -> Tensor:
    """Smooth random structure, `[3, H, W]`, 0..1, with features of about `cell_px`."""
    grid = torch.rand(3, *(math.ceil(n / cell_px) + 1 for n in size), generator=rng)
    return F.interpolate(grid[None], size=size, mode="bilinear", align_corners=True)[0]


def _background(size: Size, rng: torch.Generator) -> Tensor:
    # The weights add up to 1, so nothing is clipped, and clipped pixels would be equal.
    scales = ((max(size) // 3, 0.4), (max(size) // 12, 0.25), (8, 0.2))
    structure = sum((w * _grain(size, max(px, 1), rng) for px, w in scales), torch.zeros(()))
    return structure + 0.15 * torch.rand(3, *size, generator=rng)


def _texture(size: Size, rng: torch.Generator) -> Tensor:
    colour = torch.rand(3, 1, 1, generator=rng)
    return 0.35 * colour + 0.25 * _grain(size, 6, rng) + 0.4 * torch.rand(3, *size, generator=rng)


def _cells(size: Size, number: int) -> list[tuple[int, int, int, int]]:
    """Divide the picture into `number` parts of equal area: top, left, height, width of each.

    The parts are as square as they come: rows of cells, a row's height in proportion to
    the cells in it.
    """
    rows = min(number, max(1, round(math.sqrt(number * size[0] / size[1]))))
    cells = []
    for row in range(rows):
        first, last = row * number // rows, (row + 1) * number // rows
        top, bottom = size[0] * first // number, size[0] * last // number
        lefts = [size[1] * i // (last - first) for i in range(last - first + 1)]
        cells += [(top, left, bottom - top, right - left) for left, right in pairwise(lefts)]
    return cells


def _thing(cell: tuple[int, int, int, int], pixels: float, rng: torch.Generator) -> _Thing:
    """An object that, with the trace of its last step, covers `pixels` pixels."""
    top, left, *extent = cell
    # Odd steps: an even one can be undone exactly where the object turns, and it would
    # stand still for a frame.
    step = tuple(2 * _integer(n // 200 + 1, rng) + 1 for n in extent)
    shape = _shape_covering(pixels, (extent[0], extent[1]), (step[0], step[1]))
    room = tuple(n - m for n, m in zip(extent, shape.shape, strict=True))
    phase = (_integer(2 * room[0], rng), _integer(2 * room[1], rng))
    texture = _texture(size_of(shape), rng)
    return _Thing(texture, shape, (top, left), (room[0], room[1]), (step[0], step[1]), phase)


def _shape_covering(pixels: float, cell: Size, step: tuple[int, int]) -> Tensor:
    low, high = 0.0, min((n - 1) / n for n in cell)
    if pixels < LEAST_OBJECT_PX or _trace_px(_rounded_box(high, cell), step) < pixels:
        raise InputError(
            f"an object of {pixels:.0f} pixels does not fit {hxw(cell)} pixels: choose "
            "another number of objects, another active_share or a larger size"
        )
    for _ in range(16):
        middle = (low + high) / 2
        if _trace_px(_rounded_box(middle, cell), step) < pixels:
            low = middle
        else:
            high = middle
    return _rounded_box(high, cell)


def _rounded_box(scale: float, cell: Size) -> Tensor:
    """Mask of a box with round corners (|x|^4 + |y|^4 <= 1), `scale` times the cell's size."""
    y, x = (
        (torch.arange(n) - (n - 1) / 2).mul(2 / (scale * extent)).pow(4)
        for n, extent in ((math.ceil(scale * extent), extent) for extent in cell)
    )
    return y[:, None] + x <= 1


def _trace_px(shape: Tensor, step: tuple[int, int]) -> int:
    """Pixels that the shape covers before or after a step."""
    dy, dx = step
    both = shape[dy:, dx:] & shape[: max(0, shape.shape[0] - dy), : max(0, shape.shape[1] - dx)]
    return 2 * int(shape.sum()) - int(both.sum())
