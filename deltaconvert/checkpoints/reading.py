"""Files of weights.

A file of weights is data: nothing stored in it is ever executed, unless the user says that
it is trusted.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaconvert.errors import CheckpointError, DamagedError, PickleError, UnsafeError
from deltaconvert.words import a_kind, capped

logger = logging.getLogger(__name__)

TORCH_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".tar", ".th"})

# Where training scripts keep the weights in a checkpoint. Averaged weights come first:
# where a script keeps them, they are the ones its published results were measured with.
AVERAGED_ENTRIES = (
    "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema", "ema",
)  # fmt: skip
PLAIN_ENTRIES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "params",
    "weights", "shadow", "module",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A state dict and where it was found.

    Attributes:
        state: tensors on the CPU by name, as the file has them.
        entry: the entry of the training checkpoint that held them, as in
            `model_ema.module`; empty where the file is the state dict itself.
    """

    state: dict[str, Tensor]
    entry: str


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; see `read_checkpoint`, which also says where."""
    return read_checkpoint(path).state


def read_checkpoint(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> Checkpoint:
    """Read a state dict, or find it in a training checkpoint, without executing anything.

    `.safetensors` files and those of `torch.save` (.pt, .pth, .ckpt, .bin, .tar) are read,
    the latter with PyTorch's unpickler for weights only; and weights in several such files,
    by their index (`model.safetensors.index.json`) or by the folder that holds it. Where a
    checkpoint holds averaged weights (`model_ema`, `ema` ...) beside the plain ones, the
    averaged are taken.

    Args:
        path: of the file, the index or the folder.
        trust_pickle: where a file of `torch.save` holds objects, run the code that makes
            them, whatever it is. Models among them give their state dicts.

    Raises:
        PickleError: the file would run code, and is not trusted.
        CheckpointError: the file is missing, empty, damaged or of another kind, or holds no
            state dict or several.
    """
    path = index_in(Path(path))
    _check_file(path)
    found: object
    if path.name.endswith(INDEX_SUFFIX):
        found = _read_shards(path, trust_pickle)
    elif path.suffix.lower() == ".safetensors":
        found = _read_safetensors(path)
    else:
        found = _read_torch(path, trust_pickle)
    checkpoint = _locate(found, path)
    if checkpoint.entry:
        logger.info("%s: using the entry %s", path, checkpoint.entry)
    return checkpoint


INDEX_SUFFIX = ".index.json"


def index_in(path: Path) -> Path:
    """Return the index of the shards in a folder; any other path as it is."""
    found = sorted(path.glob(f"*{INDEX_SUFFIX}")) if path.is_dir() else []
    if len(found) > 1:
        raise CheckpointError(f"{path} holds several indices: give the one you mean, "
                              f"{' or '.join(p.name for p in found)}")
    return found[0] if found else path


def _read_shards(path: Path, trust_pickle: bool) -> dict[str, Tensor]:
    """Read the tensors that an index lists, each from the file beside it that it names."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        by_file: dict[str, list[str]] = {}
        for name, file in listed.items():
            by_file.setdefault(file, []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no index of weights, which has a \"weight_map\" from "
                              f"names to files ({type(error).__name__}): download it again"
                              ) from error
    state: dict[str, Tensor] = {}
    for file, names in by_file.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path} names the file {file!r:.80}: shards lie beside it")
        shard = read_checkpoint(path.parent / file, trust_pickle=trust_pickle).state
        missing = [name for name in names if name not in shard]
        if missing:
            raise CheckpointError(f"{path.parent / file} lacks {capped(missing)}, which "
                                  f"{path.name} says it holds: download both again")
        state |= {name: shard[name] for name in names}
    return state


