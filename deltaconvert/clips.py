"""Where frames come from: video files, pictures, and clips made on the spot.

`open_clip` turns what a user names into a `Clip`: an iterable of RGB frames that starts
anew each time it is iterated. PyAV decodes videos and pictures alike; it is imported when
a file is opened, so that neither the package nor a synthetic clip needs it.
"""

from __future__ import annotations

import glob
import io
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

Size = tuple[int, int]
Item = TypeVar("Item")

PICTURE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
NOT_A_SOURCE = "A clip is a video file, a folder or glob of pictures, or the word 'synthetic'"


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
        return f"Clip({self.name!r}, {_hxw(self.size)}, fps={self.fps})"

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
        _require_int("start", self.start, least=0)
        _require_int("stride", self.stride, least=1)
        if self.frames is not None:
            _require_int("frames", self.frames, least=1)

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


def open_clip(
    source: str | os.PathLike[str],
    *,
    size: Size | None = None,
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
        size: H and W that frames are resized to (bilinear, antialiased). Default: the
            source's own; 360x640 for `synthetic`.
        frames: most frames to take. Default: all of them; 60 for `synthetic`.
        start: index of the first frame to take.
        stride: take every `stride`-th frame.
        seed, active_share, objects, noise: of `synthetic` only, see there.

    Raises:
        InputError: the source is missing, empty, or neither video nor pictures; an
            argument makes no sense; an option of `synthetic` is given for a file.
    """
    source = os.fspath(source)
    own = _without_none(active_share=active_share, objects=objects, noise=noise)
    word, _, options = source.partition(":")
    if word == "synthetic":
        shared = _without_none(size=size, frames=frames, start=start, stride=stride, seed=seed)
        return synthetic(**{**shared, **own, **_synthetic_options(options)})
    if own:
        raise InputError(f"{', '.join(own)}: only for the source 'synthetic', not for {source!r}")
    checked = None if size is None else _checked_size(size)
    selection = Selection(start, stride, frames)
    return _open_files(Path(source).expanduser(), checked, selection)


def _open_files(path: Path, size: Size | None, selection: Selection) -> Clip:
    if path.is_dir():
        return _picture_clip(path, _pictures_in(path), size, selection)
    if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES:
        return _picture_clip(path, [path], size, selection)
    if path.is_file():
        return _video_clip(path, size, selection)
    if glob.has_magic(str(path)):
        return _picture_clip(path, _pictures_like(str(path)), size, selection)
    raise InputError(f"no such file or folder: {path}. {NOT_A_SOURCE}")


def _without_none(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _require_int(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _checked_size(size: Size, *, least: int = 1) -> Size:
    if len(size) != 2 or not all(type(extent) is int and extent >= least for extent in size):
        raise InputError(
            f"size must be (height, width), two whole numbers of at least {least} px, got {size!r}"
        )
    return (size[0], size[1])


def _hxw(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _size_of(frame: Tensor) -> Size:
    return (frame.shape[-2], frame.shape[-1])


def _resized(frame: Tensor, size: Size | None) -> Tensor:
    if size is None or size == _size_of(frame):
        return frame
    resized = F.interpolate(frame[None], size=size, mode="bilinear", antialias=True)[0]
    return resized.clamp_(0, 1)  # the filter's weights add up to 1 only up to rounding


# --- reading files: videos and pictures, through PyAV -----------------------------------


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"reading videos and pictures needs PyAV ({error}). Do: pip install av"
        ) from error
    return av


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and first video stream of a file; every failure is an `InputError`."""
    av = _import_av()
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


def _tensor(frame: VideoFrame) -> Tensor:
    """A decoded frame as `[3, H, W]`, upright: cameras store a turn beside the picture."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    upright = torch.rot90(pixels, round(frame.rotation / 90), (1, 2))
    return upright.contiguous().float().div_(255)


# --- video files ------------------------------------------------------------------------


def _video_clip(path: Path, size: Size | None, selection: Selection) -> Clip:
    source_size, rate = _probe_video(path)

    def frames() -> Iterator[Tensor]:
        return (_resized(f, size) for f in _video_tensors(path, source_size, selection))

    return Clip(
        path.name,
        size or source_size,
        frames,
        fps=rate / selection.stride if rate else None,
        length=lambda: _count_video(path, selection),
    )


def _probe_video(path: Path) -> tuple[Size, float]:
    """H and W of the first frame, and frames a second (0 where the file does not say)."""
    with _opened(path, "video") as (_, stream):
        # The average rate in an AVI counts fields and empty frames; FFmpeg's guess does not.
        rate = float(stream.guessed_rate or stream.average_rate or 0)
    decoded = _decoded(path)
    first = next(decoded, None)
    decoded.close()
    if first is None:
        raise InputError(f"{path} holds a video without frames")
    return _size_of(_tensor(first)), rate


def _count_video(path: Path, selection: Selection) -> int | None:
    try:
        with _opened(path, "video") as (container, stream):
            packets = sum(1 for p in container.demux(stream) if p.size and not p.is_discard)
    except InputError:
        return None  # iterating says why, behind the frames that come before the break
    return selection.count_of(packets)


def _video_tensors(path: Path, size: Size, selection: Selection) -> Iterator[Tensor]:
    number = None
    for number, frame in selection.of(enumerate(_decoded(path))):
        tensor = _tensor(frame)
        if _size_of(tensor) != size:
            raise InputError(
                f"{path}: frame {number} is {_hxw(_size_of(tensor))}, the first one is "
                f"{_hxw(size)} (height x width). Cut the video there, or take fewer frames"
            )
        yield tensor
    if number is None:
        raise InputError(f"{path} ends before frame {selection.start}: choose a smaller start")


def _decoded(path: Path) -> Generator[VideoFrame, None, None]:
    """Every frame of a video; `InputError` where it breaks off.

    A damaged frame in the middle is patched up by FFmpeg, as in any player.
    """
    av = _import_av()
    number, end, last = 0, 0, None
    with _opened(path, "video") as (container, stream):
        try:
            for packet in container.demux(stream):
                if packet.size:  # the last one is empty and only flushes the decoder
                    last, end = packet, max(end, _end(packet))
                for frame in packet.decode():
                    yield frame
                    number += 1
        except av.error.FFmpegError as error:
            raise _broken(path, number, str(error.strerror)) from error
        if number and (_is_cut(last) or _is_cut_avi(path) or _is_short(container, stream, end)):
            raise _broken(path, number, "the file was cut off")


def _broken(path: Path, number: int, why: str) -> InputError:
    if number == 0:
        return InputError(f"{path} cannot be read as a video: {why}")
    return InputError(
        f"{path} breaks off after {number} frames: {why}. Repair the file, or take fewer frames"
    )


# FFmpeg reports most files that were cut off, an interrupted download say, as if they ended
# there, and then half a clip would be taken for a whole one. Formats give it away in
# different places; each of the next three knows one of them.


def _is_cut(last: Packet[VideoStream] | None) -> bool:
    """MP4 and MOV: the last packet is shorter than the file's own table says."""
    return last is not None and last.is_corrupt


def _is_cut_avi(path: Path) -> bool:
    """AVI: the RIFF header's size goes beyond the end of the file."""
    with open(path, "rb") as file:
        head = file.read(12)
    size = int.from_bytes(head[4:8], "little")
    # A recorder that writes to a pipe never learns the size and leaves 0 or all ones.
    known = head[:4] == b"RIFF" and head[8:] == b"AVI " and size < 0xFFFFFFFF
    return known and size + 8 > path.stat().st_size


def _is_short(container: InputContainer, stream: VideoStream, end: int) -> bool:
    """Matroska and others: the last packet ends well before the duration in the header."""
    tick_s = float(stream.time_base or 0)
    duration_s = (stream.duration or 0) * tick_s
    if not duration_s and len(container.streams) == 1:  # else it may be the sound's
        duration_s = (container.duration or 0) / 1e6
    missing_s = duration_s - (end - (stream.start_time or 0)) * tick_s
    return end > 0 and missing_s > max(0.5, 0.1 * duration_s)


def _end(packet: Packet[VideoStream]) -> int:
    """When a packet's frame is over, in ticks of its stream; 0 without a timestamp."""
    return 0 if packet.pts is None else packet.pts + (packet.duration or 0)


# --- folders and globs of pictures ------------------------------------------------------


def natural_key(path: Path) -> list[str | int]:
    """Sort key that compares runs of digits as numbers: `f9.png` before `f10.png`."""
    parts = re.split(r"(\d+)", path.as_posix().casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _pictures_in(folder: Path) -> list[Path]:
    visible = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    return _only_pictures(visible, f"the folder {folder}")


def _pictures_like(pattern: str) -> list[Path]:
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
    return _only_pictures([p for p in matches if p.is_file()], f"the pattern {pattern}")


def _only_pictures(files: Sequence[Path], where: str) -> list[Path]:
    pictures = [p for p in files if p.suffix.lower() in PICTURE_SUFFIXES]
    if pictures:
        return sorted(pictures, key=natural_key)
    kinds = Counter(p.suffix.lower() or "no suffix" for p in files).most_common(5)
    found = ", ".join(f"{number} x {kind}" for kind, number in kinds) or "no files"
    raise InputError(
        f"no pictures in {where}, found: {found}. Pictures end in "
        f"{', '.join(sorted(PICTURE_SUFFIXES))}"
    )


def _picture_clip(
    source: Path, pictures: Sequence[Path], size: Size | None, selection: Selection
) -> Clip:
    taken = list(selection.of(pictures))
    if not taken:
        raise InputError(
            f"{source} has {len(pictures)} pictures, none from index {selection.start} on: "
            "choose a smaller start"
        )
    source_size = _size_of(_read_picture(taken[0]))

    def frames() -> Iterator[Tensor]:
        return (_resized(f, size) for f in _picture_tensors(taken, source_size))

    name = source.name or str(source.resolve())
    return Clip(name, size or source_size, frames, length=lambda: len(taken))


def _picture_tensors(pictures: Sequence[Path], size: Size) -> Iterator[Tensor]:
    for path in pictures:
        picture = _read_picture(path)
        if _size_of(picture) != size:
            raise InputError(
                f"pictures of different sizes: {path} is {_hxw(_size_of(picture))}, "
                f"{pictures[0]} is {_hxw(size)} (height x width). Frames of one clip have "
                "one size: take the odd one out, or resize it"
            )
        yield picture


def _read_picture(path: Path) -> Tensor:
    with _opened(path, "picture") as (container, stream):
        # Otherwise half a JPEG is patched up with grey.
        stream.codec_context.options = {"err_detect": "explode"}
        frame = next(container.decode(stream), None)
        if frame is None:
            raise InputError(f"{path} cannot be read as a picture: it ends before its pixels")
        return _tensor(frame)


# --- synthetic clips --------------------------------------------------------------------

# Above this share, objects that stay clear of each other no longer fit; the background
# itself moves instead.
MOST_OBJECTS_SHARE = 0.6
SHARE_PER_OBJECT = 0.025
LEAST_OBJECT_PX = 12

_OPTIONS: dict[str, Callable[[str], Any]] = {
    "size": lambda text: tuple(int(extent) for extent in text.lower().split("x")),
    "frames": int,
    "active_share": float,
    "objects": int,
    "noise": float,
    "seed": int,
    "start": int,
    "stride": int,
}


def _synthetic_options(text: str) -> dict[str, Any]:
    """The options behind `synthetic:`, as `name=value,name=value`."""
    options = {}
    for item in filter(None, text.split(",")):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in _OPTIONS:
            raise InputError(f"synthetic has no option {name!r}; it has {', '.join(_OPTIONS)}")
        try:
            options[name] = _OPTIONS[name](value)
        except ValueError:
            example = "360x640" if name == "size" else "a number"
            raise InputError(f"synthetic: {name} must be {example}, got {value!r}") from None
    return options


def synthetic(
    size: Size = (360, 640),
    frames: int = 60,
    *,
    active_share: float = 0.05,
    objects: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    start: int = 0,
    stride: int = 1,
) -> Clip:
    """A static camera's clip: textured objects move over a textured background.

    Objects are opaque and finely grained, move in straight lines by whole pixels and
    bounce; each keeps to its own part of the picture, so that none hides another. The
    background has structure from single pixels up to a third of the picture. Frames are
    made one at a time and depend on nothing but the arguments.

    Args:
        size: H and W in pixels, each at least 16.
        frames: number of frames.
        active_share: share of the pixels, 0..1, that differ from the frame before (at
            stride 1 and without noise): where objects are or have just been. 0 gives
            frames that are all equal. Above 0.6 there are no objects: a band of the
            background of that share moves instead, all of it at 1.
        objects: how many; default one for every 2.5 % of `active_share`, at least one.
        noise: standard deviation of the sensor noise added to every value, in units of
            the full range; at 0, pixels that no object touches are equal to the bit.
        seed: another seed is another clip.
        start, stride: begin at that moment, and take every `stride`-th.

    Raises:
        InputError: an argument makes no sense, or objects this small or large do not fit.
    """
    checked = _checked_size(size, least=16)
    _require_int("frames", frames, least=1)
    _require_int("seed", seed, least=0)
    selection = Selection(start, stride, frames)
    _check_share(active_share, objects)
    if not 0 <= noise < math.inf:
        raise InputError(f"noise must be a standard deviation of at least 0, got {noise!r}")
    scene = _Scene.make(checked, active_share, objects, noise, seed)
    return Clip(
        "synthetic", checked, lambda: map(scene.frame, selection.of(count())), length=lambda: frames
    )


def _check_share(active_share: float, objects: int | None) -> None:
    if not 0 <= active_share <= 1:
        raise InputError(f"active_share must be between 0 and 1, got {active_share!r}")
    if objects is None:
        return
    _require_int("objects", objects, least=1)
    if not 0 < active_share <= MOST_OBJECTS_SHARE:
        raise InputError(
            f"objects={objects} needs an active_share over 0 and at most {MOST_OBJECTS_SHARE}, "
            f"got {active_share!r}: leave objects out"
        )


@dataclass(frozen=True)
class _Thing:
    """One moving object; its cell is the part of the picture that it keeps to."""

    texture: Tensor  # [3, h, w]
    shape: Tensor  # bool [h, w]
    corner: tuple[int, int]  # of the cell
    room: tuple[int, int]  # px that the object can travel in its cell
    step: tuple[int, int]  # px a frame
    phase: tuple[int, int]

    def draw(self, frame: Tensor, time: int) -> None:
        top, left = (
            corner + _bounce(phase + time * step, room)
            for corner, room, step, phase in zip(
                self.corner, self.room, self.step, self.phase, strict=True
            )
        )
        height, width = self.shape.shape
        window = frame[:, top : top + height, left : left + width]
        window.copy_(torch.where(self.shape, self.texture, window))


def _bounce(distance: int, room: int) -> int:
    """Position after travelling `distance` to and fro between 0 and `room`."""
    there = distance % (2 * room)
    return min(there, 2 * room - there)


@dataclass(frozen=True)
class _Scene:
    background: Tensor  # [3, H, W]
    things: tuple[_Thing, ...]
    moving_rows: int  # rows of the background that move
    noise: float
    seed: int

    @staticmethod
    def make(
        size: Size, active_share: float, objects: int | None, noise: float, seed: int
    ) -> _Scene:
        rng = _rng(seed)
        background = _background(size, rng)
        if active_share > MOST_OBJECTS_SHARE:
            return _Scene(background, (), round(active_share * size[0]), noise, seed)
        number = objects or max(1, round(active_share / SHARE_PER_OBJECT))
        cells = _cells(size, number) if active_share else []
        pixels = active_share * size[0] * size[1] / number
        things = tuple(_thing(cell, pixels, rng) for cell in cells)
        return _Scene(background, things, 0, noise, seed)

    def frame(self, time: int) -> Tensor:
        frame = self.background.clone()
        if self.moving_rows:
            moved = self.background[:, : self.moving_rows].roll(_BACKGROUND_STEP * time, 2)
            frame[:, : self.moving_rows] = moved
        for thing in self.things:
            thing.draw(frame, time)
        if self.noise:
            # A generator a frame: any frame can be made without those before it.
            grain = torch.randn(frame.shape, generator=_rng(self.seed, time + 1))
            frame.add_(grain, alpha=self.noise).clamp_(0, 1)
        return frame


_BACKGROUND_STEP = 3  # px a frame


def _rng(seed: int, part: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + part) % 2**63)


def _integer(below: int, rng: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=rng))


