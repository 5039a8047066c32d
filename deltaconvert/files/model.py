"""Converted models to files and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltaconvert.atomic import written_whole
from deltaconvert.config import Config
from deltaconvert.errors import (
    CheckpointError,
    ConfigError,
    DamagedError,
    InputError,
    UnsupportedError,
)
from deltaconvert.files.container import (
    MALFORMED,
    Path_,
    as_path,
    damaged,
    opened,
    pack,
    read_header,
    unpack,
)
from deltaconvert.files.tensors import STORED_DTYPES, Entry, collect, skeleton
from deltaconvert.graph_json import decode_graph, decode_spec, encode_graph, encode_spec
from deltaconvert.graph_json.arguments import decode, encode
from deltaconvert.islands import IslandsModule
from deltaconvert.model_graph import ModelGraph
from deltaconvert.module import DeltaModule
from deltaconvert.preprocessing import Preprocessing
from deltaconvert.words import a_kind


def save(delta: DeltaModule, path: Path_) -> None:
    """Write a converted model to one file, which `load` reads without the model's source.

    Weights are written as they are now; streams and their pasts are not. The file appears
    whole or not at all.

    A model that may be called in several ways is written as it was called last: with those of its
    optional inputs, and with those numbers. The tensors are then given one after the other.

    Args:
        delta: made by `convert` or `load`.
        path: by convention ending in ``.delta``; an existing file is replaced.

    Raises:
        UnsupportedError: where parts of the model have no form in a file; all are listed. The
            code between islands has none.
        WriteError: where the file cannot be written.
        InputError: where ``delta`` is no converted model, or ``path`` no path.
    """
    if isinstance(delta, IslandsModule):
        raise UnsupportedError(
            f"between its islands {type(delta.model).__name__} runs code of its own, and a file "
            "holds no code. Keep the weights, torch.save(delta.state_dict(), path), and convert "
            "the model from its source each time; or save an island, delta.islands[path].")
    if not isinstance(delta, DeltaModule):
        raise InputError(f"save takes a converted model, not {a_kind(delta)}: do "
                         "deltaconvert.save(deltaconvert.convert(model), path).")
    traced = delta.kept
    if traced.is_guess:
        raise InputError("the model's code branches on shapes or on numbers, and a file holds no "
                         "code: it is for one size. Run a frame of it before saving, or give "
                         "convert its example_inputs (on the command line --size).")
    tensors: dict[str, Tensor] = {}
    entries = collect(delta, tensors)
    model = {
        "graph": encode_graph(traced.graph, delta._root),
        "outputs": encode_spec(traced.out_spec),
        "config": delta.config.to_dict(),
        "strict": delta.strict,
        "traced_for": traced.traced_for,
        "dtypes": encode(traced.dtypes if traced.traced_for else None, {}),
        "preprocessing": delta.preprocessing and delta.preprocessing.to_dict(),
        "tensors": [vars(entry) for entry in entries],
    }
    # What load would refuse is not written.
    decode_graph(model["graph"], [entry.name for entry in entries])
    data = pack(model, tensors)
    with written_whole(as_path(path)) as partial:
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
    with opened(as_path(path)) as (file, head, _):
        data = head + file.read()
    model, tensors = unpack(data, path)
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
        zeros = {name: torch.zeros((), dtype=STORED_DTYPES[dtype], device="cpu").expand(shape)
                 for name, (dtype, shape) in header.tensors.items()}
        entries = [entry | {"memory_format": None} for entry in header.model["tensors"]]
    except MALFORMED as error:
        raise damaged(path, "its list of tensors cannot be read") from error
    if sum(tensor.nbytes for tensor in zeros.values()) != header.tensor_nbytes:
        raise damaged(path, "its tensors are not of the sizes that it gives for them")
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


def _assemble(model: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DeltaModule:
    entries = [Entry(**entry) for entry in model["tensors"]]
    root = skeleton(entries, tensors)
    graph = decode_graph(model["graph"], [entry.name for entry in entries])
    results = graph.output_node().args[0]
    assert isinstance(results, (list, tuple))
    out_spec = decode_spec(model["outputs"], len(results))
    strict, traced_for = model["strict"], model["traced_for"]
    if not isinstance(strict, bool):
        raise TypeError("strict is neither true nor false")
    if traced_for is not None:
        traced_for = [tuple(int(size) for size in shape) for shape in traced_for]
    dtypes = decode(model.get("dtypes"), {})
    if not all(isinstance(dtype, torch.dtype) for dtype in dtypes or ()):
        raise TypeError("dtypes are not all types of numbers")
    traced = ModelGraph(graph, out_spec, traced_for, dtypes)
    return DeltaModule(root, traced, _config(model["config"]), strict=strict,
                       preprocessing=_preprocessing(model))


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