def _check_file(path: Path) -> None:
    if path.name.endswith(INDEX_SUFFIX) and path.is_file():
        return
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}. Give a file of weights: .safetensors, .pt or .pth")
    suffix = path.suffix.lower()
    if suffix == ".delta":
        raise CheckpointError(f"{path} is a converted model: open it with deltaconvert.load; "
                              "on the command line, run, validate and tune take it as it is")
    if suffix == ".pt2":
        raise CheckpointError(
            f"{path} is a program of torch.export, model and weights: open it with "
            "deltaconvert.read_program, on the command line without --model"
        )
    if suffix != ".safetensors" and suffix not in TORCH_SUFFIXES:
        raise CheckpointError(
            f"{path}: files of weights end in .safetensors, "
            f"{', '.join(sorted(TORCH_SUFFIXES))}, not in {suffix or 'nothing'}"
        )
    _check_first_bytes(path)


def _check_first_bytes(path: Path) -> None:
    """Recognise what downloads leave behind in the place of weights."""
    with open(path, "rb") as file:
        head = file.read(64).lstrip().lower()
    if path.stat().st_size == 0:
        raise DamagedError(f"{path} is empty (0 bytes): download or save it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights. Do: git lfs pull")
    if head.startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page, not weights: download the file itself")


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_torch(path: Path, trust_pickle: bool) -> object:
    if _has_member(path, "/models/model.json"):
        raise CheckpointError(f"{path} is a program of torch.export, not weights. Give it a name "
                              "that ends in .pt2, and no model with it")
    if _has_member(path, "/constants.pkl"):  # a table that weights alone do not need
        raise CheckpointError(
            f"{path} is a TorchScript program, not weights. Where you trust it, keep the weights "
            "alone: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
        )
    _check_unpacked_size(path)
    try:
        with torch.serialization.safe_globals(_plain_data()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes PyTorch raise nearly any type
        refused = _unreadable(path, error)
        if not (trust_pickle and isinstance(refused, PickleError)):
            raise refused from error
    return _read_trusted(path)


def _read_trusted(path: Path) -> object:
    logger.warning("%s: unpickling it runs the code that it names, because it is trusted", path)
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever the code in it raises
        raise CheckpointError(
            f"{path} was trusted, and unpickling it raised {type(error).__name__}: {error}. The "
            "packages that it was saved with must be installed") from error


class _Ignored:
    """Stands for an object of a training framework that holds settings or statistics."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Take the state for nothing."""


class _IgnoredDict:
    """Stands for a dict of a framework's own kind; entries go into one of Python's."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        """Make the dict that PyTorch's unpickler fills."""
        return OrderedDict()


# What frameworks keep beside the weights, and what stands for it: nothing of theirs is
# imported. Namespaces hold the arguments of a training script.
IGNORED = (
    "argparse.Namespace", "datetime.datetime", "datetime.timedelta",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "pathlib._local.PurePosixPath",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode",
    "typing.Any",
    # Of HistoryBuffer, whose own methods are in it. What stands for it looks nothing up.
    "builtins.getattr",
    # NumPy's own numbers and arrays, in its older and newer places.
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.ndarray", "numpy.dtype",
)
IGNORED_DICTS = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "mmengine.config.config.ConfigDict", "addict.addict.Dict",
)


def _plain_data() -> list[Any]:
    """Return what may be unpickled beside tensors, as pairs of a stand-in and a name."""
    # A class each: PyTorch warns of one that goes by several names.
    return [(type("Ignored", (base,), {}), name)
            for base, names in ((_Ignored, IGNORED), (_IgnoredDict, IGNORED_DICTS))
            for name in names]


def _check_unpacked_size(path: Path) -> None:
    """Refuse files that are small on the disk and large in memory; torch.save packs nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        unpacked = 0
    if unpacked > path.stat().st_size:
        raise UnsafeError(f"{path} has {path.stat().st_size} bytes and would unpack to {unpacked}: "
                          "torch.save compresses nothing, so something else wrote it. Get it from "
                          "where it was made, or save it anew")
    if _holds(path, b"\nbytearray\n"):
        raise UnsafeError(f"{path} makes byte arrays of any size as it is read, which weights do "
                          "not need. Get it from where it was made")


def _holds(path: Path, text: bytes) -> bool:
    if path.stat().st_size == 0:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(text) >= 0


def _has_member(path: Path, end: str) -> bool:
    """Whether it is a zip file with a member whose name ends so."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(end) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    text = str(error)
    needed = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError) and needed:
        return PickleError(
            f"{path} holds more than weights, namely {needed[1]}, and was not opened: "
            "unpickling objects runs code that comes with the file. Where you trust it, say so "
            "(--trust-pickle, trust_pickle=True); or load it where it was trained and keep the "
            "weights alone: torch.save(model.state_dict(), 'weights.pt')"
        )
    last_line = (text.strip() or "unexpected end").splitlines()[-1]
    unknown = "Weights only" in text or isinstance(error, (LookupError, ValueError, EOFError))
    detail = "not a file of torch.save" if unknown else last_line
    return DamagedError(
        f"{path} is damaged, cut off or no file of weights ({type(error).__name__}: {detail}): "
        "download or save it again"
    )


