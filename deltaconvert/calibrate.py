"""Statistics for networks that were never trained, so that their outputs mean something.

A network with random weights and untouched BatchNorm statistics answers nearly the same to
every picture: an output frozen at the first frame is then as good as any, and no figure of
fidelity says anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deltaconvert.errors import InputError
from deltaconvert.model_specs import build_model

CALIBRATION_FRAMES = 6


def random_model(spec: str, seed: int, frames: Sequence[Tensor],
                 model_args: Mapping[str, object] | None = None) -> nn.Module:
    """Build a model with random weights of a seed, and BatchNorm statistics from a clip.

    Args:
        spec: as `build_model` takes it; a plain name is torchvision's.
        seed: of the weights; PyTorch's own generator is left as it was.
        frames: ``[N, C, H, W]`` each; every so many-th is taken, `CALIBRATION_FRAMES` or so.
        model_args: keyword arguments for the builder.

    Raises:
        InputError: see `build_model` and `batch_norm_statistics`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(spec if ":" in spec else f"torchvision:{spec}", model_args)
    batch_norm_statistics(model, frames[::max(1, len(frames) // CALIBRATION_FRAMES)])
    return model


def batch_norm_statistics(model: nn.Module, frames: Iterable[Tensor]) -> int:
    """Set the running statistics of every BatchNorm to the plain mean over some frames.

    One forward pass a frame with BatchNorm, and nothing else, in training mode, and a
    cumulative average in the place of momentum. No weight changes.

    Args:
        model: in float32 or float64; changed in place, in eval mode afterwards.
        frames: ``[N, C, H, W]`` each, as the model takes them.

    Returns:
        How many BatchNorms were set; one without running statistics has nothing to set.

    Raises:
        InputError: the weights are in a half precision, where sums of squares lose too
            much; there are no frames; or a BatchNorm sees one number a channel, of which
            there is no variance.
    """
    _check_precision(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    passes = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for frame in frames:
            _pass(model, frame)
            passes += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
    if norms and passes == 0:
        raise InputError("no frames to take BatchNorm statistics from: give at least one.")
    return len(norms)


def _check_precision(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise InputError(f"{name} is {parameter.dtype}: take BatchNorm statistics in float32 "
                             "(model.float()), and go to half precision afterwards.")


def _pass(model: nn.Module, frame: Tensor) -> None:
    try:
        with torch.no_grad():
            model(frame)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError("a BatchNorm sees one number a channel, which has no variance: give "
                         "larger frames, or a batch of several.") from error
