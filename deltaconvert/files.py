"""``.delta`` files: a converted model as one safetensors file, which runs nothing when read.

The tensors are the model's own, under the names of its state dict, in their dtypes and the
layout of the original; tied ones once. The rest is JSON in the header's ``__metadata__``,
under the one key ``deltaconvert`` (safetensors writes several in a random order, and the
same model shall give the same file):

- ``version`` of the format, looked at before anything else;
- ``sha256`` of the description and the tensors;
- ``model``, the description: the normalised graph (see `graph_json`), the structure of the
  outputs, the configuration, and which tensor is what.

The passes from `fold_batch_norm` on run again when the model is used.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor, nn

from deltaconvert.atomic import written_whole
from deltaconvert.config import Config
from deltaconvert.errors import (
    CheckpointError,
    ConfigError,
    DamagedError,
    InputError,
    UnsupportedError,
    VersionError,
)
from deltaconvert.graph_json import decode_graph, decode_spec, encode_graph, encode_spec
from deltaconvert.islands import IslandsModule
from deltaconvert.model_graph import ModelGraph
from deltaconvert.module import DeltaModule
from deltaconvert.preprocessing import Preprocessing

KEY = "deltaconvert"
VERSION = 1
# Bytes. Parsed, a description takes many times its length; a network of 240 operators has
# 0.3 MB of it.
LARGEST_HEADER = 16_000_000
# FX writes names into source code, quoted where they are no identifiers.
NAME_PART = re.compile(r"[\w +/:@-]{1,200}")
DEEPEST_NAME = 64  # parts
MEMORY_FORMATS = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}
STORED_DTYPES = {  # by the names that safetensors has for them
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
# What Python raises on JSON that has not the form it should have.
MALFORMED = (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError,
             AssertionError, RecursionError)

Path_ = str | os.PathLike[str]
Kind = Literal["parameter", "buffer", "temporary", "constant"]


@dataclass(frozen=True)
class _Entry:
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


def save(delta: DeltaModule, path: Path_) -> None:
    """Write a converted model to one file, which `load` reads without the model's source.

    Weights are written as they are now; streams and their pasts are not. The file appears
    whole or not at all.

    Args:
        delta: made by `convert` or `load`.
        path: by convention ending in ``.delta``; an existing file is replaced.

    Raises:
        UnsupportedError: where parts of the model have no form in a file; all are listed. The
            code between islands has none.
        WriteError: where the file cannot be written.
        InputError: where ``delta`` is no converted model.
    """
    if isinstance(delta, IslandsModule):
        raise UnsupportedError(
            f"between its islands {type(delta.model).__name__} runs code of its own, and a file "
            "holds no code. Keep the weights, torch.save(delta.state_dict(), path), and convert "
            "the model from its source each time; or save an island, delta.islands[path].")
    if not isinstance(delta, DeltaModule):
        raise InputError(f"save takes a converted model, not a {type(delta).__name__}: do "
                         "deltaconvert.save(deltaconvert.convert(model), path).")
    if delta.traced.is_guess:
        raise InputError("the model's code branches on shapes, and a file holds no code: it is "
                         "for frames of one size. Run a frame of it before saving, or give "
                         "convert its example_inputs (on the command line --size).")
    tensors: dict[str, Tensor] = {}
    entries = _collect(delta, tensors)
    model = {
        "graph": encode_graph(delta.graph, delta._root),
        "outputs": encode_spec(delta.traced.out_spec),
        "config": delta.config.to_dict(),
        "strict": delta.strict,
        "traced_for": delta.traced.traced_for,
        "preprocessing": delta.preprocessing and delta.preprocessing.to_dict(),
        "tensors": [vars(entry) for entry in entries],
    }
    # What load would refuse is not written.
    decode_graph(model["graph"], [entry.name for entry in entries])  # type: ignore[arg-type]
    data = _pack(model, tensors)
    with written_whole(Path(path)) as partial:
        partial.write_bytes(data)


def load(path: Path_) -> DeltaModule:
    """Read a converted model; needs neither the model's source nor trust in the file.

    Nothing that is stored is executed: the graph can name nothing but pure tensor functions.
    Named tuples among the outputs are new classes with the same name and fields.

    Args:
        path: of a file that `save` wrote.

    Returns:
        The model on the CPU, with the configuration it was saved with; streams start afresh.

    Raises:
        CheckpointError: the file is missing, damaged, cut off, of another kind or a newer
            version, or names something it may not.
    """
    with _opened(Path(path)) as (file, head, _):
        data = head + file.read()
    model, tensors = _unpack(data, path)
    del data  # the tensors are copies: a large model is in memory twice no longer than needed
    delta = _built(model, tensors, path)
    delta.loaded_from = str(path)
    return delta


def load_structure(path: Path_) -> DeltaModule:
    """Read a converted model from the header alone: zeros, which take no memory, for its weights.

    Its graph, its shapes and what a frame costs are the model's. What it computes means nothing.

    Raises:
        CheckpointError: as `load`, but for what only the weights can tell.
    """
    header = read_header(path)
    try:
        zeros = {name: torch.zeros((), dtype=STORED_DTYPES[dtype]).expand(shape)
                 for name, (dtype, shape) in header.tensors.items()}
        entries = [entry | {"memory_format": None} for entry in header.model["tensors"]]
    except MALFORMED as error:
        raise _damaged(path, "its list of tensors cannot be read") from error
    if sum(tensor.nbytes for tensor in zeros.values()) != header.tensor_nbytes:
        raise _damaged(path, "its tensors are not of the sizes that it gives for them")
    return _built(header.model | {"tensors": entries}, zeros, path)


def _built(model: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path_) -> DeltaModule:
    try:
        return _assemble(model, tensors)
    except (CheckpointError, ConfigError) as error:
        kind = type(error) if isinstance(error, CheckpointError) else DamagedError
        raise kind(f"{path} cannot be loaded: {error}") from None
    except MALFORMED as error:
        raise DamagedError(
            f"{path} was not written by deltaconvert.save: its description of the model is "
            f"malformed ({type(error).__name__}: {error!s:.200}).") from error


@dataclass(frozen=True)
class Header:
    """What a file says of itself in its header, before any weight is read.

    Args:
        version: of the format.
        sha256: of the description and the tensors, as written; not checked here, since that
            needs the tensors.
        model: the description, see the top of this module.
        tensors: dtype (as safetensors calls it) and shape, by name.
        nbytes: of the whole file.
        tensor_nbytes: of the tensors.
    """

    version: int
    sha256: str
    model: dict[str, Any]
    tensors: dict[str, tuple[str, list[int]]]
    nbytes: int
    tensor_nbytes: int


def read_header(path: Path_) -> Header:
    """Read the header of a ``.delta`` file; the weights are left on the disk.

    Raises:
        CheckpointError: as `load`, but for what only the weights can tell.
    """
    path = Path(path)
    with _opened(path) as (file, head, size):
        text = head[8:] + file.read(int.from_bytes(head[:8], "little") - 1)
    header, told, end = _parse_header(text, path)
    if 8 + len(text) + end > size:
        raise _cut_off(path, size, 8 + len(text) + end)
    if not isinstance(told.get("model"), dict):
        raise _damaged(path, "its header holds no description of a model")
    try:
        tensors = {name: (str(t["dtype"]), list(t["shape"])) for name, t in header.items()}
    except MALFORMED as error:
        raise _damaged(path, "its list of tensors cannot be read") from error
    return Header(told["version"], str(told.get("sha256")), told["model"], tensors, size, end)


# --- tensors to write -------------------------------------------------------------------


def _collect(delta: DeltaModule, tensors: dict[str, Tensor]) -> list[_Entry]:
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
        entries.append(_Entry(name, kind, stored.setdefault(key, name), _memory_format(tensor)))
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
    for node in delta.graph.nodes:
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


# --- the container ----------------------------------------------------------------------


def _pack(model: Mapping[str, Any], tensors: Mapping[str, Tensor], version: int = VERSION) -> bytes:
    """Return the bytes of a file."""
    from safetensors.torch import save as to_bytes

    told = {"version": version, "sha256": _checksum(model, version, tensors), "model": model}
    packed: bytes = to_bytes(dict(tensors), {KEY: json.dumps(told, allow_nan=False)})
    if int.from_bytes(packed[:8], "little") > LARGEST_HEADER:
        raise UnsupportedError("the description of this model is too large for a safetensors "
                               f"file: a header holds at most {LARGEST_HEADER} bytes.")
    return packed


def _checksum(model: Mapping[str, Any], version: int, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the description, and of each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps([version, model], allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], bytes, int]]:
    """Open a file whose beginning is that of a safetensors file; give that, and its size."""
    try:
        with open(path, "rb") as file:
            head, size = file.read(9), os.fstat(file.fileno()).st_size
            _check_head(head, path, size)
            yield file, head, size
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist. Give a file that deltaconvert.save "
                              "wrote.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None


def _check_head(head: bytes, path: Path, size: int) -> None:
    header = int.from_bytes(head[:8], "little")
    if size == 0:
        raise DamagedError(f"{path} is empty (0 bytes): save or copy it again.")
    if head[8:] != b"{":
        raise CheckpointError(f"{path} is not a .delta file. Convert a model and write it with "
                              "deltaconvert.save.")
    if header > LARGEST_HEADER:
        raise DamagedError(f"{path} is damaged: it claims a header of {header} bytes; "
                           f"{LARGEST_HEADER} is the most there can be. Copy it again.")
    if 8 + header > size:
        raise _cut_off(path, size, 8 + header)


def _parse_header(text: bytes, path: Path_) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return a header's tensors, what deltaconvert says in it, and where the last tensor ends."""
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        end = max((int(t["data_offsets"][1]) for t in header.values()), default=0)
        told = json.loads(metadata[KEY]) if KEY in metadata else None
    except MALFORMED as error:
        raise _damaged(path, "its header cannot be read") from error
    if not isinstance(told, dict):
        raise CheckpointError(f"{path} is a safetensors file but not a converted model. Build its "
                              "model, load these weights, convert it, and save the result.")
    _check_version(told.get("version"), path)
    return header, told, end


