"""Sums of products by a formula: local where all that is summed over are channels.

``nchw,oc->nohw`` is a 1x1 convolution; ``nhid,nhjd->nhij`` is attention, which runs whole.
"""

from __future__ import annotations

import math
import string

import torch
from torch import Tensor

from deltaconvert.operators.registry import Refusal, Shapes, call, operator, spelled

ADVICE = "a formula in which all operands have the same places, and other letters are summed over"


def _terms(equation: str) -> tuple[list[str], str]:
    inputs, _, output = equation.partition("->")
    return inputs.split(","), output


def _sizes(shapes: Shapes) -> dict[str, int]:
    """Return the size of each letter."""
    terms, _ = _terms(shapes.params["equation"])
    moving = iter(shapes.inputs)
    found: dict[str, int] = {}
    for name, term in zip(("x", "y"), terms, strict=False):
        found.update(zip(term, shapes.constants.get(name) or next(moving, ()), strict=False))
    return found


def _mixes(shapes: Shapes) -> str | None:
    terms, output = _terms(shapes.params["equation"])
    places = (output[0], output[2], output[3])
    for name, term in zip(("x", "y"), terms, strict=False):
        if name in shapes.constants:
            if set(term) & set(places):
                return "its weights differ from place to place"
        elif (term[0], term[2], term[3]) != places or len(set(term)) < 4:
            return "it sums over places, or moves them"
    return None


def _multiply_adds(shapes: Shapes) -> int:
    output = _terms(shapes.params["equation"])[1]
    others = _sizes(shapes).keys() - {output[0], *output[2:]}
    return math.prod(_sizes(shapes)[letter] for letter in others)


@operator(pixelwise=True, not_local=_mixes, advice=ADVICE, multiply_adds=_multiply_adds)
def einsum(x: Tensor, y: Tensor | None = None, *, equation: str) -> Tensor:
    """Sum over the letters that are not in the output."""
    return torch.einsum(equation, *(operand for operand in (x, y) if operand is not None))


@spelled(torch.einsum)
def _function(equation, *operands):
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) > 2 or "." in equation:
        raise Refusal("a formula with an ellipsis, or of more than two operands",
                      "one letter for each dimension, and two operands at a time")
    return call(einsum, *operands, equation=_in_full(equation))


def _in_full(equation: str) -> str:
    """Return a formula without blanks, and with the output that it means."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow:
        output = "".join(c for c in string.ascii_letters if inputs.count(c) == 1)
    return f"{inputs}->{output}"
