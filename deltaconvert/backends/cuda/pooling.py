"""Pooling to one pixel: all pixels summed in parts, by `pooling.cu`, and compared by `pixels.cu`.

As `whole`, it runs when anything has changed; PyTorch's own means of channels-last maps take
several times as long.
"""

from __future__ import annotations

import math

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda import pixels
from deltaconvert.backends.cuda.candidates import Tables, candidates, list_scratch
from deltaconvert.backends.cuda.context import Context, channels_of, pixel_step, widest
from deltaconvert.cuda.arguments import PoolArgs
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from deltaconvert.nodes import DeltaNode, Slot

THREADS = 256
MOST_PARTS = 64  # of a lane: one thread adds up those of a channel


def suits(node: DeltaNode) -> bool:
    """Whether a node is the mean of each channel of a map, over all of its pixels."""
    about = node.about
    if about.operator is None or len(about.inputs) != 1 or about.args[:1] != (Slot(0),):
        return False
    source, output = about.inputs[0], about.output
    if not source.is_map or source.shape is None or output.shape is None:
        return False
    if source.dtype != output.dtype or about.params.get("activation"):
        return False
    if about.operator.name == "mean":
        over = {d % len(source.shape) for d in about.params["dim"]} == {2, 3}
    else:
        over = about.operator.name == "adaptive_avg_pool2d"
    return over and math.prod(output.shape) == math.prod(source.shape[:2])


def plan(node: DeltaNode, tables: Tables) -> list[Scratch]:
    """Return the memory for a list, and for the sums."""
    shape = node.about.inputs[0].shape
    assert shape is not None
    return [list_scratch(node, tables),
            Scratch("cuda.parts", 4 * MOST_PARTS * math.prod(shape[:2]))]


def bind(node: DeltaNode, buffers: Buffers, context: Context, tables: Tables) -> list[Launch]:
    """Return the launches."""
    source = buffers.inputs[0]
    made, before = candidates(node, buffers, context, tables)
    channels, plane = channels_of(source), source.spec.pixels
    wide = widest(source.value.element_size(), channels, pixel_step(source),
                  addresses=(source.value.data_ptr(),))
    width = min(THREADS, 1 << (-(-channels // wide) - 1).bit_length())
    parts = min(MOST_PARTS, -(-plane * width // THREADS))
    args = PoolArgs(
        input=source.value.data_ptr(), parts=buffers.scratch["cuda.parts"].data_ptr(),
        changed=context.changed_counter(source), fresh=context.fresh_flags(),
        step=pixel_step(source), channels=channels, plane=plane, lanes=source.spec.lanes,
        width=width)
    sums = Launch(kernel("pooling.cu", "sum_pixels", source.value.dtype, VEC=wide), args,
                  (parts, source.spec.lanes), THREADS, 4 * wide * THREADS)
    return [*before, sums, pixels.finish_sums(node, buffers, context, made, args.parts, parts,
                                              plane)]