def _grain(size: Size, cell_px: int, rng: torch.Generator) -> Tensor:
    """Smooth random structure, `[3, H, W]`, 0..1, with features of about `cell_px`."""
    grid = torch.rand(3, *(math.ceil(n / cell_px) + 1 for n in size), generator=rng)
    return F.interpolate(grid[None], size=size, mode="bilinear", align_corners=True)[0]


def _background(size: Size, rng: torch.Generator) -> Tensor:
    # The weights add up to 1, so nothing is clipped, and clipped pixels would be equal.
    scales = ((max(size) // 3, 0.4), (max(size) // 12, 0.25), (8, 0.2))
    structure = sum((w * _grain(size, max(px, 1), rng) for px, w in scales), torch.zeros(()))
    return structure + 0.15 * torch.rand(3, *size, generator=rng)


def _texture(size: Size, rng: torch.Generator) -> Tensor:
    colour = torch.rand(3, 1, 1, generator=rng)
    return 0.35 * colour + 0.25 * _grain(size, 6, rng) + 0.4 * torch.rand(3, *size, generator=rng)


def _cells(size: Size, number: int) -> list[tuple[int, int, int, int]]:
    """Divide the picture into `number` parts of equal area: top, left, height, width of each.

    The parts are as square as they come: rows of cells, a row's height in proportion to
    the cells in it.
    """
    rows = min(number, max(1, round(math.sqrt(number * size[0] / size[1]))))
    cells = []
    for row in range(rows):
        first, last = row * number // rows, (row + 1) * number // rows
        top, bottom = size[0] * first // number, size[0] * last // number
        lefts = [size[1] * i // (last - first) for i in range(last - first + 1)]
        cells += [(top, left, bottom - top, right - left) for left, right in pairwise(lefts)]
    return cells


def _thing(cell: tuple[int, int, int, int], pixels: float, rng: torch.Generator) -> _Thing:
    """An object that, with the trace of its last step, covers `pixels` pixels."""
    top, left, *extent = cell
    # Odd steps: an even one can be undone exactly where the object turns, and it would
    # stand still for a frame.
    step = tuple(2 * _integer(n // 200 + 1, rng) + 1 for n in extent)
    shape = _shape_covering(pixels, (extent[0], extent[1]), (step[0], step[1]))
    room = tuple(n - m for n, m in zip(extent, shape.shape, strict=True))
    phase = (_integer(2 * room[0], rng), _integer(2 * room[1], rng))
    texture = _texture(_size_of(shape), rng)
    return _Thing(texture, shape, (top, left), (room[0], room[1]), (step[0], step[1]), phase)


def _shape_covering(pixels: float, cell: Size, step: tuple[int, int]) -> Tensor:
    low, high = 0.0, min((n - 1) / n for n in cell)
    if pixels < LEAST_OBJECT_PX or _trace_px(_rounded_box(high, cell), step) < pixels:
        raise InputError(
            f"an object of {pixels:.0f} pixels does not fit {_hxw(cell)} pixels: choose "
            "another number of objects, another active_share or a larger size"
        )
    for _ in range(16):
        middle = (low + high) / 2
        if _trace_px(_rounded_box(middle, cell), step) < pixels:
            low = middle
        else:
            high = middle
    return _rounded_box(high, cell)


def _rounded_box(scale: float, cell: Size) -> Tensor:
    """Mask of a box with round corners (|x|^4 + |y|^4 <= 1), `scale` times the cell's size."""
    y, x = (
        (torch.arange(n) - (n - 1) / 2).mul(2 / (scale * extent)).pow(4)
        for n, extent in ((math.ceil(scale * extent), extent) for extent in cell)
    )
    return y[:, None] + x <= 1


def _trace_px(shape: Tensor, step: tuple[int, int]) -> int:
    """Pixels that the shape covers before or after a step."""
    dy, dx = step
    both = shape[dy:, dx:] & shape[: max(0, shape.shape[0] - dy), : max(0, shape.shape[1] - dx)]
    return 2 * int(shape.sum()) - int(both.sum())
