"""``tune``: the thresholds that save the most work for a fidelity that the user names.

A threshold costs accuracy and buys work, and what a node's costs and buys differs from node to
node by orders of magnitude: what an early layer holds back is amplified by all that follow and
saves next to nothing, for the layers behind it see the change anyway. So:

1. one threshold for all nodes, in standard deviations, the largest that the judge allows, by
   bisection; behind several doors;
2. groups of neighbouring nodes, each group's thresholds doubled alone: how much error that adds,
   and how much work it saves;
3. thresholds moved so that each group's part of the error is its part of the savings (errors of
   different nodes add up as squares, so that is the least work for an error), and all of them
   scaled by bisection to what the judge allows; then 2 again.

Nothing of it can lose: what is returned is the setting that needed least of all that passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from deltaconvert.checking.dense import StoredModel, evaluating
from deltaconvert.checking.fidelity import Frame, Judge, Truth
from deltaconvert.checking.law import inputs_of
from deltaconvert.checking.report import jsonable
from deltaconvert.config import Config, InputTest, NodeConfig
from deltaconvert.errors import InputError
from deltaconvert.islands import IslandsModule
from deltaconvert.module import DeltaModule
from deltaconvert.nodes import DeltaNode
from deltaconvert.words import a_kind, count, text_table
from deltaconvert.work import Work, ratio, scale_order, scales

# Standard deviations. The lowest is far under what any network notices; each step of the
# bisection halves the exponent, so seven leave 5 % between what passed and what did not.
LEAST, MOST, STEPS = -9.0, 0.0, 7
SCALES, SCALE_STEPS = 2.0, 6  # all thresholds by at most 2^2 either way, to 5 %
GROUPS = 16  # or a few more, because a group has one resolution
TRIAL_FRAMES = 10  # what a group costs and buys is seen in as many
LARGEST_MOVE = 4.0  # of a threshold, in one round
LEAST_PART = 2e-3  # of the error or the savings; less is noise
DAMPING = 0.8
# What the door in may hold back, of the first frame's standard deviation: a camera's noise, what
# a codec does to a picture that stands still.
DOORS = (0.01, 0.02, 0.04, 0.08)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One run over the clip: its error, as the judge has it, and the share of dense it needed."""

    error: float
    needed: float


@dataclass(frozen=True)
class Group:
    """Neighbouring nodes of one resolution: their names, and what they hold back."""

    scale: str
    nodes: tuple[str, ...]
    threshold: float


@dataclass(frozen=True)
class Tuning:
    """What `tune` found.

    Args:
        delta: the module with the thresholds found; its settings say which.
        goal, allowed: the judge's.
        threshold: the largest single one that passed, in standard deviations; 0 where none did.
        single: what that gave; at threshold 0, nothing is off, and what changed is needed.
        best: what the thresholds found gave.
        groups: these thresholds.
        tried: single thresholds and their errors, in the order tried; a run may stop at the
            first frame that is too far off.
    """

    delta: DeltaModule
    goal: str
    allowed: float
    threshold: float
    single: Trial
    best: Trial
    groups: list[Group]
    tried: list[tuple[float, float]]

    @property
    def passed(self) -> bool:
        """Whether any threshold above 0 was allowed."""
        return self.threshold > 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain: dict[str, Any] = jsonable({
            "goal": self.goal, "allowed": self.allowed, "passed": self.passed,
            "threshold": self.threshold, "error": self.best.error, "needed": self.best.needed,
            "single": vars(self.single), "groups": [vars(group) for group in self.groups],
            "input_threshold": self.delta.config.input_threshold,
            "tried": [list(attempt) for attempt in self.tried]})
        return plain

    def __str__(self) -> str:
        """Say what was found, and what it is good for."""
        if not self.passed:
            return (f"no threshold of {2**LEAST:.2g} standard deviations or more gives "
                    f"{self.goal}: nothing is held back, {self.best.needed:.1%} of the "
                    "multiply-adds needed")
        rows = [("resolution", "nodes", "first", "threshold, std")]
        rows += [(g.scale, str(len(g.nodes)), g.nodes[0], f"{g.threshold:.3g}")
                 for g in self.groups]
        door = self.delta.config.input_threshold
        return "\n".join([
            f"for {self.goal}:", "", text_table(rows, align="l"), "",
            f"one threshold   {self.threshold:g} std: error {self.single.error:.2%}, "
            f"{self.single.needed:.1%} of the multiply-adds needed",
            f"by node         error {self.best.error:.2%}, {self.best.needed:.1%} needed",
            *([f"input           {door:g}, {self.delta.config.input_test} test"] if door else [])])


