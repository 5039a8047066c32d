"""Several clips at once: as lanes of one stream, or as streams one after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaconvert.clips import Clip
from deltaconvert.errors import ClipError, InputError
from deltaconvert.running.ahead import ahead

Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Picture:
    """One picture of a clip.

    Args:
        clip: index of its clip.
        index: of the picture among those taken from it.
        pixels: ``[3, H, W]``, RGB from 0 to 1.
    """

    clip: int
    index: int
    pixels: Tensor


@dataclass(frozen=True)
class Batch:
    """The input of one call.

    Args:
        stream: index of the stream that it is for.
        frame: ``[N, C, H, W]``, as the model takes it.
        pictures: one a lane; None where the lane's clip has ended, and its last frame stands.
    """

    stream: int
    frame: Tensor
    pictures: list[Picture | None]


class Sources:
    """Clips that are read ahead, each in a thread of its own.

    Args:
        clips: at least one.
        prepare: makes the frame ``[C, H, W]`` of a picture ``[3, H, W]``; called in the
            clip's thread.

    Attributes:
        broken: what is to be said of clips that broke off, by the clip's index.
    """

    def __init__(self, clips: Sequence[Clip], prepare: Prepare) -> None:
        """Keep the clips; nothing is read."""
        self.clips, self.prepare = clips, prepare
        self.broken: dict[int, ClipError] = {}

    def as_lanes(self) -> Generator[Batch, None, None]:
        """Yield batches of one frame a clip, until all clips have ended.

        The lane of a clip that has ended gets its last frame again: a frame without change
        costs next to nothing, and another number of lanes would start all of them anew.

        Raises:
            InputError: the clips have different sizes.
            ClipError: a clip breaks before its first frame.
        """
        sizes = {clip.size for clip in self.clips}
        if len(sizes) > 1:
            listed = ", ".join(f"{c.name} {c.size[0]}x{c.size[1]}" for c in self.clips)
            raise InputError(f"lanes are of one size, the clips are not: {listed}. Give --size, "
                             "or run them as streams.")
        readers = [self._read(index) for index in range(len(self.clips))]
        frames: list[Tensor] = [torch.empty(0)] * len(readers)
        try:
            while True:
                pictures: list[Picture | None] = []
                for lane, reader in enumerate(readers):
                    picture, frames[lane] = next(reader, (None, frames[lane]))
                    pictures.append(picture)
                if all(picture is None for picture in pictures):
                    return
                yield Batch(0, torch.stack(frames), pictures)
        finally:
            for reader in readers:
                reader.close()

    def as_streams(self) -> Generator[Batch, None, None]:
        """Yield a frame of each clip in turn, for a stream each, until all have ended.

        Raises:
            ClipError: a clip breaks before its first frame.
        """
        waiting = {index: self._read(index) for index in range(len(self.clips))}
        try:
            while waiting:
                for index, reader in list(waiting.items()):
                    found = next(reader, None)
                    if found is None:
                        del waiting[index]
                    else:
                        yield Batch(index, found[1][None], [found[0]])
        finally:
            for reader in waiting.values():
                reader.close()

    def _read(self, clip: int) -> Generator[tuple[Picture, Tensor], None, None]:
        def made() -> Iterator[tuple[Picture, Tensor]]:
            for index, pixels in enumerate(self.clips[clip]):
                yield Picture(clip, index, pixels), self.prepare(pixels)

        number = 0
        with closing(ahead(made())) as pairs:
            try:
                for pair in pairs:
                    yield pair
                    number += 1
            except ClipError as error:
                if number == 0:
                    raise
                self.broken[clip] = error
