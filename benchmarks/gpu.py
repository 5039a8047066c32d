"""All benchmarks of the cuda backend in one call of under 8 minutes; JSON out.

    python benchmarks/gpu.py [--out FILE]

`gpu_layers.py`, `gpu_resize.py` and `gpu_networks.py`, with what `torch.compile` makes of the dense
layers and networks among the peers: in its default mode for the layers, in a CUDA graph, and
"reduce-overhead" for networks; "max-autotune" takes minutes for each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_layers
import gpu_networks
import gpu_resize
import torch

from deltaconvert.cuda.launcher import CupyLauncher

GPU = gpu_layers.GPU
SECONDS = 420  # after which nothing new is begun


def ceilings() -> dict[str, float]:
    """Measure what the card can do: bytes by a copy, operations by a matrix product."""
    big = torch.empty(1 << 31, dtype=torch.uint8, device=GPU)
    other = torch.empty_like(big)
    copy_ms = gpu_networks.frame_ms(lambda x: other.copy_(x), [big] * 5)
    a, b = (torch.randn(8192, 8192, device=GPU, dtype=torch.float16) for _ in range(2))
    product_ms = gpu_networks.frame_ms(lambda x: x @ b, [a] * 5)
    return {"copy_tb_s": 2e-9 * big.numel() / copy_ms, "fp16_tflops": 2e-9 * 8192**3 / product_ms}


def layers(deadline: float) -> list[dict[str, Any]]:
    """Measure the layers: float16 at three shares, the others at one."""
    rows: list[dict[str, Any]] = []
    launcher = CupyLauncher(GPU)
    for dtype, tf32, shares in ((torch.float16, True, (0.05, 0.2, 1.0)),
                                (torch.bfloat16, True, (0.05,)), (torch.float32, True, (0.05,)),
                                (torch.float32, False, (0.05,))):
        torch.backends.cudnn.allow_tf32 = tf32
        for lanes in (1, 8):
            for share in shares:
                some = [gpu_layers.measure(layer, lanes, dtype, share,
                                            gpu_layers.ALL_PROPAGATE, launcher)
                        | {"tf32": tf32} for layer in gpu_layers.body()]
                rows += some
                name = str(dtype).removeprefix("torch.") if dtype.itemsize == 2 else (
                    "tf32" if tf32 else "float32")
                sums = {k: sum(r[k] * r["times"] for r in some)
                        for k in some[0] if k.endswith("_ms")}
                print(f"layers {name} lanes {lanes} share {share:.0%}: "
                      + ", ".join(f"{k} {v:.3f}" for k, v in sums.items())
                      + f"; {sums['eager_ms'] / sums['sparse_ms']:.2f}x over eager in a graph, "
                      f"{sums['dense_ms'] / sums['sparse_ms']:.2f}x over cuDNN's own fusion",
                      flush=True)
                if time.monotonic() > deadline:
                    return rows
    torch.backends.cudnn.allow_tf32 = True
    return rows


def compiled_layers(deadline: float) -> dict[str, float]:
    """Measure all layers as one compiled function, where tensor cores multiply."""
    times = {}
    for name, dtype in (("float16", torch.float16), ("tf32", torch.float32)):
        for lanes in (1, 8):
            if time.monotonic() < deadline:
                times[f"{name} lanes {lanes}"] = gpu_layers.compiled_ms(lanes, dtype)
                torch.cuda.empty_cache()
    print("layers, compiled as one, ms:", times, flush=True)
    return times


def networks(deadline: float) -> Iterator[list[dict[str, Any]]]:
    """Measure the networks, the compiled peer for the first of each."""
    for name in gpu_networks.NETWORKS:
        for size in ("1080p", "720p"):
            for lanes in (1, 8):
                if time.monotonic() > deadline:
                    return
                compiled = size == "1080p" and (
                    name == "resnet50" or (name == "pose_resnet" and lanes == 1))
                yield gpu_networks.measure(name, size, lanes, torch.float16, compiled)
                torch.cuda.empty_cache()


def main() -> None:
    """Run what is asked for, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="bench-gpu.json")
    options = parser.parse_args()
    start = time.monotonic()
    torch.backends.cudnn.benchmark = True
    result: dict[str, Any] = {"card": torch.cuda.get_device_name(GPU), "torch": torch.__version__}
    print(result["card"], "torch", result["torch"])
    with torch.inference_mode():
        result["ceilings"] = ceilings()
        print(result["ceilings"])
        result["layers"] = layers(start + SECONDS / 2)
        result["compiled_layers_ms"] = compiled_layers(start + SECONDS / 2)
        result["resize"] = gpu_resize.all_rows(CupyLauncher(GPU))
        result["networks"] = []
        for rows in networks(start + SECONDS):  # a run cut short keeps these
            result["networks"] += rows
            result["seconds"] = time.monotonic() - start
            Path(options.out).write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
