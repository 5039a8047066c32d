"""What layers are set to at their calls: a graph has them set in one way, in all calls and frames.

Before: ``y = self.norm(x); self.norm.train(); return y``, whose second frame is another's.
After: `KeepsState`, which names ``norm.training``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from deltaconvert.passes.tracing.attributes import proxies
from deltaconvert.passes.tracing.compare_graphs import same
from deltaconvert.passes.tracing.proxies import NeedsShapes

PLAIN = (bool, int, float, str, tuple, type(None))
TRAINED_OTHERWISE = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RReLU)

Settings = dict[tuple[nn.Module, str], Any]


def settings_of(leaf: nn.Module) -> Settings:
    """Return what a layer of PyTorch's, and what it is made of, goes by when it is called.

    A dropout in eval mode goes by nothing else.

    Raises:
        NeedsShapes: it is set to the shape of a map.
    """
    found = {(module, name): vars(module)[name] for module in leaf.modules()
             if not isinstance(module, torch.jit.ScriptModule)
             for name in (*(() if isinstance(module, nn.modules.dropout._DropoutNd) else
                            getattr(module, "__constants__", ())),
                          *(["training"] if isinstance(module, TRAINED_OTHERWISE) else []))
             if name in vars(module)}
    if proxies(list(found.values())):
        raise NeedsShapes("its forward sets a layer to the shape of a map")
    return {key: value for key, value in found.items() if isinstance(value, PLAIN)}


def set_otherwise(one: Settings, other: Settings) -> list[tuple[nn.Module, str]]:
    """Return which settings of the same layers differ."""
    return [key for key, value in one.items() if key in other and not same(other[key], value)]


def changed_settings(model: nn.Module, forwards: Sequence[Settings]) -> list[str]:
    """Return the names of settings in which calls of the first forward and of others differ."""
    paths = {module: path for path, module in model.named_modules()}
    return [f"{paths.get(module) or type(module).__name__}.{name}" for other in forwards[1:]
            for module, name in set_otherwise(forwards[0], other)]


def restore_settings(settings: Settings) -> None:
    """Set layers to what they were at their calls, whatever a forward left."""
    for (module, name), value in settings.items():
        vars(module)[name] = value
