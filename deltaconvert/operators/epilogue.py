"""What may be fused behind an operator: a residual added, then an activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaconvert.operators.registry import named

Activation = tuple[Any, ...]


def finish(y: Tensor, residual: Tensor | None, activation: Activation | None) -> Tensor:
    """Return ``activation(y + residual)``.

    Args:
        y: what the operator computed.
        residual: a map of the same shape, or ``None``.
        activation: the name of an activation and its numbers, ``("leaky_relu", 0.1)``.
    """
    if residual is not None:
        y = y + residual
    return y if activation is None else activate(y, activation)


def activate(y: Tensor, activation: Activation) -> Tensor:
    """Apply an activation given as its name and numbers.

    Raises:
        KeyError: where there is no such activation.
    """
    operator = named(activation[0])
    if operator is None or not operator.is_activation:
        raise KeyError(f"no activation is called {activation[0]!r}")
    return operator.function(y, *activation[1:])
