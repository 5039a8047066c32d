"""A clip, which of a source's frames it takes, and the sizes that frames have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

from torch import Tensor

from deltaconvert.errors import InputError

Size = tuple[int, int]
Item = TypeVar("Item")


class Clip:
    """Frames in order, as often as wanted: every `iter()` begins with the first frame.

    A frame is a new float32 tensor `[3, H, W]` on the CPU: RGB, values 0..1. Iterating
    raises `InputError` where the source breaks off or a frame has another size.

    Attributes:
        name: what to call the clip in a report.
        size: H and W of every frame, in pixels.
        fps: frames a second at the clip's own pace, None where it has none.
    """

    def __init__(
        self,
        name: str,
        size: Size,
        frames: Callable[[], Iterator[Tensor]],
        *,
        fps: float | None = None,
        length: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.name = name
        self.size = size
        self.fps = fps
        self._frames = frames
        self._length = length

    def __iter__(self) -> Iterator[Tensor]:
        return self._frames()

    def __repr__(self) -> str:
        return f"Clip({self.name!r}, {hxw(self.size)}, fps={self.fps})"

    @cached_property
    def length(self) -> int | None:
        """Number of frames that an iteration yields, None where it cannot be told.

        Headers of video files are often wrong about it, so a video is read through (not
        decoded) when this is first asked for.
        """
        return self._length()


@dataclass(frozen=True)
class Selection:
    """Which frames of a source are taken: from `start` on every `stride`-th, `frames` at most.

    Raises:
        InputError: one of the three makes no sense.
    """

    start: int = 0
    stride: int = 1
    frames: int | None = None

    def __post_init__(self) -> None:
        require_int("start", self.start, least=0)
        require_int("stride", self.stride, least=1)
        if self.frames is not None:
            require_int("frames", self.frames, least=1)

    @property
    def stop(self) -> int | None:
        """Index behind the last frame taken, None for up to the end."""
        if self.frames is None:
            return None
        return self.start + (self.frames - 1) * self.stride + 1

    def of(self, frames: Iterable[Item]) -> Iterator[Item]:
        """The frames taken; nothing behind the last of them is read."""
        return islice(frames, self.start, self.stop, self.stride)

    def count_of(self, total: int) -> int:
        """How many of `total` frames are taken."""
        return len(range(total)[self.start : self.stop : self.stride])


def require_int(name: str, value: object, *, least: int) -> None:
    """Raise `InputError` unless `value` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


def checked_size(size: Size, *, least: int = 1) -> Size:
    """`size` as a tuple; `InputError` unless it is two ints of at least `least`."""
    if len(size) != 2 or not all(type(extent) is int and extent >= least for extent in size):
        raise InputError(
            f"size must be (height, width), two whole numbers of at least {least} px, got {size!r}"
        )
    return (size[0], size[1])


def hxw(size: Size) -> str:
    """A size as people write it: `360x640`."""
    return f"{size[0]}x{size[1]}"


def size_of(frame: Tensor) -> Size:
    """H and W of a frame."""
    return (frame.shape[-2], frame.shape[-1])
