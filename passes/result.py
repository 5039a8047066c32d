"""What a pass says it did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PassResult:
    """What one pass changed, and what it left alone although it looked at it.

    Args:
        name: of the pass.
        changed: a line for each change.
        refused: node name to the reason why it was not changed.
        gone: names and paths of nodes that other backends keep, so that settings may name them.
    """

    name: str
    changed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    gone: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        """Return the counts in one line."""
        return f"{self.name}: {len(self.changed)} changed, {len(self.refused)} refused"
