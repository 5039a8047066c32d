"""Hooks within an island: what they keep for the model around it, no graph would keep."""

from __future__ import annotations

from torch import nn

from deltaconvert.passes.find_weight import SpectralNorm, WeightNorm


class InnerHooks:
    """The forward hooks of the submodules of an island; its own are run by the model's call."""

    def __init__(self, root: nn.Module) -> None:
        """Count them."""
        self._tables = [table for module in list(root.modules())[1:]
                        for table in (module._forward_hooks, module._forward_pre_hooks)]
        self._of_weights = sum(isinstance(hook, (WeightNorm, SpectralNorm))
                               for table in self._tables for hook in table.values())

    def __bool__(self) -> bool:
        """Whether there are any now, but for those that compute a weight."""
        return sum(map(len, self._tables)) > self._of_weights
