"""The demo's picture: what changed in a frame, and what of it each resolution computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltaconvert.atomic import written_whole
from deltaconvert.clips import Clip
from deltaconvert.module import DeltaModule
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import Edge
from deltaconvert.work import OTHER, scales

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 2.2
FRAME_COLUMN, INPUT_COLUMN = "frame", "input"


@dataclass
class Masks:
    """Update masks of one frame, float ``[H, W]`` from 0 to 1.

    Args:
        index: of the frame.
        by_scale: mean over the nodes of a resolution, by its name.
    """

    index: int
    by_scale: dict[str, Tensor] = field(default_factory=dict)


def watch(delta: DeltaModule, frames: Sequence[Tensor]) -> Masks:
    """Run a new stream over some frames and keep the masks of the last."""
    stream = delta.new_stream()
    for frame in frames[:-1]:
        stream(frame)
    seen: list[tuple[DeltaNode, Tensor]] = []

    def keep(node: DeltaNode, edge: Edge) -> None:
        seen.append((node, edge.mask.float()))

    stream.observe(keep)
    stream(frames[-1])
    masks = Masks(len(frames) - 1)
    groups: dict[str, list[Tensor]] = {}
    for (node, mask), scale in zip(seen, scales([node for node, _ in seen]), strict=True):
        name = INPUT_COLUMN if node.about.rule == "sparsify" else scale
        if scale != OTHER:
            groups.setdefault(name, []).append(mask[0])
    for name, members in groups.items():
        size = members[-1].shape
        masks.by_scale[name] = torch.stack([m for m in members if m.shape == size]).mean(0)
    return masks


class Picture:
    """A row a run: the frame, the update mask at the input, and the change by resolution."""

    def __init__(self, clip: Clip) -> None:
        """Start without rows."""
        self.clip = clip
        self.rows: list[tuple[str, Masks]] = []

    def add(self, label: str, masks: Masks) -> None:
        """Add a row."""
        self.rows.append((label, masks))

    def columns(self) -> list[str]:
        """Return the resolutions of all rows, the largest first."""
        names = {name for _, masks in self.rows for name in masks.by_scale if "/" in name}
        whole = {name for _, masks in self.rows for name in masks.by_scale} - names
        return [FRAME_COLUMN, *sorted(whole, key=lambda n: (n != INPUT_COLUMN, n)),
                *sorted(names, key=lambda n: int(n.rpartition("/")[2]))]

    def save(self, path: Path) -> None:
        """Write a PNG, whole or not at all."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        columns = self.columns()
        height, width = self.clip.size
        figure = Figure(figsize=(WIDTH_INCHES * len(columns),
                                 (WIDTH_INCHES * height / width + 0.3) * len(self.rows) + 0.3),
                        layout="constrained")
        axes = figure.subplots(len(self.rows), len(columns), squeeze=False)
        pictures = list(self.clip)
        for row, (label, masks) in enumerate(self.rows):
            for column, name in enumerate(columns):
                self._draw(axes[row, column], name, masks, pictures[masks.index])
            axes[row, 0].set_ylabel(label, fontsize=8)
        for column, name in enumerate(columns):
            axes[0, column].set_title(name, fontsize=9)
        with written_whole(path) as partial, open(partial, "xb") as file:
            FigureCanvasAgg(figure).print_png(file)

    def _draw(self, axes: Axes, name: str, masks: Masks, picture: Tensor) -> None:
        axes.set_xticks([])
        axes.set_yticks([])
        mask = masks.by_scale.get(name)
        if name == FRAME_COLUMN:
            axes.imshow(picture.permute(1, 2, 0).numpy())
        elif mask is None:
            axes.set_axis_off()
        else:
            axes.imshow(mask.cpu().numpy(), vmin=0, vmax=1, cmap="inferno",
                        interpolation="nearest")
            axes.set_xlabel(f"{float(mask.mean()):.0%}", fontsize=7, labelpad=1)
