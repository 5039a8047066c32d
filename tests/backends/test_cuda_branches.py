"""Steps that run side by side wait for all that they read, whatever the network's shape."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from deltaconvert.backends.cuda.branches import (
    MOST_BRANCHES,
    Turn,
    longest_chain,
    needs_of,
    turns_of,
)


def done_before(turns: list[Turn]) -> list[set[int]]:
    """Return which steps have surely run when each begins: on its own branch, or waited for."""
    before: list[set[int]] = []
    last: dict[int, int] = {}
    for i, turn in enumerate(turns):
        known = {last[turn.branch]} if turn.branch in last else set()
        known |= set(turn.waits)
        before.append(known.union(*(before[j] for j in known)))
        last[turn.branch] = i
    return before


@pytest.mark.parametrize("seed", range(20))
def test_every_step_waits_for_all_that_it_needs(seed):
    chance = random.Random(seed)
    needs = [set(chance.sample(range(i), min(i, chance.choice((0, 1, 1, 1, 2, 4)))))
             for i in range(80)]
    turns = turns_of(needs)
    assert all(wanted <= done for wanted, done in zip(needs, done_before(turns), strict=True))
    assert max(turn.branch for turn in turns) < MOST_BRANCHES


def test_a_chain_is_one_branch_and_waits_for_nothing():
    assert turns_of([set(), {0}, {1}, {0, 2}]) == [Turn(0, ())] * 4


@pytest.mark.parametrize("needs, steps", [
    ([], 0), ([set()] * 3, 1), ([set(), {0}, {1}, {0, 2}], 4),
    ([set(), {0}, {0}, {2}, {1, 3}], 4)])
def test_branches_count_as_long_as_the_longest(needs, steps):
    assert longest_chain(needs) == steps


def test_branches_of_a_network_run_side_by_side():
    turns = turns_of([set(), {0}, {0}, {1}, {2}, {3, 4}])
    assert turns[3].branch != turns[4].branch
    assert turns[5].branch in (turns[3].branch, turns[4].branch)
    assert len(turns[5].waits) == 1


def node(name, *inputs):
    return SimpleNamespace(about=SimpleNamespace(
        name=name, inputs=[SimpleNamespace(name=edge) for edge in inputs]))


def test_working_memory_has_one_user_at_a_time_and_a_list_one_maker():
    nodes = [node("a", "x"), node("b", "x"), node("c", "x"), node("d", "a")]
    sums = {"a": ["cuda.parts"], "b": ["cuda.parts"], "d": ["cuda.parts"]}
    assert needs_of(nodes, sums) == [set(), {0}, set(), {0, 1}]
    lists = {"a": ["cuda.list.1"], "b": ["cuda.list.1"], "c": ["cuda.list.1"]}
    assert needs_of(nodes, lists) == [set(), {0}, {0}, {0}]
