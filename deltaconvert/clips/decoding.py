"""Opening files and decoding frames through PyAV, as videos and pictures both need it."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.clips.clip import Size, checked_size, size_of
from deltaconvert.errors import ClipError, InputError
from deltaconvert.preprocessing import Interpolation

if TYPE_CHECKING:
    from types import ModuleType

    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


def import_av() -> ModuleType:
    """PyAV, which only files need; `ClipError` where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise ClipError(
            f"reading videos and pictures needs PyAV ({error}). Do: pip install av"
        ) from error
    return av


@contextmanager
def opened(path: Path, kind: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and first video stream of a file; every failure is an `ClipError`."""
    av = import_av()
    try:
        if path.stat().st_size == 0:
            raise ClipError(f"{path} is empty (0 bytes)")
        with av.open(_source_for_av(path, kind)) as container:
            if container.format.name == "tty":  # FFmpeg draws text files, by their suffix
                raise ClipError(f"{path} is text, no {kind}")
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise ClipError(f"{path} holds no {kind} that can be decoded")
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, OSError) as error:
        raise ClipError(f"{path} cannot be read as a {kind}: {error.strerror}") from error


def _source_for_av(path: Path, kind: str) -> io.BytesIO | str:
    # FFmpeg takes "%03d" in a picture's name for a pattern, and what stands before a colon
    # for a protocol: so pictures go in as bytes, and videos under an explicit protocol.
    return io.BytesIO(path.read_bytes()) if kind == "picture" else f"file:{path}"


def to_tensor(frame: VideoFrame) -> Tensor:
    """A decoded frame as `[3, H, W]`, upright: cameras store a turn beside the picture."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return _upright(pixels, frame).contiguous().float().div_(255)


def _upright(pixels: Tensor, frame: VideoFrame) -> Tensor:
    """Turn and mirror a picture as its display matrix says: ``x' = ax + cy``, ``y' = bx + dy``.

    PyAV's own ``rotation`` takes what a front camera mirrors for half a turn.
    """
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 knows no Exif data, and tells nothing of the rest
        return torch.rot90(pixels, round(frame.rotation / 90), (1, 2))
    if matrix is None:
        return pixels
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 2), c, b
    return pixels.flip([side for side, sign in ((2, a), (1, d)) if sign < 0])


Fit = Literal["stretch", "pad", "crop"]
PADDING = 114 / 255  # the grey that detectors are trained to see around a picture


@dataclass(frozen=True)
class Resize:
    """Frames at another size (antialiased).

    Args:
        size: H and W; None leaves frames as they are.
        fit: what becomes of another aspect: `stretch` loses it; `pad` fits the whole
            picture in and puts grey around it; `crop` fills the size and cuts off the rest.
        shorter_side: scales the picture so that this is its shorter side, in place of what
            `fit` says; then `size`, where there is one, is cut out of the middle.
        interpolation: `bilinear`, `bicubic` or `nearest`.
    """

    size: Size | None = None
    fit: Fit = "stretch"
    shorter_side: int | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.fit not in get_args(Fit):
            raise InputError(f"fit {self.fit!r}: choose one of {', '.join(get_args(Fit))}.")
        if self.size is not None:
            checked_size(self.size)

    def __call__(self, frame: Tensor) -> Tensor:
        """The frame at that size, itself where it has it already."""
        own, whole = size_of(frame), self.scaled(size_of(frame))
        picture = frame if whole == own else _interpolate(frame, whole, self.interpolation)
        return picture if whole == self.of(own) else self._placed(picture, self.of(own))

    def of(self, source: Size) -> Size:
        """H and W that a picture of this size gets."""
        return self.size or self.scaled(source)

    def scaled(self, source: Size) -> Size:
        """H and W of the whole picture after scaling, before grey is added or edges are cut."""
        if self.shorter_side is not None:
            return tuple(self.shorter_side * side // min(source)  # type: ignore[return-value]
                         for side in source)
        if self.size is None or self.size == source or self.fit == "stretch":
            return self.size or source
        sides = [wanted / own for wanted, own in zip(self.size, source, strict=True)]
        scale = min(sides) if self.fit == "pad" else max(sides)
        return max(1, round(source[0] * scale)), max(1, round(source[1] * scale))

    def _placed(self, picture: Tensor, size: Size) -> Tensor:
        top, left = ((wanted - own) // 2 for wanted, own in zip(size, size_of(picture),
                                                                strict=True))
        bottom = size[0] - picture.shape[1] - top
        right = size[1] - picture.shape[2] - left
        return F.pad(picture, (left, right, top, bottom), value=PADDING)  # negative ones cut


def _interpolate(frame: Tensor, size: Size, mode: str) -> Tensor:
    resized = F.interpolate(frame[None], size=size, mode=mode, antialias=mode != "nearest")[0]
    return resized.clamp_(0, 1)  # the filter's weights add up to 1 only up to rounding
