"""What benchmarks on a GPU compile, compiled by processes side by side before anything is timed.

    python benchmarks/gpu_prepare.py layers PRECISION | networks NAME | compiled NAME LANES
    python benchmarks/gpu_prepare.py kernels

Kernels and what `torch.compile` makes are kept on disk, where the benchmark itself finds them: it
then compiles alone what a process here has not, so none of them has to succeed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import gpu_kernels
import gpu_layers
import gpu_networks
import torch

import deltaconvert
from deltaconvert.cuda.launcher import CupyLauncher

GPU = gpu_layers.GPU
Job = tuple[str, ...]


def prepare(jobs: Iterable[Job], seconds: float) -> dict[str, float]:
    """Run jobs side by side, and end those that take longer; return what others took."""
    start, took = time.monotonic(), {}
    started = {" ".join(job): subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), *job], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "4"}) for job in jobs}
    for name, process in started.items():
        try:
            _, said = process.communicate(timeout=max(start + seconds - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()  # nothing is timed beside it
            said = "not done in time"
        if process.returncode == 0:
            took[name] = time.monotonic() - start
        else:
            print(f"not prepared: {name}: {said.strip().splitlines()[-1:]}", flush=True)
    return took


def kernels_of_layers(dtype: str) -> None:
    """Compile the kernels of the layers in a precision."""
    torch.backends.cudnn.allow_tf32 = dtype != "float32"
    gpu_layers.compile_all(gpu_networks.dtype_of(dtype), CupyLauncher(GPU))


def kernels_of_network(name: str) -> None:
    """Compile the kernels of a network in all precisions and sizes that are measured."""
    for size, lanes, precision in gpu_networks.cases():
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        dtype = gpu_networks.dtype_of(precision)
        model = gpu_networks.built(name).to(GPU, dtype).to(memory_format=torch.channels_last)
        frame = gpu_networks.clip(lanes, gpu_networks.size_of(name, size), 1)[0].to(dtype)
        deltaconvert.convert(model, frame, backend="cuda", norm="rms").new_stream()(frame)
        torch.cuda.empty_cache()


def compiled(name: str, lanes: int) -> None:
    """Compile a dense network, or the layers in both precisions."""
    torch.backends.cudnn.allow_tf32 = True
    if name == "layers":
        for dtype in (torch.float16, torch.float32):
            gpu_layers.compiled_ms(lanes, dtype)
        return
    model = gpu_networks.built(name).to(GPU, torch.float16).to(memory_format=torch.channels_last)
    size = gpu_networks.size_of(name, "1080p")
    frame = gpu_networks.clip(lanes, size, 1)[0].half().contiguous(
        memory_format=torch.channels_last)
    gpu_networks.compiled(model)(frame)


def main(kind: str, *args: str) -> None:
    """Run one job."""
    with torch.inference_mode():
        if kind == "layers":
            kernels_of_layers(*args)
        elif kind == "networks":
            kernels_of_network(*args)
        elif kind == "kernels":
            gpu_kernels.compile_all()
        else:
            compiled(args[0], int(args[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