def tune(delta: DeltaModule, frames: Iterable[Frame], *, error: float = 0.01,
         model: nn.Module | None = None, judge: Judge | None = None, rounds: int = 2,
         say: Say = lambda text: None) -> Tuning:
    """Find the thresholds that need least work for an error that is allowed, on a clip.

    They are as good as the clip is typical: look at another with `validate`.

    Args:
        delta: the converted model. Thresholds become standard deviations of each node's values
            in a stream's first frame, the norm RMS. Nodes named in ``Config.nodes`` keep what is
            said there, all other settings stay. ``input_threshold`` and ``input_test`` are searched
            too where no threshold is set.
        frames: of a clip, each what the model takes; they are kept.
        error: the most that a frame may be off, relative RMS.
        model: the dense model, evaluated in eval mode and left in the mode it was in; ``None``
            takes the dense graph inside ``delta``.
        judge: what an error is, and how much is allowed, in the place of ``error``: boxes that
            agree, say (`fidelity.Judge`).
        rounds: how often thresholds of groups are moved; 0 stays with one threshold for all.
        say: told each attempt.

    Returns:
        The thresholds, and ``delta`` with them: ``tuning.delta``, which `save` takes.

    Raises:
        InputError: fewer than two frames, a wrong ``error`` or ``rounds``, a model converted in
            part, or one of which every node has a threshold of its own.
        FrameError: a frame that the model does not take.
    """
    _check(delta, error, rounds)
    held = list(inputs_of(frames))
    if len(held) < 2:
        raise InputError(f"the clip has {count(len(held), 'frame')}: nothing is held back in "
                         "the first, so give more.")
    delta.program(delta.signature(held[0]), held[0])  # refuses frames in words
    dense = model or StoredModel(delta)
    with evaluating(dense):
        truth = Truth(dense, held, error, of_frozen=math.inf)
    # In the model's own precision: what another rounds is no error of a threshold's.
    config = delta.config.replace(threshold_unit="std", norm="rms", dtype=None)
    search = _at_the_best_door(delta, config, held, judge or truth, truth, say)
    for number in range(rounds if search.threshold else 0):
        say(f"round {number + 1}: what {count(len(search.groups), 'group')} of nodes cost and save")
        if not search.improve():
            break
    return search.tuning()


def _check(delta: Any, error: Any, rounds: Any) -> None:
    if isinstance(delta, IslandsModule):
        raise InputError("tune takes a model that was converted whole: tune an island, "
                         "delta.islands[path].")
    if not isinstance(delta, DeltaModule):
        raise InputError(f"tune takes what convert returned, not {a_kind(delta)}.")
    if not (isinstance(error, (int, float)) and 0 < error < math.inf
            and isinstance(rounds, int) and rounds >= 0):
        raise InputError(f"error={error!r}, rounds={rounds!r}: give an error above 0, as 0.01, and "
                         "no less than 0 rounds.")


def _at_the_best_door(delta: DeltaModule, config: Config, frames: Sequence[tuple[Any, ...]],
                      judge: Judge, truth: Truth, say: Say) -> _Search:
    """Try larger and larger input thresholds in both tests for as long as they save work."""
    best = _Search(delta, config, frames, judge, truth, say)
    size = max((float(frame.float().std(correction=0)) for frame in frames[0]
                if frame.is_floating_point()), default=0.0)
    if config.input_threshold or not size:
        return best
    for test in get_args(InputTest):
        for door in (float(f"{part * size:.2g}") for part in DOORS):
            say(f"input threshold {door:g} by {test}")
            tried = _Search(delta, config.replace(input_threshold=door, input_test=test), frames,
                            judge, truth, say)
            if not tried.threshold or tried.best.needed >= best.best.needed:
                break
            best = tried
    return best


