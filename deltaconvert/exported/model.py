"""An exported program as a model: weights, and a graph of functions in the place of source."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree


class ExportedModel(nn.Module):
    """An exported program as a module: weights under their names, and a graph of functions.

    ``traced_for`` are the shapes it was exported for, ``dtypes`` those of its inputs; -1 is a
    dimension that may be any.
    """

    graph: fx.Graph
    out_spec: pytree.TreeSpec
    traced_for: list[tuple[int, ...]]
    dtypes: list[torch.dtype]

    def __init__(self, root: nn.Module, graph: fx.Graph, out_spec: pytree.TreeSpec,
                 traced_for: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> None:
        """Take over the weights of ``root``."""
        super().__init__()
        self.__dict__.update(root.__dict__)
        self.__dict__.update(graph=graph, out_spec=out_spec, traced_for=traced_for,
                             dtypes=dtypes)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """Compute the program's outputs, densely."""
        run = fx.GraphModule(self, self.graph, class_name="Exported")
        return pytree.tree_unflatten(run(*inputs), self.out_spec)

    def traced(self) -> fx.GraphModule:
        """Return what `trace` would, were there a source: a graph over a private copy."""
        copied = copy.deepcopy(self)
        made = fx.GraphModule(copied, copied.graph, class_name="Exported")
        made.meta.update(out_spec=self.out_spec, root=copied, traced_for=self.traced_for,
                         dtypes=self.dtypes)
        return made
