"""Find writes: calls of the user's own functions that write into what they are given.

Before: ``scores = matmul(q, k); biased = add_bias(scores)``, where ``add_bias`` does
``scores += bias`` and returns it, and was kept whole by ``torch.fx.wrap``.
After: the same, but ``add_bias`` is called on copies, and who reads ``scores`` behind it
reads ``biased``.

A function that returns nothing of use, ``add_bias(scores, bias)``, is made to return what it wrote
into. So nobody may drop it before that is known: `drop_unused`.

The last part of `functionalize`, which cannot look into such a function: PyTorch counts the
writes into each tensor, so `infer` sees them when it makes the call. Values that are kept from
frame to frame must not be written into by their readers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from deltaconvert.errors import UnsupportedError


def versions(node: fx.Node) -> dict[fx.Node, int]:
    """Return how often each tensor that a call is given was written into."""
    return {n: n.meta["value"]._version for n in node.all_input_nodes
            if isinstance(n.meta["value"], Tensor) and not n.meta["value"].is_inference()}


def drop_unused(graph: fx.Graph) -> None:
    """Drop what nobody reads, but for functions kept whole: they may write into arguments."""
    graph.eliminate_dead_code(lambda node: node.is_impure() or "whole" in node.meta)


def settle_writes(node: fx.Node, before: dict[fx.Node, int], value: Any) -> Any:
    """Let a call that wrote into its arguments work on copies, and later readers see the write.

    Args:
        node: the call.
        before: `versions` before it was made.
        value: what it returned.

    Returns:
        What it returns from now on.

    Raises:
        UnsupportedError: what was written into is read later, and is not what it returned.
    """
    for source, version in before.items():
        written = source.meta["value"]
        if written._version == version:
            continue
        node.meta["writes"] = True
        later = set(_behind(node))
        if source in node.args and ("returns" in node.meta or not node.users):
            value, node.meta["returns"] = written, node.args.index(source)
        if value is written:
            source.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        for relative in _before(node):
            if _share(relative.meta["value"], written) and later & set(relative.users):
                raise UnsupportedError(_advice(node, source, relative))
    return value


def _advice(node: fx.Node, source: fx.Node, relative: fx.Node) -> str:
    name = getattr(node.target, "__name__", str(node.target))
    where = f" ({node.meta['source']})" if node.meta.get("source") else ""
    same = "" if relative is source else f", which shares memory with {relative.name!r}"
    return (f"{name} writes into its argument {source.name!r}{same}, which is read behind it"
            f"{where}. Let it return what it has written and use that, or return a new tensor; or "
            "convert the parts before and behind it with modules=.")


def _behind(node: fx.Node) -> Iterator[fx.Node]:
    while (node := node.next).op != "root":
        yield node


def _before(node: fx.Node) -> Iterator[fx.Node]:
    while (node := node.prev).op != "root":
        yield node


def _share(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and (
        one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def on_copies(function: Callable[..., Any], returns: int | None = None) -> Callable[..., Any]:
    """Return a function that gives ``function`` copies of its tensors.

    With ``returns``, the argument in that place is returned, as it is afterwards.
    """
    def called(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        value = function(*args, **kwargs)
        return value if returns is None else args[returns]
    return functools.update_wrapper(called, function)
