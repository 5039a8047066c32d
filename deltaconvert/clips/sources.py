"""From what a user names to a clip."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any

from deltaconvert.clips.clip import Clip, Selection, Size, checked_size
from deltaconvert.clips.decoding import Fit, Resize
from deltaconvert.clips.pictures import PICTURE_SUFFIXES, picture_clip, pictures_in, pictures_like
from deltaconvert.clips.synthetic import parse_options, synthetic
from deltaconvert.clips.video import video_clip
from deltaconvert.errors import ClipError, InputError
from deltaconvert.preprocessing import Interpolation

NOT_A_SOURCE = "A clip is a video file, a folder or glob of pictures, or the word 'synthetic'"


def open_clip(
    source: str | os.PathLike[str],
    *,
    size: Size | None = None,
    fit: Fit = "stretch",
    shorter_side: int | None = None,
    interpolation: Interpolation = "bilinear",
    frames: int | None = None,
    start: int = 0,
    stride: int = 1,
    seed: int = 0,
    active_share: float | None = None,
    objects: int | None = None,
    noise: float | None = None,
) -> Clip:
    """Open a source of frames.

    Args:
        source: a video file; a folder or a glob of pictures, taken in natural order
            (`f9.png` before `f10.png`); or `synthetic`, also with options, as in
            `synthetic:active_share=0.03,noise=0.01,size=360x640`, which win over the
            arguments. For a folder of that name say `./synthetic`.
        size: H and W that frames are resized to (antialiased). Default: the source's own;
            360x640 for `synthetic`.
        fit: `stretch` to that size, or keep the aspect: `pad` with grey, or `crop`.
        shorter_side, interpolation: see `Resize`; for files only.
        frames: most frames to take. Default: all of them; 60 for `synthetic`.
        start: index of the first frame to take.
        stride: take every `stride`-th frame.
        seed, active_share, objects, noise: of `synthetic` only, see there.

    Raises:
        InputError: the source is missing, empty, or neither video nor pictures; an
            argument makes no sense; an option of `synthetic` is given for a file.
    """
    source = os.fspath(source)
    if not source:  # an empty path would be the current folder
        raise ClipError(f"the name of the source is empty. {NOT_A_SOURCE}")
    own = _without_none(active_share=active_share, objects=objects, noise=noise)
    word, _, options = source.partition(":")
    if word == "synthetic":
        shared = _without_none(size=size, frames=frames, start=start, stride=stride, seed=seed)
        return synthetic(**{**shared, **own, **parse_options(options)})
    if own:
        raise InputError(f"{', '.join(own)}: only for the source 'synthetic', not for {source!r}")
    resize = Resize(None if size is None else checked_size(size), fit, shorter_side,
                    interpolation)
    selection = Selection(start, stride, frames)
    return _open_files(source, resize, selection)


def _open_files(source: str, resize: Resize, selection: Selection) -> Clip:
    path = Path(source).expanduser()
    if path.is_dir():
        return picture_clip(path, pictures_in(path), resize, selection)
    if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES:
        return picture_clip(path, [path], resize, selection)
    if path.is_file():
        return video_clip(path, resize, selection)
    if glob.has_magic(str(path)):
        return picture_clip(path, pictures_like(str(path)), resize, selection)
    if "://" in source or path.exists():
        raise ClipError(f"{source} is a stream or a device, and a clip is a file, which can be "
                        "read again. Save it first, or call the converted model from Python on "
                        "each frame as it comes: see 'A camera' in the README")
    if number := re.search(r"%0?\d*d", source):
        raise ClipError(f"no such file: {path}. Pictures are named by a glob: "
                        f"{source.replace(number[0], '*')!r}, in quotes")
    raise ClipError(f"no such file or folder: {path}. {NOT_A_SOURCE}")


def _without_none(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
