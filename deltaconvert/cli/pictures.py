"""The flags that say which frames a command takes, and how the model takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from deltaconvert.cli.options import parse_numbers, parse_size
from deltaconvert.clips import Clip, open_clip
from deltaconvert.errors import ConfigError, InputError
from deltaconvert.preprocessing import Preprocessing

MODEL = "model"  # what --size takes beside HxW
CLIP_HELP = "A video file, a folder or glob of pictures, or 'synthetic'."


@dataclass(frozen=True)
class Channels:
    """How pictures become frames; None is what the model's file says."""

    channel_order: Annotated[str | None, typer.Option(
        metavar="rgb|bgr|gray", help="What the model takes; gray is one channel.")] = None
    mean: Annotated[str | None, typer.Option(
        metavar="M,M,M", help="Taken off the frames, whose values are 0 to 1.")] = None
    std: Annotated[str | None, typer.Option(
        metavar="S,S,S", help="What the frames are then divided by.")] = None

    def preprocessing(self, stored: Preprocessing | None) -> Preprocessing:
        """Return what is stored, with what was given in its place.

        Raises:
            InputError: naming the flag.
        """
        given: dict[str, Any] = {
            "order": self.channel_order, "mean": parse_numbers("--mean", self.mean),
            "std": parse_numbers("--std", self.std)}
        given = {name: value for name, value in given.items() if value is not None}
        try:
            return dataclasses.replace(stored or Preprocessing(), **given)
        except ConfigError as error:
            raise InputError(f"--channel-order, --mean, --std: {error}") from None

    @property
    def given(self) -> bool:
        """Whether any of the flags was."""
        return any(value is not None for value in (self.channel_order, self.mean, self.std))


@dataclass(frozen=True)
class Pictures(Channels):
    """Which frames of a source are taken, and at which size."""

    size: Annotated[str | None, typer.Option(
        metavar="HxW|model", help="Resize the frames; 'model': as its weights were evaluated. "
        "Default: as they are.")] = None
    fit: Annotated[str | None, typer.Option(
        metavar="stretch|pad|crop", help="With --size: stretch, or keep the aspect and pad with "
        "grey, or crop. Default: stretch, or as --size model says.")] = None
    frames: Annotated[int | None, typer.Option(
        metavar="N", help="Most frames to take.")] = None
    start: Annotated[int, typer.Option(metavar="N", help="Index of the first frame.")] = 0
    stride: Annotated[int, typer.Option(metavar="N", help="Take every so many-th frame.")] = 1
    seed: Annotated[int, typer.Option(metavar="N", help="Of a synthetic clip.")] = 0

    def open(self, source: str, stored: Preprocessing | None) -> Clip:
        """Open a source, for a model whose file says this of its frames.

        Raises:
            InputError: see `open_clip` and `extent`.
        """
        size, told = self.extent(stored), dict[str, Any]()
        if self.size == MODEL and stored is not None:
            told = {"interpolation": stored.interpolation}
            if self.fit is None:
                size, told["shorter_side"] = stored.size, stored.shorter_side
        return open_clip(source, size=size, fit=self.fit or "stretch",  # type: ignore[arg-type]
                         frames=self.frames, start=self.start, stride=self.stride, seed=self.seed,
                         **told)

    def extent(self, stored: Preprocessing | None) -> tuple[int, int] | None:
        """Return H and W that ``--size`` means; ``None`` where it was not given.

        Raises:
            InputError: no size, or ``model`` for a file that does not say one.
        """
        if self.size != MODEL:
            return None if self.size is None else parse_size(self.size)
        if stored is None or not stored.has_size:
            raise InputError("--size model: the file does not say at which size its weights were "
                             "evaluated; models of torchvision: and timm: do. Give --size HxW.")
        side = stored.shorter_side or 0
        return stored.size or (side, side)

    def open_all(self, sources: Sequence[str], stored: Preprocessing | None) -> list[Clip]:
        """Open several sources, before any is read."""
        return [self.open(source, stored) for source in sources]
