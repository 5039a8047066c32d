"""Fold batch norm: into the derived weights of the convolution before it, per call site.

Before: ``c = conv2d(x, w, b)``, ``y = batch_norm(c, mean, var, gamma, beta)``; c has no
other reader.
After: ``y = conv2d(x, folded_weight(w, gamma, var), folded_bias(b, ...))``.

    s = gamma / sqrt(var + eps)
    (w * x + b - mean) * s + beta  =  (s w) * x + ((b - mean) s + beta)

The original weights stay as they are: the derived ones are part of the graph, computed in
double precision, once for all specialisations. A convolution called twice, with
a norm of its own behind each call, is folded twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.fx import GraphModule

from deltaconvert.operators.batch_norm import batch_norm
from deltaconvert.operators.conv2d import conv2d
from deltaconvert.operators.conv_transpose2d import conv_transpose2d
from deltaconvert.passes.find_writes import drop_unused
from deltaconvert.passes.fold_factors import scaled_filter
from deltaconvert.passes.functionalize import is_shape_read
from deltaconvert.passes.result import PassResult
from deltaconvert.sharing import made_once


def fold_batch_norm(graph_module: GraphModule) -> PassResult:
    """Rewrite the graph in place."""
    graph, result = graph_module.graph, PassResult("fold_batch_norm")
    for node in list(graph.nodes):
        if node.target is not batch_norm:
            continue
        reason = _refuse(node)
        if reason:
            result.refused[node.name] = reason
            continue
        convolution = node.args[0]
        assert isinstance(convolution, fx.Node)
        result.changed.append(f"{node.name}: into {convolution.name}")
        _fold(graph, convolution, node)
    drop_unused(graph)
    graph_module.recompile()
    return result


def _refuse(norm: fx.Node) -> str | None:
    convolution = norm.args[0]
    if not isinstance(convolution, fx.Node) or convolution.target not in (conv2d, conv_transpose2d):
        return "no convolution in front of it"
    if any(reader is not norm and not is_shape_read(reader) for reader in convolution.users):
        return f"{convolution.name} has other readers"
    if not all(_is_constant(argument) for argument in (*convolution.args[1:3], *norm.args[1:])):
        return f"the weights of {convolution.name} depend on the frame"
    return None


def _is_constant(argument: Any) -> bool:
    """Whether a weight follows from other weights alone."""
    return not isinstance(argument, fx.Node) or argument.op == "get_attr" or (
        argument.op != "placeholder" and all(map(_is_constant, argument.all_input_nodes)))


def _fold(graph: fx.Graph, convolution: fx.Node, norm: fx.Node) -> None:
    x, weight, bias, *rest = convolution.args
    _, mean, var, gamma, beta = norm.args
    eps = norm.kwargs["eps"]
    groups = convolution.kwargs["groups"] if convolution.target is conv_transpose2d else None
    with graph.inserting_before(norm):
        new_weight = graph.call_function(folded_weight, (weight, gamma, var, eps, groups))
        new_bias = graph.call_function(folded_bias, (bias, mean, gamma, beta, var, eps))
        folded = graph.create_node("call_function", _target(convolution),
                                   (x, new_weight, new_bias, *rest), dict(convolution.kwargs))
    for made in (new_weight, new_bias, folded):
        made.meta.update(convolution.meta)
    norm.replace_all_uses_with(folded)
    graph.erase_node(norm)
    folded.name, convolution.name = convolution.name, f"{convolution.name}_shape"
    if not convolution.users:  # else what reads its shape goes, and it, once shapes are known
        graph.erase_node(convolution)


def _target(node: fx.Node) -> Callable[..., Tensor]:
    target: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    return target


def _scale(gamma: Tensor | None, var: Tensor, eps: float) -> Tensor:
    scale = (var.double() + eps).rsqrt()
    return scale if gamma is None else scale * gamma.double()


@made_once
def folded_weight(weight: Tensor, gamma: Tensor | None, var: Tensor, eps: float,
                  transposed_groups: int | None) -> Tensor:
    """Scale the filter of each output channel.

    Args:
        weight: ``[C_out, C_in / groups, kh, kw]``; ``[C_in, C_out / groups, kh, kw]`` where
            ``transposed_groups`` says that it is a transposed convolution's.
        gamma, var: of the norm, ``[C_out]``.
        eps: of the norm.
        transposed_groups: the groups of a transposed convolution, else ``None``.
    """
    return scaled_filter(weight, _scale(gamma, var, eps), False, transposed_groups)


@made_once
def folded_bias(bias: Tensor | None, mean: Tensor, gamma: Tensor | None, beta: Tensor | None,
                var: Tensor, eps: float) -> Tensor:
    """Return the bias of the convolution and the norm together, ``[C_out]``."""
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    shift = shift * _scale(gamma, var, eps)
    if beta is not None:
        shift = shift + beta.double()
    return shift.to(mean.dtype if bias is None else bias.dtype)
