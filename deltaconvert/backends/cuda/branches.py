"""Which steps of a frame may run side by side, and capturing them so.

A frame with few candidates is a chain of kernels that leave most of the device idle; where a
network has branches, those of one do not wait for another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch

from deltaconvert.backends.base import Step
from deltaconvert.cuda.launcher import Launcher
from deltaconvert.nodes import DeltaNode

MOST_BRANCHES = 8
LISTS = "cuda.list.", "cuda.changes."  # memory that the first to want it writes, and others read


class Turn(NamedTuple):
    """When and where a step runs.

    Args:
        branch: its stream; 0 is that of the frame.
        waits: for which steps of other branches.
    """

    branch: int
    waits: tuple[int, ...]


def needs_of(nodes: Sequence[DeltaNode], scratch: Mapping[str, Sequence[str]]) -> list[set[int]]:
    """Return which earlier ones each node must not overtake.

    Args:
        nodes: in an order in which they may run.
        scratch: names of the working memory that each uses.
    """
    made: dict[str, int] = {}  # edges, by who writes them
    used: dict[str, int] = {}  # working memory, by who had it last; lists, by who makes them
    needs = []
    for i, node in enumerate(nodes):
        needs.append({made[edge.name] for edge in node.about.inputs if edge.name in made})
        for name in scratch.get(node.about.name, ()):
            if name in used:
                needs[-1].add(used[name])
            if name not in used or not name.startswith(LISTS):
                used[name] = i
        made[node.about.name] = i
    return needs


def longest_chain(needs: Sequence[set[int]]) -> int:
    """Return how many steps must wait for each other, one behind the other, at least."""
    behind: list[int] = []
    for wanted in needs:
        behind.append(1 + max((behind[j] for j in wanted), default=0))
    return max(behind, default=0)


def turns_of(needs: Sequence[set[int]]) -> list[Turn]:
    """Give each step a branch: that of a step it waits for, where no other has gone on, if any."""
    turns: list[Turn] = []
    behind: list[int] = []  # bits of the steps that are done when this one is, itself among them
    last: list[int] = []  # step of each branch
    for i, wanted in enumerate(needs):
        before = 0
        for j in wanted:
            before |= behind[j]
        going_on = [b for b, j in enumerate(last) if j in wanted]
        done = [b for b, j in enumerate(last) if before >> j & 1]
        if going_on:
            branch = max(going_on, key=lambda b: last[b])
        elif done:
            branch = done[0]
        elif len(last) < MOST_BRANCHES:
            branch = len(last)
            last.append(i)
        else:
            branch = min(range(MOST_BRANCHES), key=lambda b: last[b])
        known = behind[last[branch]] if last[branch] != i else 0
        waits = [j for j in sorted(wanted) if not known >> j & 1]
        turns.append(Turn(branch, tuple(waits)))
        behind.append(before | known | 1 << i)
        last[branch] = i
    return turns


def run_branches(steps: Sequence[Step], turns: Sequence[Turn], launcher: Launcher,
                 streams: Sequence[torch.cuda.Stream]) -> None:
    """Run steps on streams that fork from the first, the current one, and join it again."""
    main = streams[0]
    waited = {j for turn in turns for j in turn.waits}
    events = {j: torch.cuda.Event() for j in waited}
    start = torch.cuda.Event()
    start.record(main)
    begun = {0}
    for i, (step, turn) in enumerate(zip(steps, turns, strict=True)):
        stream = streams[turn.branch]
        if turn.branch not in begun:
            begun.add(turn.branch)
            stream.wait_event(start)
            launcher.join()
        for j in turn.waits:
            stream.wait_event(events[j])
            launcher.join()
        with torch.cuda.stream(stream) if turn.branch else nullcontext():
            step()
        if i in waited:
            events[i].record(stream)
    for branch in begun - {0}:
        end = torch.cuda.Event()
        end.record(streams[branch])
        main.wait_event(end)