def _locate(found: object, path: Path) -> Checkpoint:
    found = _opened(found)
    if _is_state_dict(found):
        return Checkpoint(_plain(found), "")
    swapped = _is_of_mmengine(found)
    for name in PLAIN_ENTRIES if swapped else AVERAGED_ENTRIES + PLAIN_ENTRIES:
        inner = _entry(found, name)
        if inner is not None:
            return inner
    others = _state_dicts_in(found)
    if len(others) == 1:
        return Checkpoint(_plain(others[0][1]), others[0][0])
    raise _no_state_dict(found, [name for name, _ in others], path)


def _entry(found: object, name: str, depth: int = 2) -> Checkpoint | None:
    """The state dict in an entry, or in an entry of it: some keep `ema` -> `module`."""
    inner = _opened(found.get(name)) if isinstance(found, Mapping) else None
    if _is_state_dict(inner):
        return Checkpoint(_plain(inner), name)
    for further in PLAIN_ENTRIES if depth > 1 else ():
        deeper = _entry(inner, further, depth - 1)
        if deeper is not None:
            return Checkpoint(deeper.state, f"{name}.{deeper.entry}")
    return None


def _is_of_mmengine(found: object) -> bool:
    """Whether the averaged weights are in the place of the plain ones, and these under their name.

    mmengine's hook for averages swaps the two as it saves.
    """
    meta = found.get("meta") if isinstance(found, Mapping) else None
    return isinstance(meta, Mapping) and "mmengine_version" in meta


def _opened(found: object) -> object:
    """The state dict of a model that a trusted file holds; anything else as it is."""
    return found.state_dict() if isinstance(found, nn.Module) else found


def _is_state_dict(found: object) -> bool:
    return (
        isinstance(found, Mapping)
        and len(found) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    )


def _plain(state: Any) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in state.items()}


def _state_dicts_in(found: object) -> list[tuple[str, object]]:
    items = found.items() if isinstance(found, Mapping) else ()
    return [(str(name), value) for name, value in items if _is_state_dict(value)]


def _no_state_dict(found: object, candidates: list[str], path: Path) -> CheckpointError:
    if candidates:
        return CheckpointError(
            f"{path} holds several state dicts ({', '.join(candidates)}): save the one you mean "
            "alone, torch.save(checkpoint[NAME], 'weights.pt')"
        )
    if isinstance(found, Mapping) and any(isinstance(v, _Ignored) for v in found.values()):
        return CheckpointError(
            f"no state dict in {path}, which holds objects in the place of tensors, NumPy arrays "
            "perhaps. Load it where it was saved, and keep tensors: torch.save({name: "
            "torch.as_tensor(array) for name, array in weights.items()}, 'weights.pt')"
        )
    what = _described_dict(found) if isinstance(found, Mapping) else a_kind(found)
    return CheckpointError(
        f"no state dict in {path}, which holds {what}. A state dict maps names to tensors: "
        "torch.save(model.state_dict(), 'weights.pt')"
    )


def _described_dict(found: Mapping[Any, object]) -> str:
    """The entries but for tensors, which are only counted."""
    others = [f"{name!r}: {a_kind(v)}" for name, v in found.items() if not _is_tensor(v)]
    tensors = len(found) - len(others)
    counted = [f"{tensors} tensors"] if tensors else []
    return f"a dict of {capped(counted + others)}" if found else "an empty dict"


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
