"""A whole network on a clip, converted beside dense: checked first, then timed in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deltaconvert.bench import machine, memory
from deltaconvert.bench.outputs import relative_rms, rounding_error
from deltaconvert.bench.peers import EAGER, OPENVINO_BF16, Peer, Peers, allowed_rounding
from deltaconvert.bench.profile import Kind, profile
from deltaconvert.bench.timing import Spread, Turn, flat, ratios, take_turns
from deltaconvert.checking.fidelity import Judge
from deltaconvert.checking.report import Report
from deltaconvert.errors import CheckError, InputError
from deltaconvert.module import DeltaModule
from deltaconvert.outputs import tensors
from deltaconvert.state import NodeStats
from deltaconvert.stream import Stream
from deltaconvert.tune import Tuning, tune
from deltaconvert.validate import validate
from deltaconvert.words import count

Say = Callable[[str], None]

CONVERTED = "converted"
ROUNDS = 5
DENSE_UNTIMED, DENSE_TIMED = 1, 2
UNTIMED = 2  # converted frames at the beginning of a block
FEWEST_FRAMES = 4
STILL_UNTIMED, STILL_TIMED, STILL_ROUNDS = 3, 10, 3
UNRELATED_UNTIMED, UNRELATED_TIMED, UNRELATED_ROUNDS = 1, 2, 3
# What `unrelated` needs: the frames of its rounds, and one to begin with.
UNRELATED_FRAMES = UNRELATED_ROUNDS * (UNRELATED_UNTIMED + UNRELATED_TIMED) + 1
PROFILED_FRAMES = 8
PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16",
              torch.float16: "fp16"}


@dataclass(frozen=True)
class Case:
    """What is measured.

    Args:
        model: the dense network, in eval mode.
        delta: the same, converted.
        frames: a clip, ``[N, C, H, W]`` each; at least four.
        unrelated: `UNRELATED_FRAMES` pictures of that shape that have nothing in common;
            none to leave that out.
        peers: dense runtimes, prepared for this model and shape.
    """

    model: nn.Module
    delta: DeltaModule
    frames: Sequence[Tensor]
    unrelated: Sequence[Tensor]
    peers: Peers


@dataclass(frozen=True)
class Result:
    """What was measured; times in ms a frame. `to_dict` names the figures.

    Args:
        precision: in which the converted network keeps most of its values.
        report: of the check.
        search: of the thresholds, where one was made.
        times: by name, `CONVERTED` and the dense runtimes: ms of each round.
        work: of the timed frames, added up.
        kinds: where a frame's time goes.
        peers: the dense runtimes.
        peak_bytes: of the converted network, as `Peer.peak_bytes`.
        still, unrelated: times of the converted network and of eager, likewise.
        others_share: of the cores' time while the clip was timed, what other processes took.
        unrelated_error: of the first unrelated frame, relative RMS.
        dense_rounding: where the settings name a precision, what PyTorch's dense network is off
            in it, relative RMS.
    """

    precision: str
    report: Report
    search: Tuning | None
    times: dict[str, list[list[float]]]
    work: NodeStats
    kinds: list[Kind]
    peers: Peers
    peak_bytes: int | None
    still: dict[str, list[list[float]]]
    others_share: float | None
    unrelated: dict[str, list[list[float]]] = field(default_factory=dict)
    unrelated_error: float = 0.0
    dense_rounding: float | None = None

    def median(self, name: str) -> float:
        """Return the median of a runtime's times."""
        return statistics.median(flat(self.times[name]))

    @property
    def best_dense_fp32(self) -> str:
        """The fastest of the dense runtimes in float32."""
        return min((p.name for p in self.peers.ready if p.precision == "fp32"), key=self.median)

    @property
    def needed_share(self) -> float:
        """Multiply-adds that the timed frames needed, of the dense ones."""
        return self.work.needed / self.work.dense if self.work.dense else 0.0

    @property
    def scheduled_share(self) -> float:
        """Multiply-adds that were computed in them."""
        return self.work.scheduled / self.work.dense if self.work.dense else 0.0

    def speedup_over(self, name: str) -> float:
        """Return a dense runtime's median over the converted network's."""
        return self.median(name) / self.median(CONVERTED)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; ``docs/benchmarks.md`` says what each figure is."""
        worst = max(self.report.outputs, key=lambda o: o.worst_relative_rms)
        best = self.best_dense_fp32
        return {
            "speedup_over_best_dense_fp32": self.speedup_over(best),
            "best_dense_fp32": best,
            "speedup_over_eager": self.speedup_over(EAGER),
            "speedup_over_openvino_bf16": self._over_openvino_bf16(),
            "speedup_over": {p.name: self.speedup_over(p.name) for p in self.peers.ready},
            "speedup_spread": {p.name: ratios(self.times[p.name], self.times[CONVERTED]).to_dict()
                               for p in self.peers.ready},
            "ms": self.median(CONVERTED), "fps": 1e3 / Spread.of(
                flat(self.times[CONVERTED])).mean,
            "efficiency": self.needed_share * self.speedup_over(best),
            "efficiency_over_eager": self.needed_share * self.speedup_over(EAGER),
            "fidelity_rms": worst.worst_relative_rms, "frozen_rms": worst.frozen_relative_rms,
            "dense_rounding_rms": self.dense_rounding,
            "needed_share": self.needed_share, "scheduled_share": self.scheduled_share,
            "update_ratio_input": self.report.update_ratio_input,
            "update_ratio_nodes": self.report.update_ratio_nodes,
            "state_bytes": self.report.state_bytes,
            "activation_bytes": self.report.activation_bytes,
            "state_over_activations": self.report.state_bytes / self.report.activation_bytes,
            "peak_memory_bytes": {CONVERTED: self.peak_bytes,
                                  **{p.name: p.peak_bytes for p in self.peers.ready}},
            "still": _beside_eager(self.still),
            "unrelated": _beside_eager(self.unrelated) | (
                {"error_rms": self.unrelated_error} if self.unrelated else {}),
            "runtimes": self._runtimes(),
            "skipped": self.peers.skipped,
            "others_cpu_share": self.others_share,
            "kinds": [{"kind": k.name, "nodes": k.nodes, "ms": k.ms, "share": k.share,
                       "needed_multiply_adds": k.needed, "gigaflops": k.gigaflops}
                      for k in self.kinds],
            "threshold_search": None if self.search is None else self.search.to_dict(),
            "check": self.report.to_dict(),
        }

    def _over_openvino_bf16(self) -> float | None:
        there = any(peer.name == OPENVINO_BF16 for peer in self.peers.ready)
        return self.speedup_over(OPENVINO_BF16) if there else None

    def _runtimes(self) -> dict[str, Any]:
        about: dict[str, dict[str, Any]] = {CONVERTED: {"precision": self.precision}}
        about |= {p.name: {"precision": p.precision, "error_rms": p.error}
                  for p in self.peers.ready}
        for name, said in about.items():
            spread = Spread.of(flat(self.times[name]))
            said |= {"ms": spread.to_dict(), "fps": 1e3 / spread.mean,
                     "rounds_ms": self.times[name]}
        return about


def _beside_eager(times: dict[str, list[list[float]]]) -> dict[str, float]:
    if not times:
        return {}
    ms, dense_ms = (statistics.median(flat(times[name])) for name in (CONVERTED, EAGER))
    return {"ms": ms, "eager_ms": dense_ms, "over_eager": ms / dense_ms}


def measure(case: Case, *, judge: Judge | None = None, tuning_rounds: int = 2,
            tolerance: float | None = None, rounds: int = ROUNDS,
            say: Say = lambda text: None) -> Result:
    """Find thresholds where asked to, check, and only then time.

    Thresholds are found in the model's own precision, whatever `Config.dtype` says: rounding is
    no error of theirs. The check allows for both.

    Args:
        case: what to measure.
        judge: take the thresholds that save most of what it allows, a `fidelity.Truth` say, in
            the place of those that ``case.delta`` has.
        tuning_rounds: see `tune`; with 0, one threshold for all nodes.
        tolerance: for the check, as in `validate`; a judge brings its own.
        rounds: how often the runtimes take turns; fewer on a short clip.
        say: told what is going on.

    Raises:
        CheckError: the converted network does not do what it should; nothing was timed.
        InputError: too few frames.
    """
    check_length(case.frames)
    delta, search, rounding = case.delta, None, _dense_rounding(case)
    if judge is not None:
        say("searching for thresholds")
        search = tune(delta, case.frames, judge=judge, rounds=tuning_rounds, say=say)
        delta, tolerance = search.delta, judge.tolerance
        if tolerance is not None and delta.config.dtype is not None:
            tolerance += allowed_rounding(rounding)
    say("checking")
    report = validate(case.model, delta, case.frames, tolerance=tolerance,
                      law_every=max(10, len(case.frames) // 2))
    if not report.passed:
        raise CheckError(f"the check failed, so nothing was timed.\n{report}")
    say("timing")
    peak = _peak_bytes(delta, case.frames)
    others = machine.Others()
    times, work, stream = _on_clip(case, delta, rounds)
    busy = others.share()
    still = _still(case, stream)
    kinds = profile(_at_start(delta, case.frames[0]), case.frames[1:PROFILED_FRAMES + 1])
    unrelated, error = _unrelated(case, delta) if case.unrelated else ({}, 0.0)
    return Result(_precision(stream), report, search, times, work, kinds, case.peers, peak, still,
                  busy, unrelated, error, rounding)


def _dense_rounding(case: Case) -> float | None:
    name = case.delta.config.dtype
    return name and rounding_error(case.model, case.frames[0], getattr(torch, name))


def _precision(stream: Stream) -> str:
    assert stream.program is not None
    nbytes: dict[torch.dtype, int] = {}
    for node in stream.program.nodes:
        spec = node.about.output
        if spec.shape is not None and spec.dtype is not None:
            nbytes[spec.dtype] = nbytes.get(spec.dtype, 0) + math.prod(spec.shape)
    dtype = max(nbytes, key=lambda kind: nbytes[kind])
    return PRECISIONS.get(dtype, str(dtype).removeprefix("torch."))


def check_length(frames: Sequence[Tensor]) -> None:
    """Refuse a clip of which too few frames would be timed.

    Raises:
        InputError: saying how many it takes.
    """
    if len(frames) < FEWEST_FRAMES:
        raise InputError(f"the clip has {count(len(frames), 'frame')}: give at least "
                         f"{FEWEST_FRAMES}. The first is computed whole, and two after each pause "
                         "are not timed.")


def _peak_bytes(delta: DeltaModule, frames: Sequence[Tensor]) -> int | None:
    """Return the growth of the process by a converted network: its filters, and a stream."""
    growth = memory.Growth()
    stream = delta.with_config(delta.config).new_stream()
    growth.watch()
    for frame in frames[:FEWEST_FRAMES]:
        stream(frame)
    return growth.bytes()


def _at_start(delta: DeltaModule, first: Tensor) -> Stream:
    stream = delta.new_stream()
    stream(first)
    return stream


def _on_clip(case: Case, delta: DeltaModule, rounds: int
             ) -> tuple[dict[str, list[list[float]]], NodeStats, Stream]:
    """Walk through the clip once, a block of it in each round, beside the dense runtimes."""
    stream, work = _at_start(delta, case.frames[0]), NodeStats()
    rounds = max(1, min(rounds, (len(case.frames) - 1) // (UNTIMED + 1)))
    timed = (len(case.frames) - 1) // rounds - UNTIMED

    def count() -> None:
        for node in stream.last.values():
            work.add(node)

    turns = [_dense_turn(peer, case.frames) for peer in case.peers.ready]
    turns.append(Turn(CONVERTED, _steps(stream, case.frames[1:]), UNTIMED, timed, count))
    return take_turns(turns, rounds), work, stream


def _dense_turn(peer: Peer, frames: Sequence[Tensor]) -> Turn:
    """A dense runtime's block; the frames are laid out for it beforehand, and come around."""
    given = [peer.layout(frame) for frame in frames[:FEWEST_FRAMES]]
    return Turn(peer.name, _steps(peer.run, given, around=True), DENSE_UNTIMED, DENSE_TIMED)


