"""All benchmarks of the cuda backend in one call of under 8 minutes; JSON out, as it goes.

    python benchmarks/gpu.py [--out FILE] [--only layers kernels ...]

`gpu_layers.py`, `gpu_kernels.py`, `gpu_resize.py` and `gpu_networks.py`, with what `torch.compile`
makes of the dense layers and networks among the peers: in its default mode for the layers, in a
CUDA graph, and "reduce-overhead" for networks; "max-autotune" takes minutes for each. What can be
is compiled beforehand, by processes side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_kernels
import gpu_layers
import gpu_networks
import gpu_prepare
import gpu_resize
import torch

from deltaconvert.cuda.launcher import CupyLauncher

GPU = gpu_layers.GPU
SECONDS, PREPARING_SECONDS = 430, 120  # after which nothing new is begun; and of the processes
SHARES = {"float16": (0.05, 0.2, 1.0), "bfloat16": (0.05,), "tf32": (0.05, 0.2), "float32": (0.05,)}
Part = Iterator[dict[str, Any]]  # rows, one after the other


def jobs() -> list[gpu_prepare.Job]:
    """Return what is compiled beforehand, the longest first."""
    return [*(("compiled", name, lanes) for name in ("hrnet_w32", "layers", "pose_resnet",
                                                     "resnet50") for lanes in "18"),
            *(("networks", name) for name in gpu_networks.NETWORKS),
            *(("layers", precision) for precision in SHARES), ("kernels",)]


def ceilings() -> Part:
    """Measure what the card can do: bytes by a copy, operations by a matrix product."""
    big = torch.empty(1 << 31, dtype=torch.uint8, device=GPU)
    other = torch.empty_like(big)
    copy_ms = gpu_networks.frame_ms(lambda x: other.copy_(x), [big] * 5)
    a, b = (torch.randn(8192, 8192, device=GPU, dtype=torch.float16) for _ in range(2))
    product_ms = gpu_networks.frame_ms(lambda x: x @ b, [a] * 5)
    yield {"copy_tb_s": 2e-9 * big.numel() / copy_ms, "fp16_tflops": 2e-9 * 8192**3 / product_ms}


def layers() -> Part:
    """Measure the layers: float16 at three shares, the others at fewer."""
    launcher = CupyLauncher(GPU)
    for precision, shares in SHARES.items():
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        for lanes in (1, 8):
            made = [gpu_layers.measure(layer, lanes, gpu_networks.dtype_of(precision), shares,
                                       gpu_layers.ALL_PROPAGATE, launcher)
                    for layer in gpu_layers.body()]
            for some in zip(*made, strict=True):
                yield from (row | {"precision": precision} for row in some)
                sums = {k: sum(r[k] * r["times"] for r in some)
                        for k in some[0] if k.endswith("_ms")}
                print(f"layers {precision} lanes {lanes} share {some[0]['share']:.0%}: "
                      + ", ".join(f"{k} {v:.3f}" for k, v in sums.items())
                      + f"; {sums['eager_ms'] / sums['sparse_ms']:.2f}x over eager in a graph, "
                      f"{sums['dense_ms'] / sums['sparse_ms']:.2f}x over cuDNN's own fusion",
                      flush=True)
            torch.cuda.empty_cache()
    torch.backends.cudnn.allow_tf32 = True


def compiled_layers() -> Part:
    """Measure all layers as one compiled function, where tensor cores multiply."""
    for precision in ("float16", "tf32"):
        for lanes in (1, 8):
            row = {"precision": precision, "lanes": lanes,
                   "ms": gpu_layers.compiled_ms(lanes, gpu_networks.dtype_of(precision))}
            print("layers, compiled as one:", row, flush=True)
            yield row
            torch._dynamo.reset()
            torch.cuda.empty_cache()


def networks(prepared: dict[str, float]) -> Part:
    """Measure the networks; single precision at 0.05.

    The compiled peer is one at 1080p in float16, where it was compiled beforehand.
    """
    for name in gpu_networks.NETWORKS:
        for size, lanes, precision in gpu_networks.cases():
            if precision == "float16":
                compiled = size == "1080p" and f"compiled {name} {lanes}" in prepared
                yield from network(name, size, lanes, precision, compiled)
    for precision in ("tf32", "float32"):
        for name in gpu_networks.NETWORKS:
            for lanes in (1, 8):
                yield from network(name, "1080p", lanes, precision, False)


def network(name: str, size: str, lanes: int, precision: str, compiled: bool) -> Part:
    """Measure one."""
    half = precision == "float16"
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    yield from gpu_networks.measure(
        name, size, lanes, gpu_networks.dtype_of(precision), compiled,
        (0.0, 0.05) if half else (0.05,))
    torch.cuda.empty_cache()


PARTS = {
    "ceilings": ceilings, "layers": layers, "compiled_layers": compiled_layers,
    "kernels": lambda: iter(gpu_kernels.all_rows(CupyLauncher(GPU))),
    "resize": lambda: iter(gpu_resize.all_rows(CupyLauncher(GPU)))}


def main() -> None:
    """Run what is asked for, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="bench-gpu.json")
    parts = [*PARTS, "networks"]
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--no-preparing", action="store_true")
    options = parser.parse_args()
    start = time.monotonic()
    torch.backends.cudnn.benchmark = True
    result: dict[str, Any] = {"card": torch.cuda.get_device_name(GPU), "torch": torch.__version__,
                              "seconds": {}}
    print(result["card"], "torch", result["torch"], flush=True)
    if not options.no_preparing:
        result["preparing"] = gpu_prepare.prepare(jobs(), PREPARING_SECONDS)
        result["seconds"]["preparing"] = time.monotonic() - start
        print(result["preparing"], flush=True)
    for part in options.only:
        begun, result[part] = time.monotonic(), []
        run = PARTS.get(part, lambda: networks(result.get("preparing", {})))
        with torch.inference_mode():
            for row in run():
                result[part].append(row | {"at_s": time.monotonic() - start})
                result["seconds"][part] = time.monotonic() - begun
                Path(options.out).write_text(json.dumps(result, indent=1), encoding="utf-8")
                if time.monotonic() - start > options.seconds:
                    print("no time left", flush=True)
                    return
    print({part: f"{seconds:.0f} s" for part, seconds in result["seconds"].items()})


if __name__ == "__main__":
    main()
