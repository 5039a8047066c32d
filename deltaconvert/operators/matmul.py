"""Products of two values that change: what attention is made of. They run whole."""

from __future__ import annotations

import operator as python
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.operators.registry import Refusal, Shapes, call, operator, spelled

ADVICE = "none: every place is weighed against every other; its threshold keeps small changes back"


def _every_place(shapes: Shapes) -> str:
    return "it multiplies every place with every other, as an attention does"


@operator(rule="global", not_local=_every_place, advice=ADVICE)
def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Multiply the last two dimensions as matrices."""
    return x @ y


@spelled(python.matmul, torch.matmul, "matmul", "__matmul__")
def _matmul(input, other):
    return call(matmul, input, other)


@spelled(torch.bmm, torch.mm, "bmm", "mm")
def _bmm(input, mat2):
    return call(matmul, input, mat2)


@operator(rule="global", not_local=_every_place, advice=ADVICE)
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool,
              scale: float | None, enable_gqa: bool) -> Tensor:
    """Return ``softmax(q k^T scale + mask) v``."""
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=scale,
                                          enable_gqa=enable_gqa)


@spelled(F.scaled_dot_product_attention)
def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
               is_causal: bool = False, scale: float | None = None,
               enable_gqa: bool = False) -> Any:
    if dropout_p:
        raise Refusal("attention with dropout: its result is random")
    return call(attention, query, key, value, attn_mask, is_causal=is_causal, scale=scale,
                enable_gqa=enable_gqa)
