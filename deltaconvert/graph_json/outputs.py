"""The structure of the outputs as JSON and back."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

from torch.utils import _pytree as pytree

from deltaconvert.errors import DamagedError, UnsupportedError
from deltaconvert.graph_json.arguments import plain_name


def encode_spec(spec: pytree.TreeSpec) -> Any:
    """Return JSON for the structure of a model's outputs.

    Raises:
        UnsupportedError: for containers that are not Python's own.
    """
    return _encode_tree(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))


def _encode_tree(tree: Any) -> Any:
    if type(tree) is int:
        return tree  # a leaf, by its place
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        parts = [_encode_tree(v) for v in tree]
        return {"named_tuple": [type(tree).__name__, list(tree._fields), parts]}
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [_encode_tree(v) for v in tree]}
    if type(tree) in (dict, OrderedDict):
        if not all(isinstance(key, (str, int)) for key in tree):
            raise UnsupportedError("the model returns a dict with keys that are neither strings "
                                   "nor numbers; a file cannot hold that.")
        kind = "dict" if type(tree) is dict else "ordered_dict"
        return {kind: [[key, _encode_tree(v)] for key, v in tree.items()]}
    raise UnsupportedError(
        f"the model returns a {type(tree).__module__}.{type(tree).__qualname__}, which needs the "
        "model's source; a file can hold tuples, lists, dicts and named tuples. Convert a "
        "module that returns one of these.")


def decode_spec(tree: Any, leaves: int) -> pytree.TreeSpec:
    """Build a structure of ``leaves`` outputs; named tuples are new classes of the same names.

    Raises:
        CheckpointError: where it does not hold these outputs, in their order.
    """
    order, spec = pytree.tree_flatten(_decode_tree(tree))
    if order != list(range(leaves)):
        raise DamagedError(f"the structure of its {leaves} outputs does not fit them.")
    return spec


def _decode_tree(tree: Any) -> Any:
    if type(tree) is int:
        return tree
    (kind, content), = tree.items()
    if kind == "named_tuple":
        name, fields, parts = content
        made = namedtuple(plain_name(name), [plain_name(f) for f in fields])  # type: ignore[misc]
        return made(*(_decode_tree(p) for p in parts))
    if kind in ("tuple", "list"):
        parts = [_decode_tree(p) for p in content]
        return tuple(parts) if kind == "tuple" else parts
    if kind in ("dict", "ordered_dict"):
        pairs = [(key, _decode_tree(p)) for key, p in content]
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    raise DamagedError(f"its outputs are in a container of an unknown kind, {kind!r:.60}.")
