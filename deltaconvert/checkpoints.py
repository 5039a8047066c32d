"""From what a user has, a model's name and a file of weights, to a model that holds them.

A file of weights is data: nothing stored in it is ever executed. Building a model does
run code, namely the library or module that the user names.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaconvert.errors import CheckpointError, InputError
from deltaconvert.passes.trace import private_copy

logger = logging.getLogger(__name__)

# --- models by name ---------------------------------------------------------------------

SPEC_FORMS = "torchvision:NAME, timm:NAME or package.module:factory"
# `torchvision:segmentation.fcn_resnet50` is how the documentation spells it; torchvision's
# own registry is flat.
_TORCHVISION_NAMESPACE = re.compile(
    r"^(models\.)?((segmentation|detection|video|quantization|optical_flow)\.)?"
)


def build_model(spec: str, model_args: Mapping[str, object] | None = None) -> nn.Module:
    """Build the model that a specification names, in eval mode and without pretrained weights.

    Args:
        spec: `torchvision:resnet50`, any name that torchvision's registry has, detection,
            segmentation and video included; `timm:NAME`; or `package.module:factory`, a
            class or function. The current folder is searched last for the module, so that
            a file in it cannot hide an installed package.
        model_args: keyword arguments for the builder.

    Raises:
        InputError: the package is missing, the name is unknown, the builder raises, or
            what it returns is not a module.
    """
    source, separator, name = spec.partition(":")
    if not (source and separator and name):
        raise InputError(f"a model is named {SPEC_FORMS}, got {spec!r}")
    arguments = dict(model_args or {})
    if source == "torchvision":
        model = _build_torchvision(name, arguments)
    elif source == "timm":
        model = _build_timm(name, arguments)
    else:
        model = _build_from_module(source, name, arguments)
    return model.eval()


def parse_model_args(items: Iterable[str]) -> dict[str, object]:
    """Read `name=value` items: values as Python literals (`10`, `[1, 2]`, `None`), else words.

    Raises:
        InputError: no name, a name twice, or `true`, `false`, `none` in small letters,
            which as words would all count as true.
    """
    arguments: dict[str, object] = {}
    for item in items:
        name, separator, text = item.partition("=")
        if not (separator and name.isidentifier()):
            raise InputError(f"a model argument is name=value, got {item!r}")
        if name in arguments:
            raise InputError(f"the model argument {name!r} is given twice")
        arguments[name] = _literal_or_word(name, text)
    return arguments


def _literal_or_word(name: str, text: str) -> object:
    if text in ("true", "false", "none", "null"):
        literal = "None" if text.startswith("n") else text.capitalize()
        raise InputError(
            f"{name}={text}: Python writes {name}={literal}; the word is {name}=\"'{text}'\""
        )
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _build_torchvision(name: str, arguments: dict[str, object]) -> nn.Module:
    models = _import_library("torchvision").models
    name = _TORCHVISION_NAMESPACE.sub("", name)
    known = models.list_models()
    if name not in known:
        raise InputError(f"torchvision has no model {name!r}{_nearest(name, known)}")
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    # A detector's builder downloads a backbone unless this second switch is off as well.
    without = {key: None for key in ("weights", "weights_backbone") if key in accepted}
    return _call(f"torchvision:{name}", models.get_model_builder(name), {**without, **arguments})


def _build_timm(name: str, arguments: dict[str, object]) -> nn.Module:
    timm = _import_library("timm")
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}{_nearest(name, timm.list_models())}")

    def create(**options: object) -> nn.Module:
        return timm.create_model(name, **options)

    return _call(f"timm:{name}", create, {"pretrained": False, **arguments})


def _import_library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"models of {name} need the package {name} ({error}). Do: pip install {name}"
        ) from error


def _build_from_module(module: str, factory: str, arguments: dict[str, object]) -> nn.Module:
    spec = f"{module}:{factory}"
    # The factory may import more from its folder, so it is called with that on the path.
    with _current_folder_last():
        found = _find_factory(_import_module(module), factory, spec)
        if isinstance(found, nn.Module):
            raise InputError(f"{spec} is a model already; name a function or class that makes one")
        return _call(spec, found, arguments)


@contextmanager
def _current_folder_last() -> Iterator[None]:
    before = list(sys.path)
    sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _import_module(module: str) -> Any:
    if not all(part.isidentifier() for part in module.split(".")):
        dotted = re.sub(r"\.py$", "", module).strip("./\\").replace("/", ".").replace("\\", ".")
        raise InputError(
            f"{module!r} is not a module's name; from the folder that holds it, write "
            f"{dotted}:factory"
        )
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _module_not_found(module, error) from error
    except (Exception, SystemExit) as error:  # a script without a main guard may exit
        raise InputError(f"importing {module} raised {_described(error)}") from error


def _module_not_found(module: str, error: ModuleNotFoundError) -> InputError:
    missing = error.name or str(error)
    if module == missing or module.startswith(f"{missing}."):
        return InputError(
            f"no module {missing!r}: it is neither installed nor in the current folder "
            f"({os.getcwd()}). Models are named {SPEC_FORMS}"
        )
    return InputError(f"{module} imports {missing!r}, which is not installed: pip install it")


def _find_factory(module: Any, factory: str, spec: str) -> Any:
    found = module
    for part in factory.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            where = getattr(module, "__file__", None) or "its folder"
            raise InputError(f"{spec}: no {part!r} in {where}{_nearest(part, names)}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{spec} is {_a(found)}, not a function or class that makes a model")
    return found


def _call(spec: str, factory: Callable[..., object], arguments: dict[str, object]) -> nn.Module:
    try:
        model = factory(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise InputError(
            f"{spec} was called with ({given}) and raised {_described(error)}. Arguments are "
            "given as model_args, on the command line as --model-arg name=value"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned {_a(model)}, not a torch.nn.Module")
    return model


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _a(value: object) -> str:
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _nearest(name: str, known: Sequence[str]) -> str:
    """Names that may have been meant, as the end of a message."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


