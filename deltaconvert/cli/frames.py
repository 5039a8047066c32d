"""From a clip's RGB pictures to what a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, fx

from deltaconvert.clips import Clip
from deltaconvert.errors import InputError
from deltaconvert.module import DeltaModule

ChannelOrder = Literal["rgb", "bgr", "gray"]

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


class ModelFrames:
    """A clip as batches of one, ``[1, C, H, W]``, in a model's channels, scale and dtype.

    Args:
        clip: RGB pictures with values from 0 to 1.
        order: of the channels; ``gray`` is the luminance alone.
        mean, std: a number a channel (or one for all): ``(picture - mean) / std``.
        dtype: of the frames.

    Raises:
        InputError: an order that does not exist, or numbers that do not fit the channels.
    """

    def __init__(self, clip: Clip, order: str = "rgb", mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Check the settings; nothing is read."""
        if order not in get_args(ChannelOrder):
            raise InputError(f"--channel-order {order!r}: choose one of "
                             f"{', '.join(get_args(ChannelOrder))}.")
        self.clip, self.order, self.dtype = clip, order, dtype
        channels = 1 if order == "gray" else 3
        self.mean, self.std = _per_channel("mean", mean, channels), _per_channel(
            "std", std, channels)
        if self.std is not None and bool((self.std <= 0).any()):
            raise InputError("--std: give numbers above 0; pictures have values from 0 to 1.")

    def __iter__(self) -> Iterator[Tensor]:
        """Begin with the first frame."""
        return map(self.prepare, self.clip)

    def prepare(self, picture: Tensor) -> Tensor:
        """Turn one RGB picture, ``[3, H, W]``, into a frame."""
        if self.order == "bgr":
            picture = picture.flip(0)
        elif self.order == "gray":
            picture = torch.tensordot(torch.tensor(LUMINANCE), picture, dims=1)[None]
        if self.mean is not None:
            picture = picture - self.mean
        if self.std is not None:
            picture = picture / self.std
        return picture[None].to(self.dtype)


def _per_channel(name: str, numbers: Sequence[float] | None, channels: int) -> Tensor | None:
    if numbers is None:
        return None
    if len(numbers) not in (1, channels):
        raise InputError(f"--{name} has {len(numbers)} numbers, the frames have {channels} "
                         "channels: give one for each, or one for all.")
    return torch.tensor(numbers).view(-1, 1, 1)


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
    """Return how many channels the model takes: what the first convolution says, or else 3."""
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
