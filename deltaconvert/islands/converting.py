"""Which submodules become islands, and their conversion in a copy of the model."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deltaconvert.config import Config
from deltaconvert.errors import InputError, TraceError
from deltaconvert.islands.inner_hooks import InnerHooks
from deltaconvert.islands.module import IslandsModule, check_settings, settings_of
from deltaconvert.model_graph import ModelGraph
from deltaconvert.module import DeltaModule
from deltaconvert.passes.compiler import compile_graph
from deltaconvert.passes.trace import private_copy
from deltaconvert.passes.tracing.attributes import Attributes
from deltaconvert.passes.tracing.compare_graphs import same
from deltaconvert.passes.tracing.random_numbers import random_numbers_kept


def convert_islands(model: nn.Module, modules: Sequence[str] | str, inputs: Sequence[Any],
                    config: Config, strict: bool) -> IslandsModule:
    """Convert submodules in a copy of a model; see `convert`.

    Args:
        model: left untouched.
        modules: paths, or ``"auto"``.
        inputs: of the model, or none: the submodules are then converted for what they get.
        config: settings for single nodes go by their path in the model.
        strict: raise where something falls back.
    """
    copied = private_copy(model).eval()
    seen = _seen(copied, inputs) if inputs else {}
    paths = find_islands(copied, seen) if modules == "auto" else _checked(copied, modules)
    check_settings(config, paths)
    islands = {}
    for path in paths:
        traced = _compiled(copied.get_submodule(path), path, seen.get(path, ()))
        islands[path] = DeltaModule(traced.meta["root"], ModelGraph.of(traced),
                                    settings_of(config, path), strict=strict)
    converted = IslandsModule(copied, islands, config)
    if inputs:
        with _as_it_was(copied):
            converted.new_stream()(*inputs)  # compiles; the programs stay
    return converted


def find_islands(model: nn.Module, seen: Mapping[str, Sequence[Tensor]] = types.MappingProxyType({})
                 ) -> list[str]:
    """Return the paths of the largest submodules with convolutions that can be traced.

    Args:
        model: in eval mode; untouched.
        seen: what submodules were called with, by path, if that is known: then only those
            are taken that are called, with tensors alone.

    Raises:
        TraceError: where there are none.
    """
    found: list[str] = []
    _search(model, "", seen, found, set())
    if not found:
        raise TraceError(f"{type(model).__name__} has no submodule with convolutions that can be "
                         "traced: there is nothing to convert in it. deltaconvert.convert(model, "
                         "modules=[path]) says why one cannot be.")
    return found


def _search(module: nn.Module, path: str, seen: Mapping[str, Sequence[Tensor]], found: list[str],
            visited: set[int]) -> None:
    if id(module) in visited or not _convolves(module) or _is_by_region(module):
        return
    visited.add(id(module))
    if path and (not seen or path in seen) and _can_be_traced(module, seen.get(path, ())):
        found.append(path)
        visited.update(map(id, module.modules()))
        return
    for name, child in module.named_children():
        _search(child, f"{path}.{name}" if path else name, seen, found, visited)


def _convolves(module: nn.Module) -> bool:
    return any(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in module.modules())


def _is_by_region(module: nn.Module) -> bool:
    """Whether a module works on regions cut out anew in each frame, as detectors' heads do.

    From frame to frame there is nothing of them to take up again. It goes by the name,
    which torchvision, detectron2 and mmdetection agree on.
    """
    return any("roihead" in kind.__name__.lower() for kind in type(module).__mro__)


def _can_be_traced(module: nn.Module, frames: Sequence[Tensor]) -> bool:
    try:
        _compiled(module, "", frames)
    except TraceError:
        return False
    return True


def _compiled(module: nn.Module, path: str, frames: Sequence[Tensor]) -> Any:
    if InnerHooks(module):
        raise TraceError(f"{path}: a submodule has forward hooks, and what they keep for the rest "
                         "of the model would not be seen. Convert parts that have none within, "
                         "or take the hooks off (handle.remove()).")
    try:
        return compile_graph(module, frames, hooks=False)  # the model's own call runs them
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error


def _checked(model: nn.Module, modules: Sequence[str] | str) -> list[str]:
    """Return the paths without repetition.

    Raises:
        InputError: for a path that is not there, the whole model, or one within another.
    """
    if isinstance(modules, str):
        raise InputError(f"modules={modules!r}: give a list of paths, [{modules!r}], or 'auto'.")
    paths = list(dict.fromkeys(modules))
    if not paths:
        raise InputError("modules=[] leaves nothing to convert: name submodules, or give 'auto'.")
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for path in paths:
        if path not in known or not path:
            children = ", ".join(name for name, _ in model.named_children())
            raise InputError(f"modules: {type(model).__name__} has no submodule {path!r}; its "
                             f"children are {children}.")
        inside = [p for p in paths if p.startswith(f"{path}.")]
        if inside:
            raise InputError(f"modules: {inside[0]} is a part of {path}, which is converted whole: "
                             "name one of them.")
    return paths


def _seen(model: nn.Module, inputs: Sequence[Any]) -> dict[str, tuple[Tensor, ...]]:
    """Run the model once and return the first inputs of each submodule that got tensors alone."""
    seen: dict[str, tuple[Tensor, ...]] = {}

    def noting(path: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = (*args, *kwargs.values())
            if given and all(isinstance(a, Tensor) for a in given):
                seen.setdefault(path, given)
        return note
    handles = [module.register_forward_pre_hook(noting(path), with_kwargs=True)
               for path, module in model.named_modules()
               if path and not isinstance(module, torch.jit.ScriptModule)]  # which take none
    try:
        with torch.no_grad(), _as_it_was(model):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Leave what a model keeps from frame to frame as it was, weights and random numbers too."""
    attributes = Attributes(model)
    # By their numbers: a norm in train mode writes into its buffers, and PyTorch does not count it.
    weights = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    try:
        with random_numbers_kept():
            yield
    finally:
        attributes.restore(lambda value: True)
        with torch.no_grad():
            for weight, before in weights:
                if not same(weight, before):
                    weight.copy_(before)
