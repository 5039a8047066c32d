"""A long run of two threads on two streams: memory, error and neighbours.

    python -m tests.soak --seconds 3600        # make soak
    python -m tests.soak --seconds 60          # shorter

Two threads feed two clips, each with changes of its own, to two streams of one model. Every
so often each thread compares its output with the dense network's, and what the law allows
with what is there. In the end the second half of the run must not hold more memory than the
first, nor be further off, and neither stream may ever have seen the other's frames.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import resource
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import deltaconvert
from deltaconvert.calibrate import batch_norm_statistics
from deltaconvert.checking.dense import StoredModel
from deltaconvert.checking.law import LawChecker
from deltaconvert.checking.output_errors import slope
from deltaconvert.clips import synthetic
from deltaconvert.words import text_table

SIZE = (96, 128)
CHECK_EVERY = 50  # frames
FEWEST_FRAMES = 4 * CHECK_EVERY + 1  # however slow the machine: two errors in each half
CLIP_FRAMES = 400
MOST_GROWTH_BYTES = 16 << 20  # allocators keep some; a frame's maps are 3 MB
MOST_ERROR_GROWTH = 1.5
WARM_UP_SHARE = 0.1


@dataclass
class Seen:
    """What one thread saw."""

    frames: int = 0
    errors: list[float] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    failure: BaseException | None = None


def network() -> nn.Module:
    """A residual network with a gate, BatchNorm statistics from a clip."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16),
                                      nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return torch.relu(x + y * self.gate(y))

    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), Block(),
                          nn.MaxPool2d(2), Block(), nn.Conv2d(16, 8, 1))
    batch_norm_statistics(model, [frame[None] for frame in synthetic(SIZE, 6, seed=9)])
    return model.eval()


def endless(seed: int) -> Iterator[Tensor]:
    """Frames without end: another clip behind each clip, a cut between them."""
    for number in itertools.count():
        clip = synthetic(SIZE, CLIP_FRAMES, active_share=0.05, noise=0.002,
                         seed=1000 * seed + number)
        yield from (frame[None] for frame in clip)


def feed(delta: deltaconvert.DeltaModule, seed: int, until: float, seen: Seen) -> None:
    """One thread: frames into a stream of its own, and a look at it every so often."""
    try:
        stream, checker = delta.new_stream(), LawChecker(delta, each=False)
        dense = StoredModel(delta)
        for frame in endless(seed):
            looks = seen.frames % CHECK_EVERY == 0
            stream.observe(checker if looks else None)
            if looks:
                checker.begin(frame)
            out = stream(frame)
            if looks:
                with torch.inference_mode():
                    expected = dense(frame)
                scale = expected.square().mean().sqrt()
                seen.errors.append(float((out - expected).square().mean().sqrt() / scale))
                seen.breaches += [str(breach) for breach in checker.check()]
            seen.frames += 1
            if time.monotonic() > until and seen.frames >= FEWEST_FRAMES:
                return
    except BaseException as error:
        seen.failure = error


def memory_bytes() -> int:
    """What the process holds now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def soak(seconds: float, threshold: float = 0.02) -> tuple[list[str], list[tuple[str, str]]]:
    """Run for so long, or somewhat longer for the fewest frames.

    Returns:
        What is wrong, and figures to print.
    """
    torch.set_num_threads(1)
    delta = deltaconvert.convert(network(), threshold=threshold, threshold_unit="std", norm="rms")
    warm = delta.new_stream()
    for frame in itertools.islice(endless(7), 3):  # compiles what the cpu backend compiles
        warm(frame)
    begin = time.monotonic()
    seen = [Seen(), Seen()]
    threads = [threading.Thread(target=feed, args=(delta, index, begin + seconds, one))
               for index, one in enumerate(seen)]
    for thread in threads:
        thread.start()
    memory: list[tuple[float, int]] = []
    while any(thread.is_alive() for thread in threads):
        memory.append((time.monotonic() - begin, memory_bytes()))
        time.sleep(min(1.0, seconds / 50))
    return judge(seen, [held for at, held in memory if at > WARM_UP_SHARE * seconds], seconds)


def judge(seen: list[Seen], memory: list[int], seconds: float
          ) -> tuple[list[str], list[tuple[str, str]]]:
    """Compare the halves of a run."""
    wrong = [f"thread {i}: {one.failure!r}" for i, one in enumerate(seen) if one.failure]
    wrong += [f"thread {i}: {b}" for i, one in enumerate(seen) for b in one.breaches[:1]]
    half = len(memory) // 2
    grown = max(memory[half:]) - max(memory[:half])
    if grown > MOST_GROWTH_BYTES:
        wrong.append(f"memory grew by {grown / 1e6:.1f} MB from the first half to the second")
    figures = [("seconds", f"{seconds:.0f}"),
               ("memory, MB", f"{memory[0] / 1e6:.0f} at first, {memory[-1] / 1e6:.0f} at last, "
                              f"{grown / 1e6:+.1f} from half to half")]
    for index, one in enumerate(seen):
        errors = one.errors[1:]
        if len(errors) < 2:
            return [*wrong, f"thread {index}: {one.frames} frames are too few to say"], figures
        first, second = (statistics.fmean(part) for part in
                         (errors[:len(errors) // 2], errors[len(errors) // 2:]))
        if not second <= MOST_ERROR_GROWTH * first or math.isnan(second):
            wrong.append(f"thread {index}: the error grew from {first:.2e} to {second:.2e}")
        figures.append((f"thread {index}", f"{one.frames} frames, {len(one.errors)} looked at, "
                        f"relative RMS error {first:.2e} and {second:.2e} by halves, slope "
                        f"{slope(errors):+.1e} a look"))
    return wrong, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600)
    wrong, figures = soak(parser.parse_args().seconds)
    print(text_table(figures, align="l"))
    print("\n".join(wrong) or "nothing is wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
