"""The tensors of a model, as a list of entries and as plain modules that hold them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from deltaconvert.errors import DamagedError, UnsupportedError

if TYPE_CHECKING:
    from deltaconvert.module import DeltaModule

# FX writes names into source code, quoted where they are no identifiers.
NAME_PART = re.compile(r"[\w +/:@-]{1,200}")
DEEPEST_NAME = 64  # parts
MEMORY_FORMATS = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}
STORED_DTYPES = {  # by the names that safetensors has for them
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
Kind = Literal["parameter", "buffer", "temporary", "constant"]


@dataclass(frozen=True)
class Entry:
    """A tensor of the model.

    Args:
        name: dotted, as in the state dict.
        kind: ``"temporary"`` is a buffer that the state dict leaves out; ``"constant"`` a
            tensor that is neither buffer nor parameter, and stays as it is in ``.half()``.
        stored: the name of the tensor in the file, another one where they are tied.
        memory_format: where it is not PyTorch's default; the file has it in the default.
    """

    name: str
    kind: Kind
    stored: str
    memory_format: str | None


def collect(delta: DeltaModule, tensors: dict[str, Tensor]) -> list[Entry]:
    """List the model's tensors in the order of its state dict, and put each once into a dict."""
    named = list(_named_tensors(delta._root))
    _check_state_dict(delta, {name for name, _, kind in named if kind in ("parameter", "buffer")})
    named += _constants(delta, {name for name, _, _ in named})
    stored: dict[Any, str] = {}
    entries = []
    for name, tensor, kind in named:
        _check_writable(name, tensor)
        memory = tensor.untyped_storage().data_ptr() if tensor.numel() else name
        key = memory, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
        entries.append(Entry(name, kind, stored.setdefault(key, name), _memory_format(tensor)))
        if stored[key] == name:
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return entries


def _named_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor, Kind]]:
    """Yield every name of every tensor; shared modules have several."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter, "parameter"
    for name, buffer in module._buffers.items():
        if buffer is not None:
            temporary = name in module._non_persistent_buffers_set
            yield prefix + name, buffer, "temporary" if temporary else "buffer"
    for name, child in module._modules.items():
        if child is not None:
            yield from _named_tensors(child, f"{prefix}{name}.")


def _constants(delta: DeltaModule, known: set[str]) -> list[tuple[str, Tensor, Kind]]:
    """Return what the graph reads beside parameters and buffers: a module's plain tensors."""
    found: dict[str, tuple[str, Tensor, Kind]] = {}
    for node in delta.kept.graph.nodes:
        name = str(node.target)
        if node.op != "get_attr" or name in known:
            continue
        value = functools.reduce(getattr, name.split("."), delta._root)
        if not isinstance(value, Tensor):
            raise UnsupportedError(f"the model reads {name}, a {type(value).__name__}: a file "
                                   "holds tensors. Make it a buffer, or part of the code.")
        found[name] = name, value, "constant"
    return list(found.values())


def _check_state_dict(delta: DeltaModule, names: set[str]) -> None:
    differing = sorted(set(delta.state_dict()) ^ names)
    if differing:
        raise UnsupportedError(
            "the model changes its state dict with code of its own, which a file cannot hold: "
            f"{', '.join(differing[:8])}. Convert it from its source each time.")


def _check_writable(name: str, tensor: Tensor) -> None:
    reason = ""
    if tensor.is_meta:
        reason = "is on the meta device and has no numbers: load the weights first"
    elif tensor.layout is not torch.strided or tensor.is_quantized:
        reason = "is sparse or quantised: make it an ordinary tensor"
    elif tensor.dtype not in STORED_DTYPES.values():
        reason = f"is of {tensor.dtype}, which safetensors files cannot hold: convert it"
    elif not _is_good_name(name):
        reason = "has a name that is too deep or has odd characters: rename it"
    if reason:
        raise UnsupportedError(f"the tensor {name!r} {reason}.")


def _is_good_name(name: str) -> bool:
    parts = name.split(".")
    return len(parts) <= DEEPEST_NAME and all(NAME_PART.fullmatch(part) for part in parts)


def _memory_format(tensor: Tensor) -> str | None:
    """Name the memory format that would give a tensor its strides, but for the default."""
    like = torch.empty_like(tensor, device="meta", memory_format=torch.contiguous_format)
    name = {4: "channels_last", 5: "channels_last_3d"}.get(tensor.dim())
    if name is None or tensor.stride() == like.stride():
        return None
    like = torch.empty_like(like, memory_format=MEMORY_FORMATS[name])
    return name if tensor.stride() == like.stride() else None


def skeleton(entries: list[Entry], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make plain modules that hold each tensor under its name."""
    root, made = nn.Module(), dict[tuple[str, str | None, bool], Tensor]()
    for entry in entries:
        if entry.stored not in tensors:
            raise DamagedError(f"the tensor {entry.stored!r:.80} is missing in it.")
        key = entry.stored, entry.memory_format, entry.kind == "parameter"
        if key not in made:
            made[key] = _restored(tensors[entry.stored], entry)
        place(root, entry, made[key])
    return root


def _restored(tensor: Tensor, entry: Entry) -> Tensor:
    if entry.memory_format is not None:
        wanted = MEMORY_FORMATS[entry.memory_format]
        tensor = torch.empty_like(tensor, memory_format=wanted).copy_(tensor)
    return nn.Parameter(tensor, requires_grad=False) if entry.kind == "parameter" else tensor


def place(root: nn.Module, entry: Entry, tensor: Tensor) -> None:
    """Put a tensor where its dotted name says, by the tables: names may be "0" or "reset"."""
    if not _is_good_name(entry.name):
        raise DamagedError(f"a tensor cannot have the name {entry.name!r:.80}.")
    *parents, last = entry.name.split(".")
    module = root
    for part in parents:
        _check_free(part, entry.name, module, "_parameters", "_buffers", "__dict__")
        module = module._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
    _check_free(last, entry.name, module, "_parameters", "_buffers", "_modules", "__dict__")
    if entry.kind == "parameter":
        module._parameters[last] = tensor  # type: ignore[assignment]
    elif entry.kind == "constant":
        module.__dict__[last] = tensor
    elif entry.kind in ("buffer", "temporary"):
        module._buffers[last] = tensor
        if entry.kind == "temporary":
            module._non_persistent_buffers_set.add(last)
    else:
        raise DamagedError(f"the tensor {entry.name!r:.80} is of the unknown kind "
                           f"{entry.kind!r:.40}.")


def _check_free(part: str, name: str, module: nn.Module, *tables: str) -> None:
    """Refuse what PyTorch itself refuses: the names of a module's own attributes, and doubles."""
    if hasattr(nn.Module, part) or any(part in getattr(module, table) for table in tables):
        raise DamagedError(f"a tensor cannot have the name {name!r:.80}.")