# --- files of weights -------------------------------------------------------------------

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

WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")


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


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a state dict, or find it in a training checkpoint, without executing anything.

    `.safetensors` files and those of `torch.save` (.pt, .pth, .ckpt, .bin, .tar) are read,
    the latter with PyTorch's unpickler for weights only. Where a checkpoint holds averaged
    weights (`model_ema`, `ema` ...) beside the plain ones, the averaged are taken.

    Raises:
        CheckpointError: the file is missing, empty, damaged or of another kind, needs more
            than tensors to be unpickled, or holds no state dict or several.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix.lower() == ".safetensors":
        found = _read_safetensors(path)
    else:
        found = _read_torch(path)
    checkpoint = _locate(found, path)
    if checkpoint.entry:
        logger.info("%s: using the entry %s", path, checkpoint.entry)
    return checkpoint


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}. Give a file of weights: .safetensors, .pt or .pth")
    suffix = path.suffix.lower()
    if suffix == ".delta":
        raise CheckpointError(f"{path} is a converted model: open it with deltaconvert.load")
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
        raise CheckpointError(f"{path} is empty (0 bytes): download or save it again")
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
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_torch(path: Path) -> object:
    if _is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript program, not weights. Where you trust it, keep the weights "
            "alone: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes PyTorch raise nearly any type
        raise _unreadable(path, error) from error


