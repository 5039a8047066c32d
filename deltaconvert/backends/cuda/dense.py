"""The dense way of a frame: all pixels of all nodes are evaluated and written, none compared.

Which of the two ways a frame takes is decided on the device by what there was to do in the last
frame; `Runner` holds a graph of each. In the dense one everything counts as changed, as in a first
frame. So any kernel may take part as it is; those that lists of candidates would keep from it have
a form without (``ALL`` in common.cuh), and convolutions are the library's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from deltaconvert.backends.base import Buffers, Step
from deltaconvert.backends.cuda.context import Context, channels_of
from deltaconvert.cuda.launcher import Launch
from deltaconvert.nodes import DeltaNode

# Of kernels: what nobody needs where everything changes, and what has a form for that.
NEEDLESS = "find_candidates", "unite_masks"
OF_LISTS = "compute_pixels", "depthwise", "convolve_sm90"
# Where nothing is measured (`break_even`), the dense way is taken from this share of the sparse
# way's work on. Where nodes are small it is less, for a node of the sparse way takes a while
# however little there is to do: see docs/tried.md. The work is counted in bytes that are
# moved, and in operations that take as long.
BREAK_EVEN, LEAST = 0.42, 0.2
OPERATIONS_A_BYTE = 100
BYTES_A_NODE = 2.5e6


def everywhere(launches: Iterable[Launch]) -> list[Launch]:
    """Return what does the same for all pixels, without lists or comparing where it would."""
    return [replace(launch, cluster=1, kernel=replace(
                launch.kernel, defines=(*launch.kernel.defines, ("ALL", 1))))  # nothing is shared
            if launch.kernel.entry in OF_LISTS else launch
            for launch in launches if launch.kernel.entry not in NEEDLESS]


def dense_of(step: Step) -> Step:
    """Return the dense way of a step of this backend."""
    own: Step | None = getattr(step, "dense", None)
    if own is not None:
        return own
    made = copy.copy(step)
    for name in {"launches", "before", "behind"} & vars(step).keys():
        setattr(made, name, everywhere(getattr(step, name)))
    return made


def foresee(node: DeltaNode, step: Any, context: Context) -> bool:
    """Settle what the dense way counts without looking, and what candidates cost the sparse way.

    Returns:
        Whether the node has less to do by the dense way, and so has a say in which is taken.
    """
    tally, edge = context.tallies[node.about.name], step.buffers.output
    pixels, listed = edge.mask.numel(), [*NEEDLESS, *OF_LISTS]
    entries = [launch.kernel.entry for launch in step.launches]
    if not entries:  # it counts by itself
        return False
    own = getattr(step, "dense", None) is not None
    if own or entries[-1] in listed:  # no kernel that counts marks what changed
        context.wholes[tally.changed] = pixels
    if not own and any(entry not in listed for entry in entries):
        return False
    changed = {other.changed for other in context.tallies.values()}
    if tally.candidates[0] not in changed:  # a list of its own, or shared
        context.wholes[tally.candidates[0]] = pixels
    if node.about.aliases or not tally.candidates_are_scheduled:
        return False
    context.weigh(tally.candidates, cost_of_pixel(node, step.buffers), pixels)
    return True


def estimated(cost_of_all: float, nodes: float) -> float:
    """Return the share of work from which on the dense way is likely to be faster.

    Args:
        cost_of_all: see `cost_of_pixel`; of all pixels of all nodes that have less to do by it.
        nodes: how many they are, of branches that run side by side those of one.
    """
    return max(BREAK_EVEN - BYTES_A_NODE * nodes / cost_of_all, LEAST)


def cost_of_pixel(node: DeltaNode, buffers: Buffers) -> float:
    """Return what a candidate costs the sparse way, in bytes moved, about."""
    about = node.about
    pixels = about.output.pixels
    read = sum(edge.value.numel() / about.output.lanes / pixels for edge in buffers.inputs)
    numbers = read + 2 * channels_of(buffers.output)  # the old value, and the new one
    return numbers * buffers.output.value.element_size() + (
        2 * node.dense_multiply_adds / pixels / OPERATIONS_A_BYTE)
