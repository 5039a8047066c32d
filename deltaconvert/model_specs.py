"""Models by the names that users give them, and functions likewise.

Building a model runs code, namely the library or module that the user names.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from torch import nn

from deltaconvert.errors import InputError
from deltaconvert.preprocessing import Interpolation, Preprocessing
from deltaconvert.words import a_kind, nearest

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
        raise InputError(f"torchvision has no model {name!r}{nearest(name, known)}; "
                         "torchvision.models.list_models() lists them")
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    # A detector's builder downloads a backbone unless this second switch is off as well.
    without = {key: None for key in ("weights", "weights_backbone") if key in accepted}
    return _call(f"torchvision:{name}", models.get_model_builder(name), {**without, **arguments})


def _build_timm(name: str, arguments: dict[str, object]) -> nn.Module:
    timm = _import_library("timm")
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}{nearest(name, timm.list_models())}; "
                         "timm.list_models() lists them")

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


def preprocessing_of(spec: str, model: nn.Module) -> Preprocessing | None:
    """Return how the library that a model comes from feeds it, where it says so.

    The size is that at which its weights were evaluated.
    torchvision's presets belong to its weights, timm's to the model.
    """
    source, _, name = spec.partition(":")
    try:
        if source == "torchvision":
            return _preset_of_torchvision(_TORCHVISION_NAMESPACE.sub("", name))
        if source == "timm":
            return _preset_of_timm(model.pretrained_cfg)  # type: ignore[arg-type]
    except (AttributeError, KeyError, TypeError, ValueError, StopIteration):
        pass  # not every model has one
    return None


def _preset_of_torchvision(name: str) -> Preprocessing:
    weights = next(iter(_import_library("torchvision").models.get_model_weights(name)))
    preset = weights.transforms()
    sides, cut = _sides(preset, "resize_size"), _sides(preset, "crop_size")
    return Preprocessing(
        "rgb", tuple(preset.mean), tuple(preset.std),
        (cut[0], cut[-1]) if cut else None, sides[0] if len(sides) == 1 else None,
        _interpolation(getattr(getattr(preset, "interpolation", None), "value", "")))


def _sides(preset: Any, name: str) -> list[int]:
    return [int(side) for side in getattr(preset, name, ())]


def _interpolation(name: str) -> Any:
    return name if name in get_args(Interpolation) else "bilinear"


def _preset_of_timm(told: Mapping[str, Any]) -> Preprocessing:
    """Read a configuration: what is left of the picture is ``crop_pct`` of its shorter side."""
    mean, std = tuple(told["mean"]), tuple(told["std"])
    if not told.get("input_size"):
        return Preprocessing("rgb", mean, std)
    _, height, width = (int(side) for side in told["input_size"])
    share = float(told.get("crop_pct") or 1.0)
    cuts = told.get("crop_mode", "center") == "center"
    return Preprocessing("rgb", mean, std, (height, width),
                         math.floor(min(height, width) / share) if cuts else None,
                         _interpolation(str(told.get("interpolation"))))


def find_function(spec: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` names.

    Raises:
        InputError: the module or the name in it is missing, or it cannot be called.
    """
    source, separator, name = spec.partition(":")
    if not (source and separator and name):
        raise InputError(f"a function is named package.module:function, got {spec!r}")
    with _current_folder_last():
        module = _import_module(source, "Functions are named package.module:function")
        found: Callable[..., Any] = _find_factory(module, name, spec, "function")
    return found


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


def _import_module(module: str, forms: str = f"Models are named {SPEC_FORMS}") -> Any:
    if not all(part.isidentifier() for part in module.split(".")):
        dotted = re.sub(r"\.py$", "", module).strip("./\\").replace("/", ".").replace("\\", ".")
        raise InputError(
            f"{module!r} is not a module's name; from the folder that holds it, write "
            f"{dotted}:factory"
        )
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _module_not_found(module, error, forms) from error
    except (Exception, SystemExit) as error:  # a script without a main guard may exit
        raise InputError(f"importing {module} raised {_described(error)}") from error


def _module_not_found(module: str, error: ModuleNotFoundError, forms: str) -> InputError:
    missing = error.name or str(error)
    if module == missing or module.startswith(f"{missing}."):
        return InputError(
            f"no module {missing!r}: it is neither installed nor in the current folder "
            f"({os.getcwd()}). {forms}"
        )
    return InputError(f"{module} imports {missing!r}, which is not installed: pip install it")


def _find_factory(module: Any, factory: str, spec: str,
                  wanted: str = "function or class that makes a model") -> Any:
    found = module
    for part in factory.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            where = getattr(module, "__file__", None) or "its folder"
            raise InputError(f"{spec}: no {part!r} in {where}{nearest(part, names)}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{spec} is {a_kind(found)}, not a {wanted}")
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
        raise InputError(f"{spec} returned {a_kind(model)}, not a torch.nn.Module")
    return model


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
