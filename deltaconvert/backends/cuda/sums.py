"""All pixels of each lane of a map added up in parts, by ``sums.cu``."""

from __future__ import annotations

from dataclasses import dataclass

from deltaconvert.backends.base import Scratch
from deltaconvert.backends.cuda.context import Context, channels_of, pixel_step, widest
from deltaconvert.cuda.arguments import MOST_SOURCES, Changes, SumArgs
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from deltaconvert.nodes import EdgeSpec
from deltaconvert.state import Edge

THREADS, WARP = 256, 32
BLOCKS_A_PROCESSOR = 4
# Numbers that whoever adds up a lane's parts reads, for each of two that a part may have; and
# parts, few enough of few channels for the memory that is planned.
MOST_NUMBERS, MOST_PARTS, FEWEST_PARTS = 16384, 512, 8


@dataclass(frozen=True)
class Parts:
    """What was added up.

    Args:
        address: of ``[lanes, count, channels]`` sums of float32, or of moments, see `NormArgs`.
        count: parts of a lane.
        together: channels that share moments.
    """

    address: int
    count: int
    together: int


def changes_of(inputs: tuple[Edge, ...], context: Context) -> Changes:
    """Return where a node that runs whole sees whether its inputs changed."""
    made = Changes(sources=len(inputs))
    assert len(inputs) <= MOST_SOURCES
    for i, edge in enumerate(inputs):
        made.changed[i] = context.changed_counter(edge)
    return made


def plan(spec: EdgeSpec, moments: bool) -> Scratch:
    """Return the memory for the parts of a map."""
    assert spec.shape is not None
    lanes, channels = spec.shape[:2]
    numbers = min(max(MOST_NUMBERS, FEWEST_PARTS * channels), MOST_PARTS * channels)
    return Scratch("cuda.parts", 4 * lanes * numbers * (2 if moments else 1))


def bind(source: Edge, parts: int, context: Context, group: int = 0) -> tuple[Launch, Parts]:
    """Return the launch, and what it leaves.

    Args:
        source: the map.
        parts: address of the memory.
        context: of the stream.
        group: channels of which moments are asked for together; none, and sums are.
    """
    lanes, plane, channels = source.spec.lanes, source.spec.pixels, channels_of(source)
    wide = widest(source.value.element_size(), channels, pixel_step(source),
                  addresses=(source.value.data_ptr(),))
    together = wide if group and group % wide == 0 else 1
    packs = channels // wide
    width = min(packs, WARP)
    slices = -(-packs // width)
    count = max(FEWEST_PARTS, min(
        MOST_PARTS, MOST_NUMBERS // channels,
        context.launcher.processors * BLOCKS_A_PROCESSOR // (slices * lanes)))
    count = min(count, -(-plane * width // THREADS))  # with something to do for every thread
    args = SumArgs(
        inputs=changes_of((source,), context), input=source.value.data_ptr(), parts=parts,
        fresh=context.fresh_flags(), step=pixel_step(source), channels=channels, plane=plane,
        width=width, parts_of_lane=count)
    which = kernel("sums.cu", "sum_pixels", source.value.dtype, VEC=wide, MOMENTS=int(group > 0),
                   TOGETHER=together)
    launch = Launch(which, args, (count * slices, lanes), THREADS,
                    4 * wide * THREADS * (2 if group else 1))
    return launch, Parts(parts, count, together)
