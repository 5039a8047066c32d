"""The tensors in what a model returns, by their places."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def named_outputs(outputs: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors in an output with their places: ``out``, ``0``, ``boxes.1``.

    Numbers count as tensors.
    """
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    named = [(".".join(map(_key, path)) or "out", leaf) for path, leaf in leaves]
    return [(name, leaf if isinstance(leaf, Tensor) else torch.tensor(leaf, device="cpu"))
            for name, leaf in named
            if isinstance(leaf, (Tensor, int, float))]


def _key(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def of_lane(outputs: Any, lane: int, lanes: int) -> Any:
    """Return what one lane of a batch would have been answered: a batch of one.

    Tensors that do not count the lanes in dimension 0 are all lanes' and returned whole.
    """
    if lanes == 1:
        return outputs

    def part(leaf: Any) -> Any:
        shared = not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != lanes
        return leaf if shared else leaf[lane:lane + 1]

    return pytree.tree_map(part, outputs)


def tensors(output: Any) -> list[Tensor]:
    """Return the floating-point tensors in what a model or a runtime returned, in order."""
    leaves = (torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
              for leaf in pytree.tree_leaves(output))
    return [leaf.detach() for leaf in leaves
            if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def mean_square(value: Tensor) -> float:
    """Return the mean of the squares, in float64."""
    return float(value.double().square().mean()) if value.numel() else 0.0