def _unpack(data: bytes, path: Path_) -> tuple[Any, dict[str, Tensor]]:
    """Return the description and the tensors of a file that is whole and undamaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    start = 8 + int.from_bytes(data[:8], "little")
    _, told, end = _parse_header(data[8:start], path)
    if start + end > len(data):
        raise _cut_off(path, len(data), start + end)
    try:
        tensors = from_bytes(data)
        checksum = _checksum(told["model"], VERSION, tensors)
    except (SafetensorError, *MALFORMED) as error:
        raise _damaged(path, str(error)[:200]) from error
    if checksum != told.get("sha256"):
        raise _damaged(path, "its contents do not match its checksum")
    return told["model"], tensors


def _cut_off(path: Path_, size: int, needed: int) -> DamagedError:
    return DamagedError(f"{path} is cut off: it has {size} of at least {needed} bytes. Copy or "
                        "download it again.")


def _damaged(path: Path_, reason: str) -> DamagedError:
    return DamagedError(f"{path} is damaged: {reason}. Copy or download it again.")


def _check_version(version: Any, path: Path_) -> None:
    if type(version) is not int or version < 1:
        raise _damaged(path, f"{version!r:.40} is no format version")
    if version > VERSION:
        raise VersionError(f"{path} has the format version {version:.6g}; this deltaconvert reads "
                           f"up to {VERSION}. Update it: pip install -U deltaconvert")


# --- the module -------------------------------------------------------------------------


def _assemble(model: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DeltaModule:
    entries = [_Entry(**entry) for entry in model["tensors"]]
    root = _skeleton(entries, tensors)
    graph = decode_graph(model["graph"], [entry.name for entry in entries])
    results = graph.output_node().args[0]
    assert isinstance(results, (list, tuple))
    out_spec = decode_spec(model["outputs"], len(results))
    strict, traced_for = model["strict"], model["traced_for"]
    if not isinstance(strict, bool):
        raise TypeError("strict is neither true nor false")
    if traced_for is not None:
        traced_for = [tuple(int(size) for size in shape) for shape in traced_for]
    return DeltaModule(root, ModelGraph(graph, out_spec, traced_for), _config(model["config"]),
                       strict=strict, preprocessing=_preprocessing(model))


def _preprocessing(model: Mapping[str, Any]) -> Preprocessing | None:
    told = model.get("preprocessing")
    return None if told is None else Preprocessing.from_dict(told)


def _config(data: Any) -> Config:
    """Rebuild a configuration; `Config` itself checks what its own code compares."""
    config = Config.from_dict(data)
    kinds = {"backend": str, "dense_fallback": bool, "graphs": bool, "threads": (int, type(None))}
    for name, kind in kinds.items():
        if not isinstance(getattr(config, name), kind):  # type: ignore[arg-type]
            raise TypeError(f"the setting {name} is of the wrong kind")
    return config


def _skeleton(entries: list[_Entry], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make plain modules that hold each tensor under its name."""
    root, made = nn.Module(), dict[tuple[str, str | None, bool], Tensor]()
    for entry in entries:
        if entry.stored not in tensors:
            raise DamagedError(f"the tensor {entry.stored!r:.80} is missing in it.")
        key = entry.stored, entry.memory_format, entry.kind == "parameter"
        if key not in made:
            made[key] = _restored(tensors[entry.stored], entry)
        _place(root, entry, made[key])
    return root


def _restored(tensor: Tensor, entry: _Entry) -> Tensor:
    if entry.memory_format is not None:
        wanted = MEMORY_FORMATS[entry.memory_format]
        tensor = torch.empty_like(tensor, memory_format=wanted).copy_(tensor)
    return nn.Parameter(tensor, requires_grad=False) if entry.kind == "parameter" else tensor


def _place(root: nn.Module, entry: _Entry, tensor: Tensor) -> None:
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
