"""How well the cpu backend does on single layers: the convolutions of five networks.

    python benchmarks/layers.py [--json FILE] [--plot PNG] [--network NAME] [--threads 2]

For every distinct convolution and several shares of changed input pixels, in blobs, it prints
the step's time, the share of the output that had to be computed, and the efficiency: dense
time x that share / time. What is timed, and how: `deltaconvert.bench.layers`; how to read it:
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from deltaconvert.atomic import written_whole
from deltaconvert.bench import layers, machine, plots, text
from deltaconvert.cli.output import check_writable, write_json
from deltaconvert.config import Config
from deltaconvert.model_specs import build_model

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for examples/

# Model and frame. HRNet adds maps of all its resolutions: height and width are multiples of 32.
NETWORKS = {
    "ResNet-50": ("torchvision:resnet50", (1, 3, 360, 640)),
    "MobileNetV3-Large": ("torchvision:mobilenet_v3_large", (1, 3, 360, 640)),
    "HRNet-W32": ("timm:hrnet_w32", (1, 3, 352, 640)),
    "FastestDet": ("examples.fastestdet:FastestDet", (1, 3, 352, 640)),
    "VDSR": ("examples.vdsr:VDSR", (1, 1, 360, 640)),
}


def main() -> None:
    """Run what is asked for, print it and write it."""
    options = parse()
    check_writable(options.json, options.plot)
    torch.set_num_threads(options.threads)
    about = machine.describe(options.threads)
    config = Config(threads=options.threads)
    shares = [share / 100 for share in options.shares]
    print(f"{machine.in_words(about)}; median of {options.rounds} rounds\n"
          f"\n{text.layer_head(shares)}")
    others = machine.Others()
    seen: set[layers.Layer] = set()
    results: dict[str, list[layers.LayerResult]] = {}
    for name in options.network or NETWORKS:
        spec, shape = NETWORKS[name]
        found = [f for f in layers.convolutions(build_model(spec), torch.zeros(shape))
                 if f not in seen]
        seen.update(found)
        print(f"{name}: {len(found)} convolutions that none before it has")
        results[name] = []
        for layer in found:
            results[name].append(layers.measure(layer, config, shares, options.rounds))
            print(text.layer_row(results[name][-1]), flush=True)
    together = [result for found in results.values() for result in found]
    print(f"\n{text.layer_summary(together, shares)}")
    busy = others.share()
    if warning := machine.warning(busy):
        print(f"- {warning}")
    write_json(options.json, {
        "machine": about, "others_cpu_share": busy, "rounds": options.rounds,
        "efficiency": layers.summary(together),
        "networks": {name: [r.to_dict() for r in found] for name, found in results.items()}})
    if options.plot:
        figure = plots.layer_efficiency({name: found for name, found in results.items() if found})
        with written_whole(options.plot) as partial:
            figure.savefig(partial, format="png", dpi=100)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", action="append", choices=NETWORKS, help="repeats")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=layers.ROUNDS)
    parser.add_argument("--shares", type=float, nargs="+",
                        default=[100 * share for share in layers.SHARES],
                        help="percent of the input's pixels that change")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here, as PNG")
    return parser.parse_args()


if __name__ == "__main__":
    main()
