"""``deltaconvert doctor``: what is installed, which backends work, what is missing."""

from __future__ import annotations

import importlib
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
import typer
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.base import create
from deltaconvert.cli.options import JsonFile
from deltaconvert.cli.output import check_writable, say, write_json
from deltaconvert.config import BACKENDS, Config
from deltaconvert.processor import cores
from deltaconvert.words import text_table

GOOD, MISSING, BROKEN = "ok", "missing", "broken"


@dataclass(frozen=True)
class Package:
    """Something that is imported, what for, and how to get it."""

    module: str
    distribution: str
    purpose: str
    get: str
    optional: bool = False


PACKAGES = (
    Package("torch", "torch", "everything", "pip install torch"),
    Package("torchvision", "torchvision", "models by name", "pip install torchvision"),
    Package("numba", "numba", "the cpu backend", "pip install numba"),
    Package("safetensors", "safetensors", "files", "pip install safetensors"),
    Package("av", "av", "videos and pictures", "pip install av"),
    Package("matplotlib", "matplotlib", "pictures and reports", "pip install matplotlib"),
    Package("timm", "timm", "models of timm", "pip install timm", optional=True),
    Package("cupy", "cupy", "kernels on a GPU",
            "pip install cupy-cuda13x (or cupy-cuda12x, as PyTorch's CUDA)", optional=True),
)


def doctor(json: JsonFile = None) -> None:
    """Say what is installed, which backends work here, what is missing and how to get it."""
    check_writable(json=json)
    data: dict[str, Any] = {
        "system": system(), "packages": [_examine(p) for p in PACKAGES],
        "backends": [_try_backend(name) for name in BACKENDS]}
    broken = [p for p in data["packages"] if p["state"] != GOOD and not p["optional"]]
    broken += [b for b in data["backends"] if b["state"] == BROKEN]
    say(_text(data))
    write_json(json, data | {"healthy": not broken})
    raise typer.Exit(1 if broken else 0)


def system() -> dict[str, Any]:
    """Return the machine and its interpreter as plain data."""
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.get_device_name()}, CUDA {torch.version.cuda})"
    return {"deltaconvert": deltaconvert.__version__, "python": platform.python_version(),
            "interpreter": sys.executable, "system": platform.platform(),
            "cpus": cores(), "threads": torch.get_num_threads(), "device": device}


def versions(own: str) -> str:
    """Return what ``--version`` shows: one line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    try:
        backend = create("auto", Config(), device).name
    except Exception as error:  # whatever a broken installation raises
        backend = f"broken ({type(error).__name__}: see deltaconvert doctor)"
    return f"deltaconvert {own}, torch {torch.__version__}, backend {backend}, device {name}"


def _examine(package: Package) -> dict[str, Any]:
    told = {"name": package.distribution, "purpose": package.purpose,
            "optional": package.optional, "get": package.get, "version": None}
    try:
        importlib.import_module(package.module)
    except ModuleNotFoundError as error:
        if error.name == package.module:
            return told | {"state": MISSING, "detail": ""}
        return told | {"state": BROKEN, "detail": f"it needs {error.name}"}
    except Exception as error:  # whatever a broken installation raises
        return told | {"state": BROKEN, "detail": f"{type(error).__name__}: {error}"}
    return told | {"state": GOOD, "version": _version(package), "detail": ""}


def _version(package: Package) -> str | None:
    try:
        return metadata.version(package.distribution)
    except metadata.PackageNotFoundError:  # CuPy's wheels have other names
        return getattr(sys.modules[package.module], "__version__", None)


def _try_backend(name: str) -> dict[str, Any]:
    """Run a small network for two frames, and compare with dense."""
    try:
        if reason := _not_here(name):
            return {"name": name, "state": MISSING, "detail": reason}
        worst = _error_of(name)
    except Exception as error:  # whatever a broken installation raises
        return {"name": name, "state": BROKEN, "detail": str(error).splitlines()[0] if str(error)
                else type(error).__name__}
    # On a GPU both may multiply in TensorFloat-32, which has ten bits.
    if worst > (1e-2 if name == "cuda" else 1e-5):
        return {"name": name, "state": BROKEN, "detail": f"its result is off by {worst:.1e}"}
    return {"name": name, "state": GOOD, "detail": "agrees with dense on a small network"}


def _not_here(backend: str) -> str:
    """Return why this machine has no use for a backend; nothing where it has."""
    if backend != "cuda":
        return ""
    if not torch.cuda.is_available():
        return "no NVIDIA GPU that PyTorch can use"
    from deltaconvert.backends.cuda import unavailable

    return unavailable(torch.device("cuda"))


def _error_of(backend: str) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
        frame = torch.rand(1, 3, 16, 16)
    device = torch.device("cuda") if backend == "cuda" else torch.device("cpu")
    model, frame = model.to(device), frame.to(device)
    delta = deltaconvert.convert(model, backend=backend)
    worst = 0.0
    for _ in range(2):
        with torch.inference_mode():
            expected: Tensor = model(frame)
        worst = max(worst, float((delta(frame) - expected).abs().max()))
        frame = frame.clone()
        frame[:, :, 2:5, 3:7] += 0.5
    return worst


def _text(data: dict[str, Any]) -> str:
    machine = text_table([(name, str(value)) for name, value in data["system"].items()], align="l")
    rows = [("package", "version", "state", "for")]
    rows += [(p["name"], p["version"] or "-", _state(p), p["purpose"]) for p in data["packages"]]
    backends = [("backend", "state", "")]
    backends += [(b["name"], b["state"], b["detail"]) for b in data["backends"]]
    parts = [machine, "", text_table(rows, align="l"), "", text_table(backends, align="l")]
    advice = [f"- {p['name']} ({p['purpose']}): {p['detail'] + '; ' if p['detail'] else ''}"
              f"{p['get']}" for p in data["packages"] if p["state"] != GOOD]
    return "\n".join([*parts, *(["", "to get what is missing:", *advice] if advice else [])])


def _state(package: dict[str, Any]) -> str:
    optional = package["optional"] and package["state"] == MISSING
    return "not installed" if optional else str(package["state"])