class _Search:
    """Thresholds on their way: the nodes that have one, and what the best ones gave.

    All trials run in one stream, which is started anew with other thresholds: compiling and
    allocating would take longer than the frames.
    """

    def __init__(self, delta: DeltaModule, config: Config, frames: Sequence[tuple[Any, ...]],
                 judge: Judge, truth: Truth, say: Say) -> None:
        """Find the largest single threshold.

        Args:
            truth: what errors of groups are measured by: a judge that counts boxes sees none.
        """
        self.delta, self.config, self.judge, self.say = delta, config, judge, say
        self.truth = truth
        module = delta.with_config(config.replace(threshold=1.0))
        self.program = module.program(module.signature(frames[0]), frames[0])
        self.stream = module.new_stream()
        self.free = [n for n in self.program.nodes if _is_free(config, n)]
        if config.nodes and not self.free:
            raise InputError("every node has a threshold of its own, as tune sets them: nothing is "
                             "left to find. Tune the model, or file, as convert made it.")
        self.groups = _groups(self.program.nodes, self.free)
        self.tried: list[tuple[float, float]] = []
        self.thresholds = {n.about.name: 0.0 for n in self.free}
        self.threshold, self.best = 0.0, Trial(math.nan, math.nan)
        self._single()

    def _single(self) -> None:
        names = list(self.thresholds)

        def attempt(exponent: float) -> tuple[dict[str, float], Trial]:
            threshold = float(f"{2**exponent:.2g}")
            trial = self.run(dict.fromkeys(names, threshold), self.judge,
                             self.judge.allowed)
            self.tried.append((threshold, trial.error))
            self.say(f"threshold {threshold:g} std: error {trial.error:.2%}, "
                     f"{self.judge.allowed:.2%} allowed")
            return dict.fromkeys(names, threshold), trial

        found = self._largest(attempt, LEAST, MOST, STEPS)
        if found is None:
            self.best = self.run(self.thresholds, self.judge)
        else:
            self.thresholds, self.best = found
            self.threshold = max(self.thresholds.values(), default=0.0)
        self.single = self.best

    def improve(self) -> bool:
        """Move the thresholds of groups against each other once; say whether that saved work."""
        moved = self._moved()

        def attempt(exponent: float) -> tuple[dict[str, float], Trial]:
            scaled = {name: float(f"{2**exponent * t:.3g}") for name, t in moved.items()}
            return scaled, self.run(scaled, self.judge, self.judge.allowed)

        found = self._largest(attempt, -SCALES, SCALES, SCALE_STEPS)
        if found is None or found[1].needed >= self.best.needed:
            return False
        self.thresholds, self.best = found
        self.say(f"error {self.best.error:.2%}, {self.best.needed:.1%} of the multiply-adds needed")
        return True

    def _largest(self, attempt: Callable[[float], tuple[dict[str, float], Trial]], low: float,
                 high: float, steps: int) -> tuple[dict[str, float], Trial] | None:
        """Bisect for the largest exponent that the judge allows; return what it gave."""
        found = None
        for _ in range(steps):
            middle = (low + high) / 2
            tried = attempt(middle)
            passed = tried[1].error <= self.judge.allowed
            low, high = (middle, high) if passed else (low, middle)
            found = tried if passed else found
        return found

    def _moved(self) -> dict[str, float]:
        """Return thresholds that give each group the part of the error that it saves of work."""
        before = self.run(self.thresholds, self.truth, most_frames=TRIAL_FRAMES)
        costs, savings = [], []
        for _, names in self.groups:
            doubled = self.thresholds | {name: 2 * self.thresholds[name] for name in names}
            trial = self.run(doubled, self.truth, most_frames=TRIAL_FRAMES)
            costs.append(max(0.0, trial.error**2 - before.error**2))
            savings.append(max(0.0, before.needed - trial.needed))
        moved: dict[str, float] = {}
        for (_, names), cost, saving in zip(self.groups, _parts(costs), _parts(savings),
                                            strict=True):
            move = min(max((saving / cost) ** (DAMPING / 2), 1 / LARGEST_MOVE), LARGEST_MOVE)
            moved |= {name: move * self.thresholds[name] for name in names}
        return moved

    def run(self, thresholds: Mapping[str, float], judge: Judge, stop_above: float = math.inf,
            most_frames: int | None = None) -> Trial:
        """Run the clip with these thresholds."""
        for node in self.free:
            node.about.threshold = thresholds[node.about.name]
        self.stream.reset()
        work, first = Work(), True

        def step(*inputs: Any) -> Any:
            nonlocal first
            outputs = self.stream(*inputs)
            if not first:
                work.add(self.stream)
            first = False
            return outputs

        error = judge.worst_error(step, stop_above, most_frames)
        total = work.total()
        return Trial(error, ratio(total.needed, total.dense))

    def tuning(self) -> Tuning:
        """Return what was found, as settings."""
        own = {name: NodeConfig(threshold=t) for name, t in self.thresholds.items()}
        config = self.config.replace(threshold=self.threshold, dtype=self.delta.config.dtype,
                                     nodes=own | dict(self.config.nodes))
        groups = [Group(scale, names, self.thresholds[names[0]]) for scale, names in self.groups]
        return Tuning(self.delta.with_config(config), self.judge.goal, self.judge.allowed,
                      self.threshold, self.single, self.best, groups, self.tried)


def _is_free(config: Config, node: DeltaNode) -> bool:
    """Whether the model's threshold is this node's: it buys something, and none of its own is set.
    """
    about = node.about
    own = config.replace(threshold=0.0).for_node(about.name, about.path)
    return about.rule != "sparsify" and about.threshold == 1.0 and own.threshold == 0.0


def _groups(nodes: Sequence[DeltaNode], free: Sequence[DeltaNode]
            ) -> list[tuple[str, tuple[str, ...]]]:
    """Cut the nodes of each resolution into runs of neighbours, with the resolution."""
    names = {node.about.name for node in free}
    by_scale: dict[str, list[str]] = {}
    for node, scale in zip(nodes, scales(nodes), strict=True):
        if node.about.name in names:
            by_scale.setdefault(scale, []).append(node.about.name)
    size = math.ceil(len(free) / GROUPS)
    return [(scale, tuple(members[i:i + size])) for scale, members in sorted(
        by_scale.items(), key=lambda item: scale_order(item[0]))
        for i in range(0, len(members), size)]


def _parts(amounts: Sequence[float]) -> list[float]:
    """Return each one's part of the whole, none next to nothing."""
    whole = math.fsum(amounts) or 1.0
    return [max(amount / whole, LEAST_PART) for amount in amounts]
