"""Fold factors: what multiplies a convolution's channels by constants goes into its weights.

Before: ``c = conv2d(x, w, b)``, ``y = mul(c, scale)``; c has no other reader, and ``scale`` is a
constant: a number, or one for each channel.
After: ``y = conv2d(x, scaled_filter(w, scale), scaled_bias(b, scale))``.

A scale that a block learns for its branch, a residual that is damped, a division by a constant.
Comes before `fuse`, so that the add and the activation behind it are fused. Behind `store_as`, so
the weights are computed from the model's own again, to be rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule

from deltaconvert.operators.conv2d import conv2d
from deltaconvert.operators.conv_transpose2d import conv_transpose2d
from deltaconvert.operators.div import div
from deltaconvert.operators.mul import mul
from deltaconvert.operators.registry import call
from deltaconvert.passes.annotate import computed, write
from deltaconvert.passes.result import PassResult


def fold_factors(graph_module: GraphModule) -> PassResult:
    """Rewrite the graph in place."""
    result = PassResult("fold_factors")
    for node in list(graph_module.graph.nodes):
        if node.target not in (mul, div):
            continue
        convolution = next((a for a in node.args if _is_convolution(a)), None)
        if convolution is None:
            continue
        reason = _refuse(node, convolution)
        if reason:
            result.refused[node.name] = reason
            continue
        result.changed.append(f"{node.name}: into {convolution.name}")
        _fold(graph_module, convolution, node)
    graph_module.recompile()
    return result


def _is_convolution(argument: Any) -> bool:
    return (isinstance(argument, fx.Node) and argument.target in (conv2d, conv_transpose2d)
            and not argument.meta["constant"])


def _refuse(node: fx.Node, convolution: fx.Node) -> str | None:
    if len(convolution.users) > 1:
        return f"{convolution.name} has other readers"
    if node.target is div and (node.args[0] is not convolution or node.kwargs["rounding_mode"]):
        return "not a multiplication of it"
    value, mine = node.meta["value"], convolution.meta["value"]
    if value.shape != mine.shape or value.dtype != mine.dtype or value.dim() != 4:
        return "what it becomes has another shape or type"
    if not all(_is_constant(a) for a in (*convolution.args[1:3], _factor(node, convolution))):
        return "the factor or the weights depend on the frame"
    if not _is_of_channels(_value(_factor(node, convolution)), mine.shape[1]):
        return "the factor is not one number for each channel"
    return None if _is_exact(node, convolution) else (
        "its weights times the factor are too large or too small for their type")


def _is_exact(node: fx.Node, convolution: fx.Node) -> bool:
    """Whether each channel's scaled weights are numbers, and lose no more than rounding does.

    In float16 a product may hold what the factor of 1e-6 alone takes from the weights.
    """
    weight, bias = map(_value, convolution.args[1:3])
    factor, divides = _value(_factor(node, convolution)), node.target is div
    exact = scaled_filter(weight.double(), factor, divides, _groups(convolution))
    largest, lost = (_largest(numbers, _groups(convolution)) for numbers in (
        exact, exact.to(weight.dtype).double() - exact))
    if bias is not None:
        shift = scaled_bias(bias.double(), factor, divides)
        largest = largest + shift.abs()
        lost = lost + (shift.to(bias.dtype).double() - shift).abs()
    return bool((lost <= torch.finfo(weight.dtype).eps * largest).all())


def _largest(weight: Tensor, transposed_groups: int | None) -> Tensor:
    """Return the largest magnitude of each output channel's filter."""
    if transposed_groups is None:
        return weight.abs().flatten(1).amax(1)
    return weight.abs().unflatten(0, (transposed_groups, -1)).amax((1, 3, 4)).flatten()


def _groups(convolution: fx.Node) -> Any:
    """Return the groups of a transposed convolution, for `scaled_filter`."""
    return convolution.kwargs["groups"] if convolution.target is conv_transpose2d else None


def _factor(node: fx.Node, convolution: fx.Node) -> Any:
    return node.args[1] if node.args[0] is convolution else node.args[0]


def _is_constant(argument: Any) -> bool:
    return not isinstance(argument, fx.Node) or bool(argument.meta["constant"])


def _value(argument: Any) -> Any:
    return argument.meta["value"] if isinstance(argument, fx.Node) else argument


def _is_of_channels(factor: Any, channels: int) -> bool:
    if not isinstance(factor, Tensor):
        return isinstance(factor, int | float)
    return not factor.is_complex() and (factor.numel() == 1 or (
        factor.numel() == channels and factor.shape[-3:] == (channels, 1, 1)))


def _fold(graph_module: GraphModule, convolution: fx.Node, node: fx.Node) -> None:
    """Let the product stand for both, under the convolution's name."""
    x, weight, bias, *rest = convolution.args
    factor, divides = _factor(node, convolution), node.target is div

    def derived(function: Any, *arguments: Any) -> fx.Node:
        written = write(graph_module, call(function, *arguments), node, convolution)
        value = written.meta["value"]
        if value.dtype.itemsize < torch.float32.itemsize:
            written.meta["value"] = computed(graph_module, written).to(value.dtype)
        return written

    scaled = (derived(scaled_filter, weight, factor, divides, _groups(convolution)),
              None if bias is None else derived(scaled_bias, bias, factor, divides))
    node.target, node.args, node.kwargs = (
        convolution.target, (x, *scaled, *rest), dict(convolution.kwargs))
    value, name = node.meta["value"], convolution.name
    node.meta.update(convolution.meta | {"value": value})
    graph_module.graph.erase_node(convolution)
    node.name = name


def _scale(factor: Tensor | float, divides: bool) -> Tensor:
    scale = torch.as_tensor(factor, dtype=torch.float64).detach().flatten()
    return 1 / scale if divides else scale


def scaled_filter(weight: Tensor, factor: Tensor | float, divides: bool,
                  transposed_groups: int | None) -> Tensor:
    """Scale the filter of each output channel.

    Args:
        weight: ``[C_out, C_in / groups, kh, kw]``; ``[C_in, C_out / groups, kh, kw]`` where
            ``transposed_groups`` says that it is a transposed convolution's.
        factor: a number, or one for each output channel, in any shape.
        divides: by the factor.
        transposed_groups: the groups of a transposed convolution, else ``None``.
    """
    scale = _scale(factor, divides).to(weight.device)
    if transposed_groups is None:
        return (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype)
    grouped = weight.double().unflatten(0, (transposed_groups, -1))
    scale = scale.expand(transposed_groups * weight.shape[1])
    scaled = grouped * scale.view(transposed_groups, 1, -1, 1, 1)
    return scaled.flatten(0, 1).to(weight.dtype)


def scaled_bias(bias: Tensor, factor: Tensor | float, divides: bool) -> Tensor:
    """Scale the bias, ``[C_out]``."""
    return (bias.double() * _scale(factor, divides).to(bias.device)).to(bias.dtype)
