"""Arguments of calls as JSON and back: a closed set of kinds."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from deltaconvert.errors import CheckpointError, DamagedError

LARGEST_INT = 1 << 63
DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values()
          if isinstance(d, torch.dtype)}
MEMORY_FORMATS = {str(m).removeprefix("torch."): m for m in (
    torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)}


class Unwritable(Exception):
    """An argument that has no form in a file, and why."""


def encode(value: Any, refer: Mapping[fx.Node, Any]) -> Any:
    """Return JSON for an argument; ``refer`` gives that of a node."""
    if isinstance(value, fx.Node):
        return refer[value]
    if value is None or isinstance(value, bool) or type(value) is str:
        return value
    if isinstance(value, int) and abs(value) < LARGEST_INT:
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, (tuple, list, dict, slice)):
        return _encode_container(value, refer)
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is Ellipsis:
        return {"ellipsis": None}
    raise Unwritable(f"a {type(value).__name__} among the arguments ({value!r:.60})")


def _encode_container(value: Any, refer: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, slice):
        return {"slice": [encode(v, refer) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        if not all(is_name(key) for key in value):
            raise Unwritable(f"a dict among the arguments whose keys are no names ({value!r:.60})")
        return {"dict": {key: encode(v, refer) for key, v in value.items()}}
    parts = [encode(v, refer) for v in value]
    if isinstance(value, torch.Size):
        return {"size": parts}
    return parts if isinstance(value, list) else {"tuple": parts}


def decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """Return the argument that JSON stands for.

    Raises:
        CheckpointError: for anything that `encode` does not write.
    """
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int) and abs(value) < LARGEST_INT:
        return value
    if isinstance(value, list):
        return [decode(v, nodes) for v in value]
    if isinstance(value, dict) and len(value) == 1:
        (kind, content), = value.items()
        if kind in _KINDS:
            return _KINDS[kind](content, nodes)
    raise DamagedError(f"it has an argument of an unknown kind, {value!r:.60}.")


def _decode_node(content: Any, nodes: Mapping[str, fx.Node]) -> fx.Node:
    if content not in nodes:
        raise DamagedError(f"it reads the node {content!r:.60}, which does not come before it.")
    return nodes[content]


def _decode_dict(content: Any, nodes: Mapping[str, fx.Node]) -> dict[str, Any]:
    return {plain_name(key): decode(v, nodes) for key, v in content.items()}


def _decode_slice(content: Any, nodes: Mapping[str, fx.Node]) -> slice:
    start, stop, step = (decode(v, nodes) for v in content)
    return slice(start, stop, step)


def _decode_float(content: Any, nodes: Mapping[str, fx.Node]) -> float:
    return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]


def _decode_device(content: Any, nodes: Mapping[str, fx.Node]) -> torch.device:
    """Take the CPU, or for any GPU the current one."""
    if content == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:\d{1,3})?", content):
        raise CheckpointError(f"it names the device {content!r:.60}.")
    if not torch.cuda.is_available():
        raise CheckpointError(f"the model itself asks for {content}, and there is no GPU here.")
    return torch.device("cuda", torch.cuda.current_device())


_KINDS: Mapping[str, Callable[[Any, Mapping[str, fx.Node]], Any]] = {
    "node": _decode_node,
    "tuple": lambda content, nodes: tuple(decode(v, nodes) for v in content),
    "size": lambda content, nodes: torch.Size(decode(v, nodes) for v in content),
    "dict": _decode_dict,
    "slice": _decode_slice,
    "float": _decode_float,
    "dtype": lambda content, nodes: DTYPES[content],
    "memory_format": lambda content, nodes: MEMORY_FORMATS[content],
    "device": _decode_device,
    "ellipsis": lambda content, nodes: Ellipsis,
}


def is_name(text: Any, any_letters: bool = False) -> bool:
    """Whether this is an identifier, of ASCII as FX makes them or with any letters."""
    return isinstance(text, str) and len(text) < 400 and text.isidentifier() and (
        any_letters or text.isascii()) and not keyword.iskeyword(text)


def plain_name(text: Any) -> str:
    """Return the text.

    Raises:
        DamagedError: for one that is no `is_name`.
    """
    if not is_name(text):
        raise DamagedError(f"{text!r:.80} is not a plain name.")
    name: str = text
    return name
