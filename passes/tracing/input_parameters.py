"""Which parameters of a ``forward`` are a model's inputs, and which keep what they default to."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


def input_parameters(forward: Callable[..., Any], given: int = 0) -> list[inspect.Parameter]:
    """Return the parameters of ``forward`` that are inputs, in order.

    Those that have no default, or a tensor as one. The first, where all have one, as in
    ``forward(self, pixel_values=None, labels=None)``. And if more inputs are given, as many of
    the optional ones: ``forward(self, frame, state=None)``.

    Args:
        forward: with ``self`` bound.
        given: how many inputs are known to be given.
    """
    parameters = [p for p in inspect.signature(forward).parameters.values()
                  if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    inputs = [p for p in parameters if p.default is p.empty or torch.is_tensor(p.default)]
    optional = [p for p in parameters if p.default is None and p.kind is not p.KEYWORD_ONLY]
    wanted = max(given, 0 if inputs else 1)
    inputs += optional[:max(0, wanted - len(inputs))]
    return [p for p in parameters if any(p is chosen for chosen in inputs)]
