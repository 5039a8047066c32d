"""From an RGB picture to what a model takes: size, channels, mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from deltaconvert.errors import ConfigError

ChannelOrder = Literal["rgb", "bgr", "gray"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Preprocessing:
    """How a model takes its frames: ``(picture in its channels - mean) / std``.

    Args:
        order: of the channels; ``"gray"`` is the luminance alone.
        mean, std: a number a channel, or one for all; the pictures have values from 0 to 1.
        size: H and W at which the weights were evaluated. Frames keep their own size, for a
            convolutional network takes any; whoever feeds pictures may ask for this one.
        shorter_side: what the pictures' was scaled to before ``size`` was cut out of the middle.
        interpolation: by which they were scaled.

    Raises:
        ConfigError: an order that does not exist, or numbers that do not fit the channels.
    """

    order: ChannelOrder = "rgb"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    shorter_side: int | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.order not in get_args(ChannelOrder):
            raise ConfigError(f"channel order {self.order!r}: choose one of "
                              f"{', '.join(get_args(ChannelOrder))}.")
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._checked(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise ConfigError("std: give numbers above 0; pictures have values from 0 to 1.")
        if self.interpolation not in get_args(Interpolation):
            raise ConfigError(f"interpolation {self.interpolation!r}: choose one of "
                              f"{', '.join(get_args(Interpolation))}.")
        sides = [*(self.size or ()), *([] if self.shorter_side is None else [self.shorter_side])]
        if len(self.size or (1, 1)) != 2 or not all(type(s) is int and s > 0 for s in sides):
            raise ConfigError(f"size={self.size}, shorter_side={self.shorter_side}: give height "
                              "and width, and a side, in whole pixels.")

    def _checked(self, name: str, given: Any) -> tuple[float, ...]:
        numbers = tuple(float(n) for n in given)
        if len(numbers) not in (1, self.channels):
            raise ConfigError(f"{name} has {len(numbers)} numbers, the frames have "
                              f"{self.channels} channels: give one for each, or one for all.")
        if not all(map(math.isfinite, numbers)):
            raise ConfigError(f"{name}={numbers}: give finite numbers.")
        return numbers

    @property
    def channels(self) -> int:
        """How many channels the frames have."""
        return 1 if self.order == "gray" else 3

    def __call__(self, picture: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Turn an RGB picture, float32 ``[3, H, W]`` from 0 to 1, into a frame ``[C, H, W]``."""
        if self.order == "bgr":
            picture = picture.flip(0)
        elif self.order == "gray":
            picture = torch.tensordot(picture.new_tensor(LUMINANCE), picture, dims=1)[None]
        if any(self.mean):
            picture = picture - picture.new_tensor(self.mean).view(-1, 1, 1)
        if any(n != 1 for n in self.std):
            picture = picture / picture.new_tensor(self.std).view(-1, 1, 1)
        return picture.to(dtype)

    def __str__(self) -> str:
        """Say it in a few words."""
        if not any(self.mean) and set(self.std) == {1.0}:
            return f"{self.order}, values from 0 to 1"
        return f"{self.order}, minus {_listed(self.mean)}, over {_listed(self.std)}"

    @property
    def has_size(self) -> bool:
        """Whether it is known at which size the weights were evaluated."""
        return self.size is not None or self.shorter_side is not None

    @property
    def size_in_words(self) -> str:
        """At which size the weights were evaluated, as ``224x224 out of 256``; "" if unknown."""
        if self.size is None:
            return f"shorter side {self.shorter_side}" if self.shorter_side else ""
        cut = f" out of {self.shorter_side}" if self.shorter_side else ""
        return f"{self.size[0]}x{self.size[1]}{cut}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Rebuild what `to_dict` gave.

        Raises:
            ConfigError: for numbers that make no sense.
        """
        size = data.get("size")  # files of the first releases have none
        return cls(data["order"], tuple(data["mean"]), tuple(data["std"]),
                   None if size is None else tuple(size), data.get("shorter_side"),
                   data.get("interpolation", "bilinear"))


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{n:g}" for n in numbers)
