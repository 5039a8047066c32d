"""Frames as a model takes them: from clips, and blank ones for their shapes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from deltaconvert.clips import Clip
from deltaconvert.errors import InputError
from deltaconvert.module import DeltaModule
from deltaconvert.preprocessing import Preprocessing


class ModelFrames:
    """A clip as batches of one, ``[1, C, H, W]``, as a model takes them.

    Args:
        clip: RGB pictures with values from 0 to 1.
        preprocessing: what the model takes.
        dtype: of the frames.
    """

    def __init__(self, clip: Clip, preprocessing: Preprocessing,
                 dtype: torch.dtype = torch.float32) -> None:
        """Keep them; nothing is read."""
        self.clip, self.preprocessing, self.dtype = clip, preprocessing, dtype

    def __iter__(self) -> Iterator[Tensor]:
        """Begin with the first frame."""
        return (self.preprocessing(picture, self.dtype)[None] for picture in self.clip)


def example_frame(delta: DeltaModule, size: tuple[int, int]) -> Tensor:
    """Return a blank frame of a size that the model takes, for its shapes alone.

    Raises:
        InputError: for a model of several inputs, whose sizes one flag cannot say.
    """
    if len(delta.input_names) != 1:
        raise InputError(f"--size is for models of one input; this one takes "
                         f"{', '.join(delta.input_names)}. Convert it in Python, with "
                         "example_inputs.")
    return torch.zeros(1, input_channels(delta), *size, dtype=dtype_of(delta))


def input_channels(delta: DeltaModule) -> int:
    """Return how many channels the model takes, by its shapes or first convolution, or else 3."""
    shape = (delta.traced.traced_for or [()])[0]
    if len(shape) == 4 and shape[1] > 0:
        return shape[1]
    state = delta.state_dict()
    for node in delta.graph.nodes:
        weight = node.args[1] if len(node.args) > 1 else None
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            filters = state.get(str(weight.target))
            if filters is not None and filters.dim() == 4:
                groups = node.kwargs.get("groups", 1)
                return filters.shape[1] * (groups if isinstance(groups, int) else 1)
    return 3


def dtype_of(delta: DeltaModule) -> torch.dtype:
    """Return the precision of the weights."""
    return next((p.dtype for p in delta.parameters() if p.is_floating_point()), torch.float32)
