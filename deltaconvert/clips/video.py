"""Clips from video files, and how a file that was cut off gives itself away."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from deltaconvert.clips.clip import Clip, Selection, Size, hxw, size_of
from deltaconvert.clips.decoding import Resize, import_av, opened, to_tensor
from deltaconvert.errors import BrokenClipError, ClipError

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


def video_clip(path: Path, resize: Resize, selection: Selection) -> Clip:
    """The clip of a video file."""
    source_size, rate = _probe_video(path)

    def frames() -> Iterator[Tensor]:
        return map(resize, _video_tensors(path, source_size, selection))

    return Clip(
        path.name,
        resize.of(source_size),
        frames,
        fps=rate / selection.stride if rate else None,
        length=lambda: _count_video(path, selection),
    )


def _probe_video(path: Path) -> tuple[Size, float]:
    """H and W of the first frame, and frames a second (0 where the file does not say)."""
    with opened(path, "video") as (_, stream):
        # The average in an AVI counts fields and empty frames as well; FFmpeg's guess goes by the
        # shortest time between two frames, which may be rare where times differ.
        rates = [stream.guessed_rate, stream.average_rate]
        rate = float(min(filter(None, rates), default=0))
    decoded = _decoded(path)
    first = next(decoded, None)
    decoded.close()
    if first is None:
        raise ClipError(f"{path} holds a video without frames: it may have been cut off. Save "
                        "or download it again")
    return size_of(to_tensor(first)), rate


def _count_video(path: Path, selection: Selection) -> int | None:
    try:
        with opened(path, "video") as (container, stream):
            packets = sum(1 for p in container.demux(stream) if p.size and not p.is_discard)
    except ClipError:
        return None  # iterating says why, behind the frames that come before the break
    return selection.count_of(packets)


def _video_tensors(path: Path, size: Size, selection: Selection) -> Iterator[Tensor]:
    number = None
    for number, frame in selection.of(enumerate(_decoded(path))):
        tensor = to_tensor(frame)
        if size_of(tensor) != size:
            raise BrokenClipError(
                f"{path}: frame {number} is {hxw(size_of(tensor))}, the first one is "
                f"{hxw(size)} (height x width). Cut the video there, or take fewer frames"
            )
        yield tensor
    if number is None:
        raise ClipError(f"{path} ends before frame {selection.start}: choose a smaller start")


def _decoded(path: Path) -> Generator[VideoFrame, None, None]:
    """Every frame of a video; `ClipError` where it breaks off.

    A damaged frame in the middle is patched up by FFmpeg, as in any player.
    """
    av = import_av()
    number, end, last = 0, 0, None
    with opened(path, "video") as (container, stream):
        try:
            for packet in container.demux(stream):
                if packet.size:  # the last one is empty and only flushes the decoder
                    last, end = packet, max(end, _end(packet))
                for frame in packet.decode():
                    yield frame
                    number += 1
        except av.error.FFmpegError as error:
            raise _broken(path, number, str(error.strerror)) from error
        if number and (_is_cut(last) or _is_cut_avi(path) or _is_cut_ts(path)
                       or _is_short(container, stream, end)):
            raise _broken(path, number, "the file was cut off")


def _broken(path: Path, number: int, why: str) -> ClipError:
    if number == 0:
        return ClipError(f"{path} cannot be read as a video: {why}")
    return BrokenClipError(
        f"{path} breaks off after {number} frames: {why}. Repair the file, or take fewer frames"
    )


# FFmpeg reports most files that were cut off, an interrupted download say, as if they ended
# there, and then half a clip would be taken for a whole one. Formats give it away in
# different places; each of the next four knows one of them.


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


# Where packets of MPEG-TS begin, and their size: plain, with a time ahead as on Blu-ray, or with a
# checksum of broadcasting behind.
_TS_PACKETS = ((0, 188), (4, 192), (0, 204))


def _is_cut_ts(path: Path) -> bool:
    """MPEG-TS: the last of its packets, which have one size, is not whole.

    A cut between two packets leaves a stream like any other: nothing says how many there were.
    """
    with open(path, "rb") as file:
        head = file.read(1024)
    size = next((size for start, size in _TS_PACKETS
                 if head[start::size].startswith(b"\x47" * 5)), 1)
    return path.stat().st_size % size != 0


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
