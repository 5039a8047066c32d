"""Find weight: the graph's nodes for a parameter of a module, computed or not.

Before: a module with ``torch.nn.utils.parametrizations`` or with the older hooks of
``weight_norm`` and ``spectral_norm``.
After: ``weight_norm(conv.parametrizations.weight.original1, ...original0)``, a constant.

Part of `normalize`. Parametrizations that are not known are called as the modules they are:
that is a constant too.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrizations

from deltaconvert.operators.registry import call
from deltaconvert.operators.weight_norm import spectral_norm, weight_norm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm


class WeightFinder:
    """Answers an adapter's ``attribute("weight")`` for one call of a module.

    Args:
        graph: gets ``get_attr`` nodes in front of ``node``.
        node: the call.
        module: what is called; ``path`` is its place in the model.
    """

    def __init__(self, graph: fx.Graph, node: fx.Node, module: nn.Module, path: str) -> None:
        """Look which of the parameters are computed."""
        self.graph, self.node, self.module, self.path = graph, node, module, path
        self.lists = getattr(module, "parametrizations", {})
        self.hooks = {hook.name: hook for hook in module._forward_pre_hooks.values()
                      if isinstance(hook, (WeightNorm, SpectralNorm))}

    def __call__(self, name: str) -> Any:
        """Return a node or a `Call` for a parameter or buffer; ``None`` where that is ``None``."""
        if name in self.lists:
            return self._parametrized(name)
        if name in self.hooks:
            return self._hooked(name)
        return None if getattr(self.module, name) is None else self._read(name)

    @property
    def refusal(self) -> str:
        """Why only calling the module gives what it computes; "" where that is not so."""
        others = len(self.module._forward_pre_hooks) - len(self.hooks)
        if not others and not self.module._forward_hooks:
            return ""
        return f"{type(self.module).__name__} has forward hooks, which only calling it runs"

    def _read(self, name: str) -> fx.Node:
        with self.graph.inserting_before(self.node):
            read = self.graph.get_attr(f"{self.path}.{name}")
        read.meta.update(source=self.node.meta["source"], path=self.path)
        return read

    def _parametrized(self, name: str) -> Any:
        steps, place = list(self.lists[name]), f"parametrizations.{name}"
        if len(steps) == 1 and isinstance(steps[0], parametrizations._WeightNorm):
            v, g = self._read(f"{place}.original1"), self._read(f"{place}.original0")
            return call(weight_norm, v, g, dim=steps[0].dim)
        if len(steps) == 1 and isinstance(steps[0], parametrizations._SpectralNorm) and (
                hasattr(steps[0], "_u")):
            parts = (self._read(f"{place}.{part}") for part in ("original", "0._u", "0._v"))
            return call(spectral_norm, *parts, dim=steps[0].dim)
        with self.graph.inserting_before(self.node):
            called = self.graph.call_module(f"{self.path}.{place}")
        called.meta.update(source=self.node.meta["source"], path=self.path)
        return called

    def _hooked(self, name: str) -> Any:
        hook = self.hooks[name]
        if isinstance(hook, WeightNorm):
            dim = -1 if hook.dim is None else hook.dim
            return call(weight_norm, self._read(f"{name}_v"), self._read(f"{name}_g"), dim=dim)
        parts = (self._read(f"{name}_{part}") for part in ("orig", "u", "v"))
        return call(spectral_norm, *parts, dim=hook.dim)
