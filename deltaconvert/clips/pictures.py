"""Clips from folders, globs and single files of pictures."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from deltaconvert.clips.clip import Clip, Selection, Size, hxw, size_of
from deltaconvert.clips.decoding import Resize, opened, to_tensor
from deltaconvert.errors import BrokenClipError, ClipError

PICTURE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def natural_key(path: Path) -> list[str | int]:
    """Sort key that compares runs of digits as numbers: `f9.png` before `f10.png`."""
    parts = re.split(r"(\d+)", path.as_posix().casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order, hidden files left out."""
    visible = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    return _only_pictures(visible, f"the folder {folder}")


def pictures_like(pattern: str) -> list[Path]:
    """The pictures that match a glob, in natural order."""
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
    return _only_pictures([p for p in matches if p.is_file()], f"the pattern {pattern}")


def _only_pictures(files: Sequence[Path], where: str) -> list[Path]:
    pictures = [p for p in files if p.suffix.lower() in PICTURE_SUFFIXES]
    if pictures:
        return sorted(pictures, key=natural_key)
    kinds = Counter(p.suffix.lower() or "no suffix" for p in files).most_common(5)
    found = ", ".join(f"{number} x {kind}" for kind, number in kinds) or "no files"
    raise ClipError(
        f"no pictures in {where}, found: {found}. Pictures end in "
        f"{', '.join(sorted(PICTURE_SUFFIXES))}"
    )


def picture_clip(
    source: Path, pictures: Sequence[Path], resize: Resize, selection: Selection
) -> Clip:
    """The clip of some pictures, in that order; `source` is what the user named."""
    taken = list(selection.of(pictures))
    if not taken:
        raise ClipError(
            f"{source} has {len(pictures)} pictures, none from index {selection.start} on: "
            "choose a smaller start"
        )
    source_size = size_of(_read_picture(taken[0]))

    def frames() -> Iterator[Tensor]:
        return map(resize, _picture_tensors(taken, source_size))

    name = source.name or str(source.resolve())
    return Clip(name, resize.of(source_size), frames, length=lambda: len(taken))


def _picture_tensors(pictures: Sequence[Path], size: Size) -> Iterator[Tensor]:
    for path in pictures:
        picture = _read_picture(path)
        if size_of(picture) != size:
            raise BrokenClipError(
                f"pictures of different sizes: {path} is {hxw(size_of(picture))}, "
                f"{pictures[0]} is {hxw(size)} (height x width). Frames of one clip have "
                "one size: take the odd one out, or resize it"
            )
        yield picture


def _read_picture(path: Path) -> Tensor:
    with opened(path, "picture") as (container, stream):
        if container.format.name == "apng" or _is_animated_webp(path):
            raise ClipError(f"{path} is an animation, and a picture has one frame: save it as a "
                            "GIF or a video")
        # Otherwise half a JPEG is patched up with grey.
        stream.codec_context.options = {"err_detect": "explode"}
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ClipError(f"{path} cannot be read as a picture: it ends before its pixels")
        return to_tensor(frame)


def _is_animated_webp(path: Path) -> bool:
    """Whether the extended header says so, of what FFmpeg may not read."""
    with open(path, "rb") as file:
        head = file.read(21)
    return head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)
