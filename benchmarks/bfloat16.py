"""Does the error of bfloat16 grow over a video? A ResNet-50, frame after frame.

    python benchmarks/bfloat16.py [--frames 300] [--every 50] [--size 360x640] [--json FILE]

One stream at threshold 0 and one at a threshold run through a synthetic clip in bfloat16, the
settings otherwise those of the benchmark. Every so many frames their outputs are compared with
the dense network in float32, beside that network run by PyTorch in bfloat16; and the stream at
threshold 0 with the first frame of a new one, which computes everything. Errors are relative RMS.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import deltaconvert
from deltaconvert.bench.outputs import relative_rms
from deltaconvert.calibrate import random_model
from deltaconvert.cli.options import parse_size
from deltaconvert.cli.output import check_writable, write_json
from deltaconvert.clips import synthetic
from deltaconvert.words import text_table


def measure(clip: list[Tensor], every: int, threshold: float) -> Iterator[dict[str, Any]]:
    """Yield a row of errors for every so many frames, the first included."""
    model = random_model("resnet50", 0, clip)
    lowered = copy.deepcopy(model).bfloat16().to(memory_format=torch.channels_last)
    exact = deltaconvert.convert(model, clip[0], dtype="bfloat16")
    held = exact.with_config(exact.config.replace(threshold=threshold, threshold_unit="std",
                                                  norm="rms"))
    streams, first = [exact.new_stream(), held.new_stream()], None
    for time, frame in enumerate(clip):
        converted = [stream(frame) for stream in streams]
        if time % every and time + 1 < len(clip):
            continue
        with torch.inference_mode():
            dense, half = model(frame), lowered(frame.bfloat16())
        first = dense if first is None else first
        yield {"frame": time + 1, "dense_bf16": relative_rms(half, dense),
               "threshold_0": relative_rms(converted[0], dense),
               "threshold": relative_rms(converted[1], dense),
               "frozen": relative_rms(first, dense),
               "as_a_first_frame": torch.equal(converted[0], exact.new_stream()(frame))}


def main() -> None:
    """Run what is asked for, print it and write it."""
    options = parse()
    check_writable(options.json)
    torch.set_num_threads(options.threads)
    clip = [frame[None] for frame in synthetic(parse_size(options.size), options.frames,
                                               active_share=options.active, seed=0)]
    rows = [("frame", "dense bf16", "threshold 0", f"{options.threshold:g} std", "frozen",
             "equal to a first frame")]
    found = []
    for row in measure(clip, options.every, options.threshold):
        found.append(row)
        frame, *errors, equal = row.values()
        rows.append((str(frame), *(f"{error:.3%}" for error in errors), "yes" if equal else "NO"))
    print(text_table(rows))
    write_json(options.json, {"rows": found})


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--size", default="360x640", metavar="HxW")
    parser.add_argument("--active", type=float, default=0.03)
    parser.add_argument("--threshold", type=float, default=0.021, help="standard deviations")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
