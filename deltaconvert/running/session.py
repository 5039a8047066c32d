"""A run: batches through streams, timed, and what comes out handed on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltaconvert.checking.dense import StoredModel
from deltaconvert.errors import InputError
from deltaconvert.module import DeltaModule
from deltaconvert.outputs import of_lane
from deltaconvert.running.batches import Batch, Picture
from deltaconvert.running.recomputed import Recomputed
from deltaconvert.running.summary import ClipSummary, DenseSpeed, RunSummary, Times
from deltaconvert.stream import Stream
from deltaconvert.summary import settings_in_words
from deltaconvert.validate import timed
from deltaconvert.work import Work, ratio


@dataclass(frozen=True)
class Done:
    """One frame that was computed.

    Args:
        picture: which one.
        outputs: the model's, for a batch of this frame alone.
        lane: of the batch it was in.
        ms: time of the call, for all its lanes.
        update_ratio: mean over the nodes of the share of their pixels that changed.
    """

    picture: Picture
    outputs: Any
    lane: int
    ms: float
    update_ratio: float


class Session:
    """Streams of one model, run over batches, and the figures.

    Args:
        delta: the converted model.
        dense_every: run the dense network behind every so many-th call of a stream; 0 never.
        recomputed: keeps what was recomputed, where an overlay wants it.
    """

    def __init__(self, delta: DeltaModule, dense_every: int = 0,
                 recomputed: Recomputed | None = None) -> None:
        """Start without streams."""
        if dense_every < 0:
            raise InputError(f"dense_every={dense_every}: give 0 for never, or more.")
        self.delta, self.dense_every, self.recomputed = delta, dense_every, recomputed
        self.dense = StoredModel(delta) if dense_every else None
        self.streams: dict[int, Stream] = {}
        self.calls: dict[int, int] = {}
        self.work = Work()
        self.ms: list[float] = []
        self.ratios: list[float] = []
        self.first_ms: list[float] = []
        self.later_ms: list[float] = []
        self.sampled: list[tuple[float, float]] = []
        self.waiting_ms: list[float] = []
        self.post_ms: list[float] = []
        self.frames: dict[int, int] = {}
        self._begin = time.perf_counter()

    def run(self, batch: Batch) -> list[Done]:
        """Compute one batch.

        Raises:
            FrameError: the model does not take it.
        """
        stream = self._stream(batch.stream)
        if self.recomputed is not None:
            self.recomputed.begin()
        outputs, ms = timed(lambda: stream(batch.frame), [batch.frame])
        call = self.calls[batch.stream]
        self.calls[batch.stream] = call + 1
        update_ratio = self._count(stream, call, ms)
        if self.dense is not None and call > 0 and (call - 1) % self.dense_every == 0:
            self._sample(batch, ms)
        lanes = len(batch.pictures)
        return [Done(picture, of_lane(outputs, lane, lanes), lane, ms, update_ratio)
                for lane, picture in enumerate(batch.pictures) if picture is not None]

    def _stream(self, index: int) -> Stream:
        if index not in self.streams:
            self.streams[index], self.calls[index] = self.delta.new_stream(), 0
            self.streams[index].observe(self.recomputed)
        return self.streams[index]

    def _count(self, stream: Stream, call: int, ms: float) -> float:
        assert stream.program is not None
        frame = Work()
        frame.add(stream)
        update_ratio = frame.mean_ratio(stream.program.nodes)
        self.ms.append(ms)
        self.ratios.append(update_ratio)
        (self.later_ms if call else self.first_ms).append(ms)
        if call:
            self.work.add(stream)
        return update_ratio

    def _sample(self, batch: Batch, delta_ms: float) -> None:
        dense = self.dense
        assert dense is not None
        with torch.inference_mode():
            if not self.sampled:  # the first call allocates, and is nobody's usual one
                dense(batch.frame)
            _, ms = timed(lambda: dense(batch.frame), [batch.frame])
        self.sampled.append((ms, delta_ms))

    def finished(self, done: Sequence[Done]) -> None:
        """Say that frames are dealt with, whatever was to be done with them: they count."""
        for one in done:
            self.frames[one.picture.clip] = self.frames.get(one.picture.clip, 0) + 1

    def timing(self, spent: list[float], call: Callable[[], Any]) -> Any:
        """Add the time of a call, in milliseconds, to a list."""
        start = time.perf_counter()
        try:
            return call()
        finally:
            spent.append(1e3 * (time.perf_counter() - start))

    def summary(self, clips: Sequence[ClipSummary], together: str,
                interrupted: bool = False) -> RunSummary:
        """Sum up.

        Raises:
            InputError: nothing was computed.
        """
        stream = next(iter(self.streams.values()), None)
        if stream is None or stream.program is None:
            raise InputError("no frame was computed, so there is nothing to sum up.")
        nodes, total = stream.program.nodes, self.work.total()
        return RunSummary(
            clips=list(clips), together=together, calls=len(self.ms),
            seconds=time.perf_counter() - self._begin, model=Times.of(self.later_ms),
            first_ms=self.first_ms, waiting_ms=_median(self.waiting_ms),
            post_ms=_median(self.post_ms), dense=self._dense_speed(),
            update_ratio_input=self.work.input_ratio(nodes),
            update_ratio_nodes=self.work.mean_ratio(nodes),
            needed=ratio(total.needed, total.dense), scheduled=ratio(total.scheduled, total.dense),
            stages=self.work.stages(nodes),
            state_bytes=sum(s.state_bytes for s in self.streams.values()),
            settings=settings_in_words(stream.program), threads=torch.get_num_threads(),
            interrupted=interrupted, ms=self.ms, ratios=self.ratios)

    def _dense_speed(self) -> DenseSpeed | None:
        if not self.sampled:
            return None
        dense, delta = zip(*self.sampled, strict=True)
        return DenseSpeed(len(dense), statistics.median(dense), statistics.median(delta))


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0
