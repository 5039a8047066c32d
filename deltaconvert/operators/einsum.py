"""Sums of products by a formula: local where all that is summed over are channels.

``nchw,oc->nohw`` is a 1x1 convolution, and becomes one by the pass `find_convolutions`;
``nhid,nhjd->nhij`` is attention, which runs whole.
"""

from __future__ import annotations

import math
import string
from typing import Any

import torch
from torch import Tensor

from deltaconvert.operators.conv2d import conv2d
from deltaconvert.operators.linear import as_filter
from deltaconvert.operators.permute import permute
from deltaconvert.operators.registry import Call, Refusal, Shapes, call, operator, spelled

ADVICE = "a formula in which all operands have the same places, and other letters are summed over"


def _operands(shapes: Shapes) -> list[tuple[int, ...]]:
    moving = iter(shapes.inputs)
    names = ("x", "y")[:shapes.params["equation"].count(",") + 1]
    return [shapes.constants[name] if name in shapes.constants  # a tensor given twice is told once
            else next(moving, shapes.inputs[-1]) for name in names]


def _terms(shapes: Shapes) -> tuple[list[str], str]:
    """Return the letters of each operand and of the output, with some for an ellipsis."""
    equation = shapes.params["equation"]
    inputs, _, output = equation.partition("->")
    free = "".join(c for c in string.ascii_letters if c not in equation)
    counts = [len(size) - len(term.replace("...", "")) for size, term in
              zip(_operands(shapes), inputs.split(","), strict=True)]
    most = max(counts)
    return [term.replace("...", free[most - count:most]) for term, count in
            zip(inputs.split(","), counts, strict=True)], output.replace("...", free[:most])


def _sizes(shapes: Shapes) -> dict[str, int]:
    """Return the size of each letter."""
    found: dict[str, int] = {}
    for term, size in zip(_terms(shapes)[0], _operands(shapes), strict=True):
        found.update(zip(term, size, strict=True))
    return found


def _mixes(shapes: Shapes) -> str | None:
    terms, output = _terms(shapes)
    places = (output[0], output[2], output[3])
    for name, term in zip(("x", "y"), terms, strict=False):
        if name in shapes.constants:
            if set(term) & set(places):
                return "its weights differ from place to place"
        elif (term[0], term[2], term[3]) != places or len(set(term)) < 4:
            return "it sums over places, or moves them"
    return None


def as_convolution(shapes: Shapes, x: Any, y: Any = None) -> Call | None:
    """Return the convolution that a formula means, if it multiplies channels by a matrix."""
    if len(shapes.constants) != 1 or len(shapes.inputs) != 1:
        return None
    terms, output = _terms(shapes)
    (matrix, of_matrix), (image, of_map) = zip((x, y), terms, strict=True)
    if "x" not in shapes.constants:
        (matrix, of_matrix), (image, of_map) = (image, of_map), (matrix, of_matrix)
    places = output[:1] + output[2:]
    is_product = len(of_matrix) == 2 and len(of_map) == len(output) == 4 and (
        len({*places, *of_matrix}) == 5 and of_map == places[0] + of_map[1] + places[1:])
    sizes = [dict(zip(term, size, strict=True)).get(of_map[1:2])  # one of 1 would be repeated
             for term, size in zip(terms, _operands(shapes), strict=True)]
    if not is_product or {*of_matrix} != {output[1], of_map[1]} or sizes[0] != sizes[1]:
        return None
    if of_matrix[0] == of_map[1]:
        matrix = call(permute, matrix, dims=(1, 0))
    return call(conv2d, image, call(as_filter, matrix), None, None, stride=(1, 1), padding=(0, 0),
                dilation=(1, 1), groups=1)


def _multiply_adds(shapes: Shapes) -> int:
    output = _terms(shapes)[1]
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
    if not isinstance(equation, str) or len(operands) > 2:
        raise Refusal("a formula of more than two operands", "two operands at a time")
    return call(einsum, *operands, equation=_in_full(equation))


def _in_full(equation: str) -> str:
    """Return a formula without blanks, and with the output that it means."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = string.ascii_uppercase + string.ascii_lowercase
        output = "".join(c for c in letters if inputs.count(c) == 1)
        output = "..." * ("." in inputs) + output
    return f"{inputs}->{output}"