def _steps(call: Callable[[Any], Any], frames: Sequence[Any], around: bool = False
           ) -> Callable[[], Any]:
    """Return what calls with the next frame each time."""
    def order() -> Iterator[Any]:
        while True:
            yield from frames
            if not around:
                return
    following = order()
    return lambda: call(next(following))


def _eager(case: Case) -> Peer:
    return next(peer for peer in case.peers.ready if peer.name == EAGER)


def _still(case: Case, stream: Stream) -> dict[str, list[list[float]]]:
    """Time a frame that is equal to the last."""
    frame = case.frames[-1]
    stream(frame)
    return take_turns([_dense_turn(_eager(case), case.frames),
                       Turn(CONVERTED, lambda: stream(frame), STILL_UNTIMED, STILL_TIMED)],
                      STILL_ROUNDS)


def _unrelated(case: Case, delta: DeltaModule) -> tuple[dict[str, list[list[float]]], float]:
    """Time frames of which everything changes; return the error of one of them, too."""
    first, *others = case.unrelated
    stream = _at_start(delta, case.frames[0])
    with torch.inference_mode():
        expected = tensors(case.model(first))
    error = max((relative_rms(f, e) for f, e in zip(tensors(stream(first)), expected,
                                                    strict=True)), default=0.0)
    turns = [_dense_turn(_eager(case), case.unrelated),
             Turn(CONVERTED, _steps(stream, others), UNRELATED_UNTIMED, UNRELATED_TIMED)]
    return take_turns(turns, UNRELATED_ROUNDS), error
