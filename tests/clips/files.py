"""Videos and pictures for the tests, written with PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from deltaconvert.clips import Clip

HEIGHT, WIDTH = 48, 64


def grey(level: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def noise_picture(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_video(
    path: Path,
    pictures: Sequence[np.ndarray],
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def encoded(picture: np.ndarray, codec: str = "png", pixels: str = "rgb24") -> bytes:
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.time_base = pixels, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def write_picture(path: Path, picture: np.ndarray) -> Path:
    if path.suffix == ".png":
        path.write_bytes(encoded(picture))
    else:
        path.write_bytes(encoded(picture, "mjpeg", "yuvj420p"))
    return path


def levels(clip: Clip) -> list[int]:
    """The grey level of every frame of a clip whose frames have only one."""
    return [round(float(frame.mean()) * 255) for frame in clip]


def truncate(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
