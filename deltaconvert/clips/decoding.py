"""Opening files and decoding frames through PyAV, as videos and pictures both need it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.clips.clip import Size, size_of
from deltaconvert.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


def import_av() -> ModuleType:
    """PyAV, which only files need; `InputError` where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"reading videos and pictures needs PyAV ({error}). Do: pip install av"
        ) from error
    return av


@contextmanager
def opened(path: Path, kind: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and first video stream of a file; every failure is an `InputError`."""
    av = import_av()
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes)")
        with av.open(_source_for_av(path, kind)) as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise InputError(f"{path} holds no {kind} that can be decoded")
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path} cannot be read as a {kind}: {error.strerror}") from error


def _source_for_av(path: Path, kind: str) -> io.BytesIO | str:
    # FFmpeg takes "%03d" in a picture's name for a pattern, and what stands before a colon
    # for a protocol: so pictures go in as bytes, and videos under an explicit protocol.
    return io.BytesIO(path.read_bytes()) if kind == "picture" else f"file:{path}"


def to_tensor(frame: VideoFrame) -> Tensor:
    """A decoded frame as `[3, H, W]`, upright: cameras store a turn beside the picture."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    upright = torch.rot90(pixels, round(frame.rotation / 90), (1, 2))
    return upright.contiguous().float().div_(255)


def resize(frame: Tensor, size: Size | None) -> Tensor:
    """The frame at that size, itself where it has it already or `size` is None."""
    if size is None or size == size_of(frame):
        return frame
    resized = F.interpolate(frame[None], size=size, mode="bilinear", antialias=True)[0]
    return resized.clamp_(0, 1)  # the filter's weights add up to 1 only up to rounding
