"""The dense model that a converted one is held against."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.checking.output_errors import difference, finite
from deltaconvert.islands import IslandsModule
from deltaconvert.model_graph import ModelGraph
from deltaconvert.module import DeltaModule
from deltaconvert.outputs import mean_square, named_outputs
from deltaconvert.passes.trace import private_copy
from deltaconvert.work import ratio


class StoredModel(nn.Module):
    """The dense graph that a converted model keeps, as a module: same weights, same outputs.

    What `validate` compares with where the original is not at hand.
    """

    def __init__(self, delta: DeltaModule) -> None:
        """Share the weights of ``delta``."""
        super().__init__()
        self._graph_of = lambda frames: (delta._root, delta.graph_for(frames))  # is not copied
        self._shapes: list[torch.Size] = []
        self._take(delta._root, delta.traced)

    def _take(self, root: nn.Module, traced: ModelGraph) -> None:
        self.traced = traced
        self.dense = fx.GraphModule(root, traced.graph, class_name="Dense").eval()

    def forward(self, *frames: Tensor) -> Any:
        """Compute all of it; a copy in another precision does so by the same graph."""
        shapes = [f.shape for f in frames]
        if shapes != self._shapes:
            self._take(*self._graph_of(frames))
            self._shapes = shapes
        return pytree.tree_unflatten(self.dense(*frames), self.traced.out_spec)


def stored_model(delta: DeltaModule | IslandsModule) -> nn.Module:
    """Return the dense model inside a converted one."""
    return delta.model if isinstance(delta, IslandsModule) else StoredModel(delta)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def own_roundings(model: nn.Module, inputs: Sequence[Any], dense: list[tuple[str, Tensor]],
                  stored: torch.dtype | None) -> list[float]:
    """Return how far each dense output is off the same network in float64, as relative RMS.

    With ``stored``, the dense network's in that precision.
    0 where that cannot be told: not every model runs in another precision than its own.
    """
    try:
        exact = _outputs_at(torch.float64, model, inputs)
        dense = dense if stored is None else _outputs_at(stored, model, inputs)
        ratios = [ratio(math.sqrt(mean_square(difference(value, reference))),
                        math.sqrt(mean_square(finite(reference))))
                  for (_, value), (_, reference) in zip(dense, exact, strict=True)]
        return [ratio if math.isfinite(ratio) else 0.0 for ratio in ratios]
    except Exception:  # the model's own code: it may raise anything
        return [0.0] * len(dense)


def _outputs_at(precision: torch.dtype, model: nn.Module, inputs: Sequence[Any]
                ) -> list[tuple[str, Tensor]]:
    frames = [f.to(precision) if isinstance(f, Tensor) and f.is_floating_point() else f
              for f in inputs]
    return named_outputs(private_copy(model).to(precision)(*frames))
