"""What does not run locally in a converted model, and the whole story of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltaconvert.nodes import DeltaNode, Description

READS_BY_NUMBERS = "nothing: where it reads depends on the numbers in the frame"
RUNS_ON = "nothing: each number depends on all before it"
# What would make a function local that is no operator, by its name; else `OWN_OPERATOR`.
UNKNOWN = {
    "grid_sample": READS_BY_NUMBERS, "deform_conv2d": READS_BY_NUMBERS,
    "DeformConv2d": READS_BY_NUMBERS, "roi_align": READS_BY_NUMBERS, "gather": READS_BY_NUMBERS,
    "max_unpool2d": READS_BY_NUMBERS, "MaxUnpool2d": READS_BY_NUMBERS,
    "cumsum": RUNS_ON, "cumprod": RUNS_ON, "cummax": RUNS_ON, "cummin": RUNS_ON, "LSTM": RUNS_ON,
    "GRU": RUNS_ON, "sort": "nothing: it compares every place with every other",
    "set_item": "torch.cat, or torch.where, in the assignment's place",
    "write_through": "a new tensor in the place of a write into a view",
    "BatchNorm2d": "running statistics, as after training with track_running_stats=True",
    **dict.fromkeys(("conv1d", "Conv1d", "conv3d", "Conv3d", "ConvTranspose1d", "ConvTranspose3d"),
                    "convolutions of maps N x C x H x W, with frames one by one"),
}
OWN_OPERATOR = ("an operator of its own, where each output pixel reads a fixed neighbourhood "
                "(CONTRIBUTING.md)")
MAPS = "maps N x C x H x W with the lanes first; what has no pixels stays whole"


@dataclass(frozen=True)
class Fallback:
    """A node that a frame's changes do not reach pixel by pixel.

    Args:
        node: its name; ``path`` is that of the module it is of or in.
        source: the user's line, or what is said where that is not known.
        rule: ``"unknown"``, ``"global"``, or ``"local"`` for what only the ``reference`` backend
            runs: whole, though its mask is exact.
        reason: why.
        advice: what would make it local.
        share: of the multiply-adds of a dense frame.
    """

    node: str
    path: str
    source: str
    rule: str
    reason: str
    advice: str
    share: float

    def __str__(self) -> str:
        """Tell all of it in one line."""
        return (f"{self.path or self.node}: {self.reason} [{self.share:.1%} of the multiply-adds] "
                f"({self.source}); to be local it takes {self.advice}")


def fallbacks(nodes: Sequence[DeltaNode]) -> list[Fallback]:
    """Return every fallback of a program, in order of execution.

    Nodes that run whole by nature, without a reason to be said (a classifier's matrix), and
    concatenations in place are none. Of nodes that run as one, each that is not known is told.
    """
    total = sum(n.dense_multiply_adds for n in nodes) or 1
    found = []
    for node in nodes:
        about = node.about
        if about.unknown:
            found += [Fallback(part.name, part.path, part.source or "line unknown", "unknown",
                               part.reason, advice_for(part), part.multiply_adds / total)
                      for part in about.unknown]
            continue
        by_backend = node.fallback_reason if about.rule == "local" and not about.aliases else ""
        reason = about.reason or by_backend
        if about.rule in ("unknown", "global", "local") and reason:
            found.append(Fallback(
                about.name, about.path, about.source or "line unknown", about.rule, reason,
                "another backend" if by_backend else advice_for(about),
                node.dense_multiply_adds / total))
    return found


def advice_for(about: Description) -> str:
    """Say what would make a node local that runs whole."""
    if about.advice:
        return about.advice
    if about.rule == "global":
        return MAPS
    return UNKNOWN.get(about.function_name, OWN_OPERATOR)