def _is_torchscript(path: Path) -> bool:
    """Whether it is a zip file with a table of constants, which weights alone do not need."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    text = str(error)
    needed = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError) and needed:
        return CheckpointError(
            f"{path} holds more than weights, namely {needed[1]}, and was not opened: "
            "unpickling objects runs code that comes with the file. Where you trust it, load it "
            "where it was trained and keep the weights alone: "
            "torch.save(model.state_dict(), 'weights.pt')"
        )
    last_line = (text.strip() or "unexpected end").splitlines()[-1]
    detail = "not a file of torch.save" if "Weights only" in text else last_line
    return CheckpointError(
        f"{path} is damaged, cut off or no file of weights ({type(error).__name__}: {detail}): "
        "download or save it again"
    )


def _locate(found: object, path: Path) -> Checkpoint:
    if _is_state_dict(found):
        return Checkpoint(_plain(found), "")
    for name in AVERAGED_ENTRIES + PLAIN_ENTRIES:
        inner = _entry(found, name)
        if inner is not None:
            return inner
    others = _state_dicts_in(found)
    if len(others) == 1:
        return Checkpoint(_plain(others[0][1]), others[0][0])
    raise _no_state_dict(found, [name for name, _ in others], path)


def _entry(found: object, name: str, depth: int = 2) -> Checkpoint | None:
    """The state dict in an entry, or in an entry of it: some keep `ema` -> `module`."""
    inner = found.get(name) if isinstance(found, Mapping) else None
    if _is_state_dict(inner):
        return Checkpoint(_plain(inner), name)
    for further in PLAIN_ENTRIES if depth > 1 else ():
        deeper = _entry(inner, further, depth - 1)
        if deeper is not None:
            return Checkpoint(deeper.state, f"{name}.{deeper.entry}")
    return None


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
    what = _described_dict(found) if isinstance(found, Mapping) else _a(found)
    return CheckpointError(
        f"no state dict in {path}, which holds {what}. A state dict maps names to tensors: "
        "torch.save(model.state_dict(), 'weights.pt')"
    )


def _described_dict(found: Mapping[Any, object]) -> str:
    """The entries but for tensors, which are only counted."""
    others = [f"{name!r}: {_a(value)}" for name, value in found.items() if not _is_tensor(value)]
    tensors = len(found) - len(others)
    counted = [f"{tensors} tensors"] if tensors else []
    return f"a dict of {_capped(counted + others)}" if found else "an empty dict"


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


# --- weights into a model ---------------------------------------------------------------

MOST_LISTED = 8


def apply_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Put a state dict into a model; every tensor must find its place.

    Prefixes that training wrappers add to every name (`module.`, `model.`, `_orig_mod.`)
    are taken off where the model's own names do not have them. Two counters that only
    training needs are left out of account: a missing `num_batches_tracked`, and the
    `n_averaged` that an averaged model adds.

    Returns:
        The prefix that was taken off, empty where none was.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape; all of them
            are told at once, and the model is as it was.
    """
    expected = model.state_dict()
    given, prefix = strip_prefixes(state, expected)
    counters = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}
    given = {**counters, **given}
    problems = _mismatches(expected, given)
    if problems and not _loads_into_copy(model, given):
        raise CheckpointError(
            "the weights do not fit the model:\n"
            + "\n".join(f"  {p}" for p in problems)
            + "\nBuild the model with the arguments it was trained with (model_args, "
            "--model-arg), or choose its own weights"
        )
    model.load_state_dict(given)
    if prefix:
        logger.info("took the prefix %r off the names of the weights", prefix)
    return prefix


def strip_prefixes(
    state: Mapping[str, Tensor], expected: Iterable[str]
) -> tuple[dict[str, Tensor], str]:
    """Take off wrapper prefixes that every name in `state` has and no expected name has.

    Returns:
        The renamed state dict and the prefix, which may be several in a row.
    """
    expected = list(expected)
    stripped, taken = dict(state), ""
    if "n_averaged" not in expected:  # torch.optim.swa_utils.AveragedModel counts with it
        stripped.pop("n_averaged", None)
    while prefix := _common_prefix(stripped, expected):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
        taken += prefix
    return stripped, taken


def _common_prefix(names: Iterable[str], expected: Sequence[str]) -> str:
    names = list(names)
    for prefix in WRAPPER_PREFIXES:
        in_all = bool(names) and all(name.startswith(prefix) for name in names)
        if in_all and not any(name.startswith(prefix) for name in expected):
            return prefix
    return ""


def _mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in given]
    left_over = [name for name in given if name not in expected]
    # Comparing names is slow: only those that will be listed.
    left_over[:MOST_LISTED] = [name + _near(name, missing) for name in left_over[:MOST_LISTED]]
    shapes = [
        f"{name} is {list(given[name].shape)}, the model's is {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("not in the model", left_over), ("of another shape", shapes))
    return [f"{kind}: {len(found)}: {_capped(found)}" for kind, found in kinds if found]


def _near(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (near {close[0]})" if close else ""


def _capped(items: Sequence[str]) -> str:
    more = len(items) - MOST_LISTED
    return ", ".join(items[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _loads_into_copy(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether PyTorch takes it all the same: modules may rename old weights as they load."""
    try:
        private_copy(model).load_state_dict(state)
    except Exception:  # whatever a module's own hook, or its copying, raises
        return False
    return True
