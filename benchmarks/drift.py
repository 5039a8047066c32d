"""How far a sum of deltas drifts from dense: backend ``paper`` beside ``reference``.

    python benchmarks/drift.py [--frames 10000] [--every 100] [--json FILE] [--plot FILE]

Both run the same networks, in the same precision and at threshold 0, on the same clip: a
picture of noise in which, each frame, two patches of 6x6 pixels do a step of a random walk
within [0, 1], so that no picture comes back. Every so many frames their outputs, and those of
the dense model in the same precision, are compared with the dense model in float64 (the same
weights and the same frame, both cast). The figure is the relative RMS error:

    sqrt(mean((y - y64)^2) / mean(y64^2))

A second run flashes: for five frames a patch holds 0.9 of the largest finite number, so that the
network overflows; counted are the output numbers that are not finite, and those that are not
although the dense model's are in the same frame. Everything is seeded; one core, CPU.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import deltaconvert

SIZE = (24, 32)
PATCH = 6
BACKENDS = ("paper", "reference")
DTYPES = (torch.float32, torch.float16)
FLASH = (100, 105)  # frames
FLASH_RUN = 300  # frames
COLORS = {"paper": "#c0392b", "reference": "#1f6fb2", "dense": "#888888"}


class Residual(nn.Module):
    """Stem, max pooling, one residual block and a head: conv, BN, ReLU, 8 to 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.first, self.first_norm = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.second, self.second_norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.max_pool2d(F.relu(self.first_norm(self.first(x))), 3, 1, 1)
        return self.head(F.relu(x + self.second_norm(self.second(x))))


def networks() -> dict[str, nn.Module]:
    """Return a single convolution, and the residual network with statistics of the clip."""
    torch.manual_seed(0)
    residual = Residual()
    for module in residual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # plain averages over the frames below
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    with torch.no_grad():
        for frame in clip(20, torch.float32):
            residual(frame)
    return {"one convolution": nn.Conv2d(3, 8, 3, padding=1).eval(),
            "residual network": residual.eval()}


def clip(frames: int, dtype: torch.dtype, flash: tuple[int, int] = (0, 0)) -> Iterator[Tensor]:
    """Yield the random walk, ``[1, 3, 24, 32]``, in numbers that the precision has."""
    generator = torch.Generator().manual_seed(1)
    picture = torch.rand(1, 3, *SIZE, generator=generator)
    for index in range(frames):
        for _ in range(2):
            y, x = (int(torch.randint(n - PATCH, (1,), generator=generator)) for n in SIZE)
            patch = picture[:, :, y:y + PATCH, x:x + PATCH]
            patch += 0.1 * torch.randn(patch.shape, generator=generator)
            patch.copy_(1 - (1 - patch.abs()).abs())  # reflected at 0 and 1
        frame = picture.to(dtype, copy=True)
        if flash[0] <= index < flash[1]:
            frame[:, :, 8:12, 8:12] = 0.9 * torch.finfo(dtype).max
        yield frame


class Rivals:
    """One network in one precision: both backends, dense, and the dense truth in float64."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.dense = copy.deepcopy(model).to(dtype)
        self.truth = copy.deepcopy(self.dense).double()
        self.converted = {name: deltaconvert.convert(self.dense, backend=name)
                          for name in BACKENDS}

    def __call__(self, frame: Tensor) -> dict[str, Tensor]:
        """Feed the next frame to the backends; return their outputs."""
        return {name: delta(frame) for name, delta in self.converted.items()}


def relative_rms(y: Tensor, truth: Tensor) -> float:
    """Return ``sqrt(mean((y - truth)^2) / mean(truth^2))``."""
    return float(((y.double() - truth).square().mean() / truth.square().mean()).sqrt())


@torch.no_grad()
def drift(model: nn.Module, dtype: torch.dtype, frames: int, every: int) -> dict[str, Any]:
    """Return the errors against float64 every so many frames, and their largest."""
    rivals = Rivals(model, dtype)
    at: list[int] = []
    errors: dict[str, list[float]] = {name: [] for name in (*BACKENDS, "dense")}
    start = time.perf_counter()
    for index, frame in enumerate(clip(frames, dtype), start=1):
        outputs = rivals(frame)
        if index == 1 or index % every == 0:
            at.append(index)
            outputs["dense"], truth = rivals.dense(frame), rivals.truth(frame.double())
            for name, output in outputs.items():
                errors[name].append(float(f"{relative_rms(output, truth):.3g}"))
    return {"frames": at, "relative_rms_error": errors,
            "seconds": round(time.perf_counter() - start, 1)}


@torch.no_grad()
def overflow(model: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """Return the share of output numbers that are not finite, frame by frame."""
    rivals = Rivals(model, dtype)
    shares: dict[str, list[float]] = {name: [] for name in (*BACKENDS, "dense")}
    for frame in clip(FLASH_RUN, dtype, FLASH):
        outputs = {**rivals(frame), "dense": rivals.dense(frame)}
        for name, output in outputs.items():
            shares[name].append(round(float((~output.isfinite()).double().mean()), 4))
    assert max(shares["dense"]) > 0, "the flash did not overflow: the run shows nothing"
    return {"flash_frames": list(FLASH), "share_not_finite": shares}


def study(frames: int, every: int) -> dict[str, Any]:
    """Run everything, printing each line of the tables as it is known."""
    figures: dict[str, Any] = {
        "torch": torch.__version__, "machine": platform.machine(), "python":
        platform.python_version(), "threads": torch.get_num_threads(), "frames": frames,
        "clip": f"1x3x{SIZE[0]}x{SIZE[1]}, two {PATCH}x{PATCH} patches a frame",
        "drift": {}, "overflow": {}}
    print(f"torch {torch.__version__}, {frames} frames, relative RMS error against float64\n")
    print(f"{'network':<18}{'precision':<10}{'backend':<11}{'frame 1':>10}"
          f"{'frame ' + str(frames):>14}{'largest':>10}{'growth':>9}")
    for name, model in networks().items():
        for dtype in DTYPES:
            precision = str(dtype).removeprefix("torch.")
            run = drift(model, dtype, frames, every)
            figures["drift"][f"{name}, {precision}"] = run
            for backend, errors in run["relative_rms_error"].items():
                print(f"{name:<18}{precision:<10}{backend:<11}{errors[0]:>10.1e}{errors[-1]:>14.1e}"
                      f"{max(errors):>10.1e}{errors[-1] / errors[0]:>8.1f}x", flush=True)
    print(f"\n{'share of outputs not finite':<39}{'before':>8}{'during':>8}{'after':>8}"
          f"{f'frame {FLASH_RUN}':>11}")
    for dtype in DTYPES:
        precision = str(dtype).removeprefix("torch.")
        run = overflow(networks()["residual network"], dtype)
        figures["overflow"][precision] = run
        for backend, shares in run["share_not_finite"].items():
            cells = (shares[FLASH[0] - 1], shares[FLASH[0]], shares[FLASH[1]], shares[-1])
            print(f"{'residual network':<18}{precision:<10}{backend:<11}"
                  + "".join(f"{c:>8.1%}" for c in cells[:3]) + f"{cells[3]:>11.1%}", flush=True)
    return figures


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw a panel for each precision, and the flash."""
    picture = Figure(figsize=(12, 4.2), layout="constrained")  # of no display and no toolkit
    axes = picture.subplots(1, 3)
    for axis, dtype in zip(axes, DTYPES, strict=False):
        precision = str(dtype).removeprefix("torch.")
        for title, run in figures["drift"].items():
            network, _, its_precision = title.rpartition(", ")
            if its_precision != precision:
                continue
            style = "-" if network.startswith("residual") else "--"
            for backend, errors in run["relative_rms_error"].items():
                axis.semilogy(run["frames"], errors, style, color=COLORS[backend], linewidth=1.4,
                              alpha=0.9, label=f"{backend}, {network}",
                              zorder=1 if backend == "dense" else 2)
        axis.set(title=f"{precision}, threshold 0", xlabel="frame",
                 ylabel="relative RMS error against float64")
    picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=6,
                   fontsize=8, frameon=False)
    for precision, run in figures["overflow"].items():
        for backend in BACKENDS:
            axes[2].plot(run["share_not_finite"][backend], color=COLORS[backend], linewidth=1.4,
                         linestyle="-" if precision == "float32" else "--",
                         label=f"{backend}, {precision}")
    axes[2].axvspan(*FLASH, color="#f1c40f", alpha=0.4, linewidth=0)
    axes[2].set(title="a flash that overflows, residual network", xlabel="frame",
                ylabel="share of outputs not finite")
    axes[2].legend(fontsize=8, loc="center right")
    drawn = io.BytesIO()
    picture.savefig(drawn, dpi=100, format="png")
    small = Image.open(drawn).convert("RGB").quantize(64)  # a third of the bytes
    _save(path, lambda part: small.save(part, format="png", optimize=True))


def _save(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


def main() -> None:
    """Run, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=100, help="frames between comparisons")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here, as PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = study(options.frames, options.every)
    if options.json:
        text = json.dumps(figures) + "\n"
        _save(options.json, lambda part: part.write_text(text, encoding="utf-8"))
    if options.plot:
        plot(figures, options.plot)


if __name__ == "__main__":
    main()
